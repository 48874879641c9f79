"""Test what a limit of memory leads to: one line before an export, and no limit of the machine."""

import pytest

from exporter import ExportSpec, export
from exporter.errors import MachineError
from exporter.machine.memory import LEAST_ADDRESSES_MB, require_addresses

resource = pytest.importorskip("resource")


@pytest.mark.parametrize("megabytes", [1, LEAST_ADDRESSES_MB - 1])
def test_too_small_a_limit_of_addresses_is_refused_with_both_numbers(megabytes, monkeypatch):
    limit = megabytes * 2**20
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (limit, limit))
    said = rf"limit of {megabytes} MiB of address space, expected at least {LEAST_ADDRESSES_MB} MiB"
    with pytest.raises(MachineError, match=said):
        require_addresses()


@pytest.mark.parametrize("limit", [LEAST_ADDRESSES_MB * 2**20, resource.RLIM_INFINITY])
def test_a_limit_that_leaves_room_is_taken(limit, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (limit, limit))
    require_addresses()


@pytest.mark.slow
def test_an_export_does_not_need_the_memory_that_measures_the_machine(tiny, tmp_path, monkeypatch):
    def too_large(*_arguments, **_options):
        raise MemoryError

    monkeypatch.setattr("exporter.latency.timing.measure_machine", too_large)
    made = export(ExportSpec(**tiny), tmp_path / "out")
    assert made.verdict == "pass"
    assert made.report.environment["limit"] is None
    (latency,) = (stage for stage in made.report.stages if stage.name == "latency")
    assert "too little memory to measure the limit of this machine" in latency.detail

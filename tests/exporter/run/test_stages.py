import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from exporter.machine.memory import peak_memory_mb, reset_peak_memory
from exporter.run import stages as stages_module
from exporter.run.stages import Stages


@contextmanager
def resident(mebibytes: int) -> Iterator[None]:
    """Map new memory and make it resident; an array could reuse resident memory of the heap."""
    with mmap.mmap(-1, mebibytes * 2**20) as block:
        block[:: mmap.PAGESIZE] = b"1" * (len(block) // mmap.PAGESIZE)  # touches each page
        yield


def test_a_stage_is_recorded_with_its_time_and_detail(monkeypatch):
    ticks = iter([100.0, 102.5])
    monkeypatch.setattr(stages_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    stages = Stages(lambda *_: None)
    with stages.run("onnx") as stage:
        stage.detail = "94 nodes"
    (status,) = stages.done
    assert (status.name, status.status, status.detail) == ("onnx", "done", "94 nodes")
    assert status.seconds == 2.5
    assert status.peak_memory_mb > 0


def test_stages_are_recorded_in_order_and_may_be_skipped():
    stages = Stages(lambda *_: None)
    with stages.run("onnx"):
        pass
    with stages.run("engine") as stage:
        stage.skipped = True
    assert [(s.name, s.status) for s in stages.done] == [("onnx", "done"), ("engine", "skipped")]


def test_a_stage_that_fails_is_not_recorded():
    stages = Stages(lambda *_: None)
    with pytest.raises(ValueError, match="broken"), stages.run("onnx"):
        raise ValueError("broken")
    assert stages.done == []


def test_progress_has_the_name_of_the_stage():
    told = []
    with Stages(lambda *x: told.append(x)).run("engine") as stage:
        stage.progress(0.5, "tactics")
    assert told == [("engine", None, ""), ("engine", 0.5, "tactics")]


def test_the_larger_of_two_peaks_is_kept():
    stages = Stages(lambda *_: None)
    with stages.run("engine") as stage:
        stage.peak_memory_mb = 1e9  # measured in another process
    assert stages.done[0].peak_memory_mb == 1e9


def test_the_peak_excludes_earlier_stages():
    stages = Stages(lambda *_: None)
    with stages.run("large"), resident(mebibytes=64):
        time.sleep(0)
    with stages.run("small"):
        time.sleep(0)
    large, small = (status.peak_memory_mb for status in stages.done)
    assert large - small > 48


def test_memory_is_in_mebibytes():
    reset_peak_memory()
    before = peak_memory_mb()
    with resident(mebibytes=128):
        assert 100 < peak_memory_mb() - before < 160

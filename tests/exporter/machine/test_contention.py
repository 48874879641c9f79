import subprocess
import sys
import time

import pytest

from exporter.machine.contention import Contention

BUSY = "import time; end = time.time() + 20\nwhile time.time() < end: pass"


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_another_process_is_counted_and_this_one_is_not():
    with Contention() as alone:
        burn(1.0)
    with subprocess.Popen([sys.executable, "-c", BUSY]) as other:
        time.sleep(0.2)
        with Contention() as beside:
            time.sleep(1.5)
        other.kill()

    assert alone.cores is not None
    assert beside.cores is not None
    # `beside` includes at least the other process. Both figures include any further load.
    assert beside.cores > 0.4
    assert alone.cores < beside.cores + 1.0


def test_a_system_without_the_figure_gives_none(monkeypatch, tmp_path):
    monkeypatch.setattr("exporter.machine.contention._STAT", tmp_path / "absent")
    with Contention() as contention:
        time.sleep(0.01)
    assert contention.cores is None

"""Test the processes that read clips."""

import sys

from exporter.predict import decode
from exporter.predict.decode import Readers
from model import FastTimeSformerConfig, Preprocessing

CONFIG = FastTimeSformerConfig(frames=2, channels=3, height=32, width=32, num_classes=4)
# Says that it is ready, and dies at the first clip.
DYING = "import sys; sys.stdin.readline(); print(flush=True); sys.stdin.readline(); sys.exit(9)"


def test_a_reader_that_died_is_released(monkeypatch, tmp_path):
    monkeypatch.setattr(decode.child, "command", lambda _: ([sys.executable, "-c", DYING], {}))
    with Readers(CONFIG, Preprocessing(), jobs=1) as readers:
        clips = list(readers.read([tmp_path / f"{i}.mp4" for i in range(3)], ahead=1))
        assert readers._workers == []
    assert {clip.error for clip in clips} == {
        f"{tmp_path}/{i}.mp4: the process that read it ended without an answer (exit code 9)"
        for i in range(3)
    }

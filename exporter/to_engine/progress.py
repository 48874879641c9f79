"""Convert TensorRT's nested build phases to one fraction for a progress bar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildProgress:
    """The progress of a build.

    In the innermost `phase`, `step` of `steps` steps are complete. `fraction` in [0, 1] is the
    complete share of the whole build. It counts steps, since TensorRT reports no times. It never
    decreases.
    """

    phase: str
    step: int
    steps: int
    fraction: float


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """The open phases. Each method handles one event and returns the progress after it.

    The phases that run inside one step of their parent count together for at most that one step.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._highest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> BuildProgress:
        """Open a phase of `steps` steps inside the phase `parent`, if there is a parent."""
        self._open[name] = _Phase(parent, max(steps, 1))
        return self._progress(name, self._open[name])

    def step(self, name: str, step: int) -> BuildProgress:
        """Record that `step`, counted from 0, is complete."""
        # A phase that was never started gets itself as parent, so it does not change the fraction.
        phase = self._open.setdefault(name, _Phase(name, step + 1))
        phase.done = min(step + 1, phase.steps)
        return self._progress(name, phase)

    def finish(self, name: str) -> BuildProgress:
        """Close a phase. Some of its steps may not have been reported."""
        phase = self._open.get(name, _Phase(name, 1))
        phase.done = phase.steps
        progress = self._progress(name, phase)
        self._open.pop(name, None)
        return progress

    def _progress(self, name: str, phase: _Phase) -> BuildProgress:
        roots = [root for root, other in self._open.items() if other.parent is None]
        self._highest = max([self._highest, *map(self._share, roots)])
        return BuildProgress(name, phase.done, phase.steps, self._highest)

    def _share(self, name: str) -> float:
        phase = self._open[name]
        inside = (child for child, other in self._open.items() if other.parent == name)
        return min((phase.done + max(map(self._share, inside), default=0.0)) / phase.steps, 1.0)

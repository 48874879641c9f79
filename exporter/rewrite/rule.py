"""What a rewrite is: where it looks, whether it fits a place, and how it changes the place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch

from model.classifier import VideoClassifier

PlaceT = TypeVar("PlaceT")

RUNTIMES = frozenset({"onnxruntime", "tensorrt"})
PRECISIONS = frozenset({"fp32", "fp16", "bf16", "int8"})


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite does not fit a place: a clause that follows "it does not apply where"."""

    reason: str


class Rewrite(ABC, Generic[PlaceT]):
    """One rewrite: the same function, laid out in another way. Its docstring gives the equation.

    A subclass finds places, judges one place, and changes one place. The loop over the places is
    here, and the loop over the rewrites is in `exporter.rewrite`. A rewrite changes a model in
    whole precision, in place, before it is traced. Modules keep their paths, so that `--keep-fp32`
    and the ladder find them.

    Attributes:
        name: What `--no-rewrite` calls it.
        targets: Runtimes that it suits. For `tensorrt`, `scripts/results/fusion.json` decides.
        precisions: Precisions of a graph that it suits.
        int8_below_dim: Token width from which it does not suit int8, where there is one.
        folds_modules: Whether it makes one module a part of another one.
        changes: Outputs that mean something else after it; an export that gives one leaves it out.
    """

    name: ClassVar[str]
    targets: ClassVar[frozenset[str]] = RUNTIMES
    precisions: ClassVar[frozenset[str]] = PRECISIONS
    int8_below_dim: ClassVar[int | None] = None
    folds_modules: ClassVar[bool] = False
    changes: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def find(self, model: VideoClassifier, clips: int) -> Iterable[PlaceT]:
        """The places of a model that the rewrite is about, for runs of `clips` clips."""

    @abstractmethod
    def fits(self, place: PlaceT) -> Refusal | None:
        """Why the rewrite does not apply to a place; None where it does."""

    @abstractmethod
    def apply(self, place: PlaceT) -> None:
        """Change one place that the rewrite fits."""

    @torch.no_grad()
    def __call__(self, model: VideoClassifier, clips: int = 1) -> int:
        """Change a model in place.

        Args:
            model: The model, in whole precision.
            clips: Clips of a run.

        Returns:
            The number of places that were changed.
        """
        return sum(refusal is None for refusal in self.visit(model, clips))

    def visit(self, model: VideoClassifier, clips: int) -> Iterator[Refusal | None]:
        """Change every place that fits. Yield None for a changed place, else the refusal."""
        for place in list(self.find(model, clips)):  # a list: a change may add and replace modules
            refusal = self.fits(place)
            if refusal is None:
                self.apply(place)
            yield refusal

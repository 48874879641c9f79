"""Any `torch.nn.Module` as the stages of an export see a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from exporter.errors import UsageError, first_line
from exporter.files.manifest import MODULE
from exporter.inputs.clips import Inputs

_LEAST_SAMPLES = 8


@dataclass(frozen=True)
class ModuleConfig:
    """What is known of a module: its class."""

    name: str


class AnyModule(nn.Module):
    """A module with named inputs and outputs, each with the batch as its first axis.

    Args:
        module: The module; a copy of it is taken, in evaluation mode.
        inputs: The names of its inputs, in the order of its forward.
        outputs: The names of its outputs to give.
        given: The names of what it gives, if these are no names of its own.
    """

    family: ClassVar[str] = MODULE
    reentrant: ClassVar[bool] = False  # nobody knows what it shares with a copy
    preprocessing = None
    task: ClassVar[str] = "single-label"  # of an output named logits
    labels = None

    def __init__(
        self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], given: Sequence[str]
    ) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).eval()
        kind = type(module)
        self.config = ModuleConfig(f"{kind.__module__}.{kind.__qualname__}")
        self.notes = (f"module {self.config.name}, exported as it is",)
        self.input_names, self.output_names = tuple(inputs), tuple(outputs)
        self._given = tuple(given)

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the module: one tensor, or a tuple in the order of the names."""
        found = name_outputs(self.module(*tensors), self._given)
        first, *others = (found[name] for name in self.output_names)
        return (first, *others) if others else first


def adapt(
    module: nn.Module, inputs: Mapping[str, Any], outputs: Sequence[str] = ()
) -> tuple[AnyModule, Inputs]:
    """Wrap a module, and take its inputs as those of an export.

    Args:
        module: The module.
        inputs: Arrays or tensors `(n, ...)` of n samples by name, in the order of its forward.
        outputs: Names of its outputs: keys of what it gives, or new names for its tensors in order.

    Raises:
        UsageError: if there are too few samples, the module does not run on them in float32 and
            float64, or an output does not have the batch as its first axis.
    """
    if not isinstance(module, nn.Module):
        raise UsageError("module", got=repr(module)[:200], expected="a torch.nn.Module")
    if not isinstance(inputs, Mapping):
        got = type(inputs).__name__
        raise UsageError("inputs of export_module", got=got, expected="names with arrays")
    if strange := [name for name in inputs if not isinstance(name, str)]:
        raise UsageError("a name of an input of export_module", got=strange[0], expected="a text")
    outputs = (outputs,) if isinstance(outputs, str) else outputs
    arrays = {name: _as_array(value) for name, value in inputs.items()}
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len({*counts.values()}) != 1 or min(counts.values()) < _LEAST_SAMPLES:
        expected = f"arrays of the same number of samples, at least {_LEAST_SAMPLES}"
        raise UsageError("inputs of export_module", got=counts or "none", expected=expected)
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            what = f"the input {name!r} of export_module"
            raise UsageError(what, got=array.dtype, expected="numbers or booleans")
    count = next(iter(counts.values()))
    names = tuple(f"sample-{place}" for place in range(count))
    samples = Inputs(names, ("given",) * count, arrays, given=True)
    model = AnyModule(module, tuple(arrays), (), outputs)
    made = name_outputs(_run(model.module, samples.batch(2), torch.float32), outputs)
    model.output_names = tuple(outputs or made)
    _check_outputs(made, model.output_names)
    _run(model.module, samples.batch(2), torch.float64)
    return model, samples


def name_outputs(made: object, given: Sequence[str]) -> dict[str, Tensor]:
    """Name the tensors that a module gave: by their keys, by `given`, or by their place."""
    if isinstance(made, Mapping):
        return {str(name): one for name, one in made.items() if isinstance(one, Tensor)}
    tensors = made if isinstance(made, (tuple, list)) else (made,)
    places = [f"output_{place}" for place in range(len(tensors))]
    names = given or (places if len(tensors) > 1 else ["output"])
    return {n: one for n, one in zip(names, tensors, strict=False) if isinstance(one, Tensor)}


def _as_array(value: object) -> np.ndarray:
    """Give the values of an input; floats as float32, which is what a graph takes."""
    if isinstance(value, Tensor):
        value = (value.float() if value.is_floating_point() else value).detach().cpu()
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


@torch.inference_mode()
def _run(module: nn.Module, batch: Mapping[str, np.ndarray], dtype: torch.dtype) -> object:
    """Run a copy of a module in a type."""
    tensors = (torch.from_numpy(array) for array in batch.values())
    cast = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
    kind = str(dtype).removeprefix("torch.")
    try:
        return copy.deepcopy(module).to(dtype)(*cast)
    except Exception as error:  # whatever the module raises
        raise UsageError(
            f"the module does not run in {kind}: {type(error).__name__}: {first_line(error)}",
            remedy="take types and devices in its forward from its weights and inputs"
            if dtype == torch.float64
            else "check the order, the shapes and the types of the inputs",
        ) from error


def _check_outputs(made: Mapping[str, Tensor], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in made:
            raise UsageError("the module does not give an output", got=name, expected=list(made))
        if made[name].ndim == 0 or len(made[name]) != 2:  # a run of two samples
            raise UsageError(
                f"the output {name!r} does not have the batch as its first axis",
                got=tuple(made[name].shape),
                expected="(2, ...) for two samples",
            )
        if not made[name].is_floating_point():
            raise UsageError(
                f"the output {name!r} has no floats", got=made[name].dtype, expected="float32"
            )
    if not wanted:
        raise UsageError("the module gives no tensor")

"""The truth of a graph's structure: the exported model in float64, with the weights of the graph.

A model of lower precision rounds its weights, and at each step its activations. Here the weights
are rounded as the export rounds them, and every step is computed in float64. So no rounding is left
between this truth and the graph with all its types raised.

A first run in the precision of the export records what each step takes beside the activations:
tensors made of weights alone, and numbers. The graph holds these as constants. Later runs compute
the same steps in float64 with the recorded constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from exporter.graph.weights import Stored, Values, find_stored, real_numbers, real_weights
from exporter.proof.numbers import Numbers, numbers_of
from exporter.runners.base import Arrays, Closing, check_inputs
from model.classifier import VideoClassifier
from model.precision import halved_modules

_CASTS = {
    Tensor.to,
    Tensor.float,
    Tensor.half,
    Tensor.bfloat16,
    Tensor.double,
    Tensor.type,
    Tensor.type_as,
}
_PRODUCTS = {F.linear, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
# Names of attributes that we set on tensors: it depends on the clip; it is a weight in float64; the
# operation that made it.
_LIVE, _RAISED, _ORIGIN = "live", "raised", "origin"
_HALF_STEP = 0.6  # more than half: the step itself may be rounded to fp16


class ExactModel(Closing):
    """A model of an export in float64, with its weights as the graph holds them: a `Runner`.

    Args:
        model: The model that was traced: rewritten, and in the precision of the export.
        example: One clip by the name of its input.
        graph: The graph that was made from it.

    Attributes:
        unknown: The initializers of the graph that no tensor of the model has the values of.
        foreign_numbers: Those of one number that no step of the model takes.
        functions: How often a run calls each torch function on activations, by its name.
        halves: The paths of the modules that compute in half precision.
    """

    name, device, precision, threads = "eager", "cpu", "fp64", 1
    transfers_included = True

    def __init__(self, model: VideoClassifier, example: Arrays, graph: onnx.ModelProto) -> None:
        self._model = model
        self.input_shapes: Mapping[str, tuple[int | None, ...]] = {
            name: (None, *array.shape[1:]) for name, array in example.items()
        }
        weights = real_weights(graph)
        self._recorded = recorder = _Recorder(Values(weights.values()), find_stored(graph))
        self.functions = recorder.functions
        self.halves = halved_modules(model)
        with torch.inference_mode(), recorder:
            model(*_live(example, torch.float32))
        tensors = (x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point())
        held = Values([*map(_without_copies, tensors), *recorder.taken])
        numbers = Numbers(recorder.numbers)
        self.unknown = (
            *recorder.not_found,
            *(name for name, array in weights.items() if array not in held),
        )
        self.foreign_numbers = tuple(
            name for name, number in real_numbers(graph).items() if number not in numbers
        )

    def close(self) -> None:  # noqa: D102
        self._recorded.steps.clear()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute `logits` `(b, classes)` in float64 of `video` `(b, f, c, h, w)`."""
        check_inputs(self, inputs)
        with torch.inference_mode(), _Replayer(self._recorded):
            made = self._model(*_live(inputs, torch.float64))
        outputs = made if isinstance(made, tuple) else (made,)
        named = zip(self._model.output_names, outputs, strict=True)
        return {name: output.numpy() for name, output in named}


class _Recorder(TorchFunctionMode):
    """Records the constants of each step that takes activations and constants.

    Attributes:
        steps: The constants of each of these steps: tensors and numbers; None for an activation.
        taken: The values of the tensors among them.
        in_graph: Which of the steps of constants alone the graph computes in each run.
        stored: The stored weights of such steps, which take the place of their second argument.
        functions: How often each function was called on activations, by its name.
        numbers: The numbers that any step takes.
    """

    def __init__(self, held: Values, stored: Sequence[Stored]) -> None:
        super().__init__()
        self._held, self._stored, self._found = held, stored, set[str]()
        self.steps: list[list[Any]] = []
        self.taken: list[np.ndarray] = []
        self.in_graph: set[int] = set()
        self.stored: dict[int, Tensor] = {}
        self.functions: Counter[str] = Counter()
        self.numbers: set[float] = set()
        self._constant_steps = 0

    @property
    def not_found(self) -> list[str]:
        """The stored weights that are no rounding of a weight of the model."""
        return [one.name for one in self._stored if one.name not in self._found]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the function gives
        leaves = tree_leaves((args, kwargs or {}))
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        self.numbers.update(numbers_of(name, leaves))
        if any(map(_is_live, leaves)):
            self.functions[name] += 1
            if func not in _CASTS and any(map(_is_constant, leaves)):
                dtype = _type_of(leaves)
                self.steps.append(
                    [
                        self._constant(func, leaf, dtype) if _is_constant(leaf) else None
                        for leaf in leaves
                    ]
                )
            return _mark(output, _LIVE)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if tensors and func not in _CASTS:
            self._constant_steps += 1
            if func in _PRODUCTS and (rounded := self._rounded(func, tensors[1])) is not None:
                self.stored[self._constant_steps] = rounded
                del tensors[1]  # the graph holds it
        for leaf in tree_leaves(output) if tensors else ():
            if isinstance(leaf, Tensor) and all(leaf is not tensor for tensor in tensors):
                number = None if func in _CASTS else self._constant_steps
                setattr(leaf, _ORIGIN, (number, tensors))
        return output

    def _constant(
        self,
        func: Callable[..., Any],
        leaf: Any,  # noqa: ANN401  # a tensor or a number
        dtype: torch.dtype,
    ) -> Any:  # noqa: ANN401
        """Return what a step takes in float64 in place of a constant."""
        if not isinstance(leaf, Tensor):
            return torch.tensor(leaf, dtype=dtype).item()  # as the graph holds it
        values = _without_copies(leaf)
        self.taken.append(values)
        if func in _PRODUCTS and (rounded := self._rounded(func, leaf)) is not None:
            return rounded
        if values not in self._held:
            self._follow(leaf)
        return leaf

    def _follow(self, tensor: Tensor) -> None:
        """Note the steps that make a tensor from those that the graph holds."""
        step, parents = getattr(tensor, _ORIGIN, (None, ()))
        if step is not None:
            self.in_graph.add(step)
        for parent in parents:
            values = _without_copies(parent)
            self.taken.append(values)
            if hasattr(parent, _ORIGIN) and values not in self._held:
                self._follow(parent)

    def _rounded(self, func: Callable[..., Any], weight: Tensor) -> Tensor | None:
        """Return the stored weight that is the rounding of this one, if there is one."""
        laid_out = weight.mT if func is F.linear and weight.ndim > 1 else weight
        shape = tuple(size for size in laid_out.shape if size != 1)
        alike = [one for one in self._stored if one.shape == shape]
        array = laid_out.double().numpy() if alike else None
        for one in alike:
            assert array is not None
            exact = array.reshape(one.values.shape)
            if (np.abs(exact - one.values) <= _HALF_STEP * one.steps).all() and one.spans(exact):
                self._found.add(one.name)
                held = torch.from_numpy(one.values).reshape(laid_out.shape)
                return held.mT if laid_out is not weight else held
        return None


class _Replayer(TorchFunctionMode):
    """Computes the recorded steps in float64."""

    def __init__(self, recorded: _Recorder) -> None:
        super().__init__()
        self._recorded, self._steps = recorded, iter(recorded.steps)
        self._constant_steps = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the function gives
        leaves, structure = tree_flatten((args, kwargs or {}))
        live, raised = any(map(_is_live, leaves)), any(map(_is_raised, leaves))
        if func in _CASTS:
            output = func(*args, **(kwargs or {}))
            if live or raised:
                output = args[0].double() if output.is_floating_point() else output
            return _mark(output, _LIVE) if live else _mark(output, _RAISED) if raised else output
        if live and any(map(_is_constant, leaves)):
            recorded = next(self._steps)
            leaves = [
                leaf
                if constant is None or (_is_raised(leaf) and not _is_exact(constant))
                else constant
                for leaf, constant in zip(leaves, recorded, strict=True)
            ]
        elif not live and any(isinstance(leaf, Tensor) for leaf in leaves):
            self._constant_steps += 1
            raised = raised or self._constant_steps in self._recorded.in_graph
            if raised and self._constant_steps in self._recorded.stored:
                leaves[1] = self._recorded.stored[self._constant_steps]
        if not (live or raised):
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_unflatten([*map(_in_float64, leaves)], structure)
        return _mark(func(*args, **(kwargs or {})), _LIVE if live else _RAISED)


def _live(inputs: Arrays, dtype: torch.dtype) -> list[Tensor]:
    tensors = (torch.from_numpy(array) for array in inputs.values())
    return [_mark(t.to(dtype) if t.is_floating_point() else t.clone(), _LIVE) for t in tensors]


def _mark(output: Any, mark: str) -> Any:  # noqa: ANN401  # whatever a function gives
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            setattr(leaf, mark, True)
    return output


def _is_live(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and hasattr(leaf, _LIVE)


def _is_raised(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and hasattr(leaf, _RAISED)


def _type_of(leaves: Sequence[object]) -> torch.dtype:
    """Return the type in which a step of activations computes."""
    live = [leaf for leaf in leaves if isinstance(leaf, Tensor) and _is_live(leaf)]
    types = {leaf.dtype for leaf in live if leaf.is_floating_point()}
    return types.pop() if len(types) == 1 else torch.float32


def _is_constant(leaf: object) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.is_floating_point() and not _is_live(leaf)
    return isinstance(leaf, float)


def _is_exact(constant: object) -> bool:
    """Whether a constant was a stored weight."""
    return isinstance(constant, Tensor) and constant.dtype == torch.float64


def _in_float64(leaf: object) -> object:
    """Raise a tensor; a number is what a graph holds of it, in float32."""
    if isinstance(leaf, Tensor):
        return leaf.double() if leaf.is_floating_point() else leaf
    return float(np.float32(leaf)) if isinstance(leaf, float) else leaf


def _without_copies(tensor: Tensor) -> np.ndarray:
    """Return the values in float32, once where an axis repeats them."""
    for axis, step in enumerate(tensor.stride()):
        if step == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor.detach().float().numpy()

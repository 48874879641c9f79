"""Facts about an export, a graph or an engine -> the terminal, within 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.constrain import Constrain

from exporter.files.machines import Machines
from exporter.inspection import ExportFacts, Inspection
from exporter.inspection.engine import EngineFacts
from exporter.report import fusion_line, human
from exporter.report.table import WIDTH, figures, plain, table, texts
from model.words import listed

if TYPE_CHECKING:  # these import onnx, which an engine does not need
    from exporter.graph.view import GraphTensor, Shape
    from exporter.inspection.graph import Fusion, GraphFacts, ModuleFacts

_OPERATORS = 12  # the most frequent; --json has all
_OF_A_SPEC = ("attn", "scheme", "frames", "res", "depth", "dim", "semantics")
_PLACES = 6  # modules that one row names


def inspection_view(found: Inspection) -> RenderableType:
    """Show the parts that were found, one below the other."""
    parts: list[RenderableType] = []
    if found.export:
        parts += _export_view(found.path, found.export)
    if found.graph:
        parts += _graph_view(found.graph)
    if found.engine:
        parts += _engine_view(found.engine)
    elif found.export:
        parts.append(plain(f"model.engine: {found.export.engine_status}"))
    return Constrain(Group(*parts), width=WIDTH)


def _export_view(path: str, export: ExportFacts) -> Iterator[RenderableType]:
    spec = export.spec
    yield plain(f"{path}: {export.model.get('family')}, {spec.get('precision')}", "bold")
    said = [f"{name} {_option(spec[name])}" for name in _OF_A_SPEC if spec.get(name) is not None]
    what = f"{', '.join(said)}; " if said else ""  # of a module of the user nothing is known
    yield plain(f"{what}verdict at export: {export.verdict}")
    missing = [name for name, state in export.files.items() if state == "missing"]
    changed = [name for name, state in export.files.items() if state.startswith("changed")]
    for name in changed:
        yield plain(f"{name}: {export.files[name]}", "bold red")
    if missing:
        yield plain(f"Not here: {', '.join(missing)}", "yellow")
    if not changed:
        count = (
            f"The other {len(export.files) - len(missing)}"
            if missing
            else f"All {len(export.files)}"
        )
        yield plain(f"{count} files are as they were exported")
    yield from _machines_view(export.machines)
    if export.rewrites is None:
        yield plain("Rewrites: not known without report.json")
        return
    fired = ", ".join(f"{r.get('name')} ({human(r.get('places'))}x)" for r in export.rewrites)
    yield plain(f"Rewrites: {fired or 'none fired'}")


def _option(value: object) -> str:
    """Write a value as the command line takes it: a resolution as 224x384."""
    return "x".join(map(human, value)) if isinstance(value, list | tuple) else human(value)


def _machines_view(machines: Machines) -> Iterator[RenderableType]:
    """List what other machines recorded: verdict and median time of each runtime."""
    for machine in machines.found:
        timed = {(row.runtime, row.device): row for row in machine.latency[::-1]}
        judged = machine.verdicts
        for runtime, device in dict.fromkeys([*judged, *timed]):
            row = timed.get((runtime, device))
            facts = [judged.get((runtime, device), "not judged")]
            facts += [f"p50 {row.p50_ms:.3g} ms at batch {row.batch}"] if row else []
            yield plain(f"{machine.name}: {runtime} ({device}): {', '.join(facts)}")
    for note in machines.notes:
        yield plain(note, "yellow")


def _graph_view(graph: GraphFacts) -> Iterator[RenderableType]:
    opsets = ", ".join(f"{name or 'opset'} {version}" for name, version in graph.opsets.items())
    made = f", by {graph.producer}" if graph.producer else ""
    yield plain(
        f"\n{graph.file}: {size(graph.bytes)}, {opsets}, IR {graph.ir_version}{made}", "bold"
    )
    yield plain(
        f"{human(graph.nodes)} nodes, {human(graph.parameters)} parameters, "
        f"{size(graph.weight_bytes)} of weights ({_listed(graph.weights, size)})"
    )
    if graph.missing_weights:
        yield plain(f"The content of {graph.missing_weights} weights is not there", "bold red")
    yield plain(_cost_line(graph))
    yield plain(f"Values: {_listed(graph.values, human)}; casts: {_listed(graph.casts, human)}")
    yield _tensors(_rows(graph.inputs), _rows(graph.outputs))
    yield _operators(graph)
    yield _modules(graph.modules)
    yield from _fusion_view(graph)


def _cost_line(graph: GraphFacts) -> str:
    if "reason" in graph.cost:
        return f"Operations of one run: not known: {graph.cost['reason']}"
    flops, moved = graph.cost["flops"], graph.cost["bytes"]
    return (
        f"One run at batch {graph.batch}: {_scaled(flops)}FLOP, {size(moved)} read and written "
        "before anything is fused"
    )


def _rows(tensors: Iterable[GraphTensor]) -> list[tuple[str, str, Shape]]:
    return [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]


def _tensors(
    inputs: Iterable[tuple[str, str, Shape]], outputs: Iterable[tuple[str, str, Shape]]
) -> RenderableType:
    made = table(*texts("", "Name", "Type", "Shape"))
    for side, tensors in (("in", inputs), ("out", outputs)):
        for name, dtype, axes in tensors:
            shape = " x ".join("?" if axis is None else str(axis) for axis in axes)
            made.add_row(side, name, dtype, shape or "scalar")
    return made


def _operators(graph: GraphFacts) -> RenderableType:
    made = table(*texts("Operator"), *figures("Nodes", "FLOP"))
    flops: Mapping[str, int] = graph.cost.get("by_op", {})
    ops = list(graph.ops.items())
    for op, count in ops[:_OPERATORS]:
        made.add_row(op, human(count), _scaled(flops[op]) if flops.get(op) else "-")
    if rest := ops[_OPERATORS:]:
        work = sum(flops.get(op, 0) for op, _ in rest)
        label = f"{len(rest)} more: {', '.join(op for op, _ in rest)}"
        made.add_row(label, human(sum(n for _, n in rest)), _scaled(work) if work else "-")
    return made


def _modules(modules: Iterable[ModuleFacts]) -> RenderableType:
    made = table(*texts("Module"), *figures("Nodes", "Parameters", "Weights"))
    sums: dict[str | None, list[int]] = {}
    for module in modules:
        total = sums.setdefault(block(module.path), [0, 0, 0])
        for place, figure in enumerate((module.nodes, module.parameters, module.bytes)):
            total[place] += figure
    for path, (nodes, parameters, weight_bytes) in sums.items():
        name = {None: "(not told)", "": "(the model itself, or shared)"}.get(path, path)
        shared = "" if nodes or not path else " (shared)"  # by its submodules
        made.add_row(f"{name}{shared}", human(nodes), human(parameters), size(weight_bytes))
    return made


def block(path: str | None) -> str | None:
    """The block that a module is in: `blocks.3` for `blocks.3.attn_t.fn`."""
    if not path:
        return path
    steps = path.split(".")
    numbered = (place for place, step in enumerate(steps) if step.isdecimal())
    return ".".join(steps[: next(numbered, 0) + 1])


def _fusion_view(graph: GraphFacts) -> Iterator[RenderableType]:
    fusion = graph.fusion
    if fusion.nodes is None:
        yield plain(f"What ONNX Runtime fuses is not known: {fusion.reason}", "yellow")
        return
    yield plain(f"ONNX Runtime runs it as {human(fusion.nodes)} nodes; {_attention_line(fusion)}")
    if fusion.fused:
        made = table(*texts("Fused into", "In"), *figures("Nodes"))
        for entry in fusion.fused:
            places = dict.fromkeys(block(each) or "the model itself" for each in entry.modules)
            made.add_row(entry.op, listed(places, _PLACES), human(entry.count))
        yield made


def _attention_line(fusion: Fusion) -> str:
    if not fusion.attention:
        return "no softmax is in it"
    fused = [module for module, op in fusion.attention.items() if op]
    of = f"{len(fused)} of {len(fusion.attention)} modules with a softmax"
    return f"attention is one operator in {of}"


def _engine_view(engine: EngineFacts) -> Iterator[RenderableType]:
    built = engine.built
    made = f"{engine.flavour or 'of unknown make'} {built.get('version') or ''}".strip()
    yield plain(f"\n{engine.file}: {size(engine.bytes)}, {made}", "bold")
    style = {"malformed": "bold red", "not checked": "yellow"}.get(engine.header, "")
    said = {"well-formed": ", but TensorRT checks only its first bytes"}
    objections = f" ({', '.join(engine.objections)})" if engine.objections else ""
    yield plain(f"Header: {engine.header}{said.get(engine.header, '')}{objections}", style)
    damaged = engine.content.startswith("changed")
    yield plain(f"Content: {engine.content}", "bold red" if damaged else "")
    if not built.get("version"):
        yield plain("Built for: needs a GPU to know more: no manifest.json is beside the engine")
        return
    targets = human(built.get("targets")) if built.get("targets") else "the builder's default"
    yield plain(f"Built for: {targets}; {human(built.get('layers'))} layers; {built.get('status')}")
    yield plain(f"Runs as: {fusion_line(built)}")
    unfused = ", ".join(f"{entry.get('module')}" for entry in built.get("unfused") or ())
    if unfused:
        reasons = {entry.get("reason") for entry in built["unfused"]} - {"", None}
        yield plain(f"Not fused: {unfused} {human(sorted(reasons)) if reasons else ''}", "yellow")
    inputs, outputs = (
        [
            (tensor["name"], tensor["dtype"], tuple(tensor["shape"]))
            for tensor in built.get(side) or ()
        ]
        for side in ("inputs", "outputs")
    )
    yield _tensors(inputs, outputs)


def _listed(figures: Mapping[str, int], write: Callable[[int], str]) -> str:
    return ", ".join(f"{name} {write(figure)}" for name, figure in figures.items()) or "none"


def size(count: int) -> str:
    """Write bytes with the decimal unit that suits them."""
    return f"{_scaled(count)}B"


def _scaled(figure: int) -> str:
    powers = ((10**9, " G"), (10**6, " M"), (10**3, " k"))
    unit, prefix = next(((u, p) for u, p in powers if figure >= u), (1, " "))
    return f"{figure / unit:.3g}{prefix}"

"""Hostile ONNX files: damage, functions that unfold, weights elsewhere, sizes without end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from hostile_texts import NASTY
from onnx import TensorProto, helper

Make = Callable[[Path], list[str]]


def cases() -> Iterator[tuple[str, Make]]:
    """Yield name and maker of each case: every file is inspected, and linted by the rules."""
    for name, build in _files():
        for command in (["inspect"], ["lint", "--rules-only"]):
            yield f"{command[0]} {name}", lambda folder, b=build, c=command: [*c, b(folder)]
    for name, build in list(_files())[::9]:
        yield f"lint with runtimes {name}", lambda folder, b=build: ["lint", b(folder)]


def _files() -> Iterator[tuple[str, Callable[[Path], str]]]:
    for calls, depth in ((2, 60), (10, 30), (1, 3000), (2, 3)):
        yield f"functions {calls}^{depth}", lambda f, c=calls, d=depth: _functions(f, c, d)
    yield "function of itself", lambda f: _functions(f, 1, 1, ring=True)
    yield "functions in a ring", lambda f: _functions(f, 1, 30, ring=True)
    for dims in ([2**31], [2**62], [-5], [0], [2**20, 2**20, 2**20], [2**40] * 5):
        yield f"weight of {dims[:3]}", lambda f, d=dims: _weight(f, d)
        yield f"input of {dims[:3]}", lambda f, d=dims: _input(f, d)
        yield f"constant of {dims[:3]}", lambda f, d=dims: _constant(f, d)
    for place in ("../../../etc/passwd", "/dev/zero", "/etc/passwd", "pipe", "", ".", "a\x00b"):
        yield f"weights in {place!r}", lambda f, p=place: _outside(f, p)
    for name, nasty in NASTY.items():
        yield f"names {name}", lambda f, n=nasty: _named(f, n)
    yield "if in if", lambda f: _branches(f, 60)
    yield "many nodes", lambda f: _chain(f, 10_000)
    yield "pipe", _pipe
    yield "device", lambda _: "/dev/zero"
    yield "empty", lambda f: _bytes(f, b"")
    yield "text", lambda f: _bytes(f, b"not a graph " * 1000)
    for seed in range(24):
        yield f"damaged {seed}", lambda f, s=seed: _damaged(f, s)
    for ir, opset in ((0, 18), (99, 18), (8, 0), (8, 999), (8, -1), (3, 7)):
        yield f"ir {ir} opset {opset}", lambda f, i=ir, o=opset: _versions(f, i, o)


def _value(name: str, dims: Any = (2,), kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:  # noqa: ANN401
    return helper.make_tensor_value_info(name, kind, dims)


def _save(folder: Path, nodes: list[Any], weights: Any = (), **model: Any) -> str:  # noqa: ANN401
    inputs = model.pop("inputs", [_value("x")])
    graph = helper.make_graph(nodes, "g", inputs, [_value("y", None)], list(weights))
    given = {"ir_version": 8, "opset_imports": [helper.make_opsetid("", 18)], **model}
    return _bytes(folder, helper.make_model(graph, **given).SerializeToString())


def _bytes(folder: Path, content: bytes) -> str:
    (folder / "g.onnx").write_bytes(content)
    return str(folder / "g.onnx")


def _functions(folder: Path, calls: int, depth: int, *, ring: bool = False) -> str:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    made = []
    for level in range(depth):
        last = level == depth - 1
        op, domain = (
            ("f0" if ring else "Neg", "own" if ring else "") if last else (f"f{level + 1}", "own")
        )
        names = ["x", *(f"v{i}" for i in range(calls - 1)), "y"]
        nodes = [
            helper.make_node(op, [names[i]], [names[i + 1]], domain=domain) for i in range(calls)
        ]
        made.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, opsets))
    call = helper.make_node("f0", ["x"], ["y"], domain="own")
    return _save(folder, [call], functions=made, opset_imports=opsets)


def _weight(folder: Path, dims: list[int]) -> str:
    claimed = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"abcd")
    return _save(folder, [helper.make_node("Add", ["x", "w"], ["y"])], [claimed])


def _input(folder: Path, dims: list[int]) -> str:
    return _save(folder, [helper.make_node("Exp", ["x"], ["y"])], inputs=[_value("x", dims)])


def _constant(folder: Path, dims: list[int]) -> str:
    shape = helper.make_tensor("s", TensorProto.INT64, [len(dims)], dims)
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["r"], keepdims=0),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    return _save(folder, nodes, [shape])


def _outside(folder: Path, place: str) -> str:
    if place == "pipe":
        os.mkfifo(folder / "pipe")
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    weight.data_location = TensorProto.EXTERNAL
    for key, text in (("location", place), ("offset", "0"), ("length", "8")):
        weight.external_data.add(key=key, value=text)
    return _save(folder, [helper.make_node("Add", ["x", "w"], ["y"])], [weight])


def _named(folder: Path, name: str) -> str:
    nodes = [
        helper.make_node("Einsum", ["x", "x"], [name], name=f"n{name}", equation="i,i->i"),
        helper.make_node("Nope", [name], ["y"], domain=name, doc_string=name),
    ]
    return _save(folder, nodes, producer_name=name, doc_string=name)


def _branches(folder: Path, depth: int) -> str:
    node = helper.make_node("Neg", ["x"], ["y0"])
    for level in range(depth):
        graphs = [
            helper.make_graph([node], f"b{i}", [], [_value(node.output[0], None)]) for i in (0, 1)
        ]
        node = helper.make_node(
            "If", ["c"], [f"y{level + 1}"], then_branch=graphs[0], else_branch=graphs[0]
        )
        if level > 12:  # two copies at each level would be 2^60
            break
    node.output[0] = "y"
    inputs = [_value("x"), _value("c", [], TensorProto.BOOL)]
    return _save(folder, [node], inputs=inputs)


def _chain(folder: Path, count: int) -> str:
    names = ["x", *(f"v{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("Neg", [names[i]], [names[i + 1]]) for i in range(count)]
    return _save(folder, nodes)


def _versions(folder: Path, ir: int, opset: int) -> str:
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    return _save(folder, nodes, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])


def _damaged(folder: Path, seed: int) -> str:
    generator = random.Random(seed)
    content = bytearray(Path(_chain(folder, 40)).read_bytes())
    if seed % 4 == 0:
        content = content[: generator.randrange(len(content))]
    for _ in range(generator.randrange(1, 20)):
        content[generator.randrange(len(content))] = generator.randrange(256)
    return _bytes(folder, bytes(content))


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "g.onnx")
    return str(folder / "g.onnx")

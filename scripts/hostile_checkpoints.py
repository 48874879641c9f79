"""Hostile files of weights: tensors that are none, containers without end, claims, and code."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

Make = Callable[[Path], list[str]]
_EXPORT = ["--engine=none", "--bench-seconds=0"]
_KEYS = ("cls_token", "model.blocks.0.norm1.weight", "to_patch_embedding.weight", "x")


def cases() -> Iterator[tuple[str, Make]]:
    """Yield name and maker of each case."""
    for name in _TENSORS:
        for key in _KEYS:
            yield f"{name} {key}", lambda folder, n=name, k=key: _torch(folder, {k: _TENSORS[n]()})
    for name in _CONTAINERS:
        yield name, lambda folder, n=name: _torch(folder, _CONTAINERS[n]())
    for name, claims in _CLAIMS.items():
        yield f"claims {name}", lambda folder, c=claims: _own(folder, c)
    for protocol in (2, 4):
        for command in ("open('code-ran', 'w')", "__import__('os').system('touch code-ran')"):
            yield (
                f"code {protocol} {command[:4]}",
                lambda folder, p=protocol, c=command: _code(folder, p, c),
            )
    for seed in range(40):
        yield f"damaged {seed}", lambda folder, s=seed: _damaged(folder, s)
    yield "pipe", _pipe
    yield "device", lambda _: _export("/dev/zero")
    yield "folder", lambda folder: _export(str(folder))
    yield "empty", lambda folder: _written(folder, b"")


def _strided(size: tuple[int, ...], step: tuple[int, ...], stored: int = 1) -> torch.Tensor:
    return torch.zeros(stored).as_strided(size, step)


_TENSORS: dict[str, Callable[[], object]] = {
    "meta": lambda: torch.empty(2**20, device="meta"),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse CSR": lambda: torch.eye(4).to_sparse_csr(),
    "2^31 of stride 0": lambda: torch.zeros(1).expand(2**31),
    "2^40 of stride 0": lambda: _strided((2**40,), (0,)),
    "2^62 of stride 0": lambda: _strided((2**31, 2**31), (0, 0)),
    "overlapping": lambda: _strided((64, 2**26), (1, 0), 64),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
    "complex": lambda: torch.zeros(4, dtype=torch.complex64),
    "no elements": lambda: torch.zeros(0, 4),
    "not finite": lambda: torch.full((4,), float("nan")),
}


def _ring(kind: str) -> object:
    one: dict[str, Any] = {"w": torch.zeros(2)}
    if kind == "self":
        one["again"] = one
    elif kind == "two":
        other: dict[str, Any] = {"back": one}
        one["to"] = other
    else:
        many: list[Any] = [one]
        many.append(many)
        one["many"] = many
    return one


def _deep(levels: int) -> object:
    value: Any = {"w": torch.zeros(2)}
    for _ in range(levels):
        value = {"a": value}
    return value


def _wide(levels: int) -> object:
    """Each level holds the next one twice: 2^levels paths to one tensor."""
    value: Any = [torch.zeros(2)]
    for _ in range(levels):
        value = [value, value]
    return {"w": value}


_CONTAINERS: dict[str, Callable[[], object]] = {
    "holds itself": lambda: _ring("self"),
    "ring of two": lambda: _ring("two"),
    "list in a ring": lambda: _ring("list"),
    "deep 100": lambda: _deep(100),
    "deep 300": lambda: _deep(300),
    "2^40 paths": lambda: _wide(40),
    "many names": lambda: {f"k{i}": torch.zeros(1) for i in range(3_000)},
    "one storage, many names": lambda: dict.fromkeys(map(str, range(5000)), torch.zeros(50_000)),
    "long name": lambda: {"k" * 1_000_000: torch.zeros(1)},
    "ansi name": lambda: {"blocks.0.\x1b[2J\x07": torch.zeros(1)},
    "bidi name": lambda: {"blocks.0.\u202egpj": torch.zeros(1), "cls_token": torch.zeros(1)},
    "number": lambda: 5,
    "text": lambda: "\x1b[31mred",
    "names that are numbers": lambda: {1: torch.zeros(1), 2.5: torch.zeros(1)},
}
_SIZES = {"frames": 2, "channels": 3, "height": 32, "width": 32, "num_classes": 2, "dim": 32,
          "dim_head": 16, "depth": 1}  # fmt: skip
_CLAIMS: dict[str, Any] = {
    "depth 10^5": {"depth": 10**5},
    "depth 10^9": {"depth": 10**9},
    "depth 900": {"depth": 900},
    "depth -1": {"depth": -1},
    "depth text": {"depth": "12"},
    "depth 1e308": {"depth": 1e308},
    "dim 10^6": {"dim": 10**6},
    "dim 16384": {"dim": 16_384},
    "frames 10^9": {"frames": 10**9},
    "pixels 10^9": {"height": 10**9, "width": 10**9},
    "classes 10^9": {"num_classes": 10**9},
    "classes 10^5": {"num_classes": 10**5},
    "patch 1": {"patch_size": 1, "height": 4096, "width": 4096},
    "heads 10^9": {"heads": 10**9},
    "deep": {"depth": [[[[[[1]]]]]]},
    "ansi": {"attn_mechanism": "\x1b[2J"},
    "bidi": {"attn_type": "\u202egpj"},
    "unknown": {"\x07key": 1},
    "list": [1, 2],
    "null": None,
}


class _Runs:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.text,)


def _export(path: str) -> list[str]:
    return ["export", f"--checkpoint={path}", *_EXPORT]


def _written(folder: Path, content: bytes, name: str = "w.pth") -> list[str]:
    (folder / name).write_bytes(content)
    return _export(str(folder / name))


def _torch(folder: Path, content: object) -> list[str]:
    torch.save(content, folder / "w.pth")
    return _export(str(folder / "w.pth"))


def _own(folder: Path, claims: Any) -> list[str]:  # noqa: ANN401  # also what is no mapping
    config = {**_SIZES, **claims} if isinstance(claims, dict) else claims
    described = {"version": 1, "family": "fast_timesformer", "config": config}
    metadata = {"tsformer": json.dumps(described)}
    return _written(folder, save({"cls_token": torch.zeros(1, 1, 32)}, metadata), "w.safetensors")


def _code(folder: Path, protocol: int, text: str) -> list[str]:
    if protocol == 2:
        return _written(folder, pickle.dumps({"w": _Runs(text)}, protocol))
    return _torch(folder, {"w": _Runs(text)})


def _damaged(folder: Path, seed: int) -> list[str]:
    generator = random.Random(seed)
    path = folder / "w.pth"
    torch.save({f"blocks.{i}.weight": torch.zeros(8, 8) for i in range(4)}, path)
    content = bytearray(path.read_bytes())
    if seed % 4 == 0:
        content = content[: generator.randrange(len(content))]
    for _ in range(generator.randrange(1, 30)):
        if content:
            content[generator.randrange(len(content))] = generator.randrange(256)
    return _written(folder, bytes(content))


def _pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "w.pth")
    return _export(str(folder / "w.pth"))

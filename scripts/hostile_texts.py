"""Hostile option files, grids, JSON and arguments: each case makes its file and gives a command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

Make = Callable[[Path], list[str]]
NASTY = {
    "ansi": "\x1b[2J\x1b[31mred",
    "bell": "ding\x07\x07",
    "backspace": "safe\x08\x08\x08\x08evil",
    "bidi": "\u202egpj.exe",
    "isolate": "\u2066a\u2069b",
    "c1": "\x9b2J",
    "return": "one\rtwo",
    "line": "one\ntwo",
    "title": "\x1b]0;owned\x07",
    "mark": "\u200fright",
}
_DEEP = 3000
_SMALL = ["--depth=1", "--dim=32", "--frames=2", "--res=32"]  # refused: 32 is no multiple of 64
_SMALL += ["--engine=none", "--bench-seconds=0"]


def cases() -> Iterator[tuple[str, Make]]:
    """Yield name and maker of each case."""
    yield from _toml()
    yield from _grids()
    yield from _arguments()
    yield from _json()


def _toml() -> Iterator[tuple[str, Make]]:
    texts = {
        "deep array": "[export]\nframes = " + "[" * _DEEP,
        "closed deep array": "[export]\nframes = " + "[" * _DEEP + "]" * _DEEP,
        "deep inline table": "a = " + "{a=" * _DEEP + "1" + "}" * _DEEP,
        "deep dotted key": ".".join("a" * _DEEP) + " = 1",
        "deep table": "[" + ".".join("a" * _DEEP) + "]",
        "large": "#" * 2**21,
        "many keys": "[export]\n" + "\n".join(f"k{i} = 1" for i in range(5000)),
        "not toml": "export: yes",
        "half a string": '[export]\nattn = "reg',
        "null": "[export]\nattn = \x00",
    }
    for name, text in texts.items():
        yield f"toml {name}", lambda folder, text=text: _options(folder, text)
    wrong = {
        "attn": ["3", '""', "[]", '"nope"', "{a=1}", "true"],
        "res": ["-1", '"axb"', "1e999", "[]", '"0x0"', "99999999999"],
        "frames": ["0", "-5", "1.5", '"x"', "nan", "10000000000"],
        "depth": ["0", "1000000000", '"1e9"', "true", "[1,[2]]", "inf"],
        "dim": ["0", "7", "100000000", '"d"'],
        "opset": ["0", "15", "99", '"new"'],
        "precision": ['"fp12"', "16", "[]"],
        "dynamic-batch": ['"1:2"', '"3:2:1"', '"0:0:0"', "7"],
        "bench-seconds": ["-1", "nan", '"long"'],
        "seed": ["1.5", "99999999999999999999999", '"s"'],
        "checkpoint": ['"/dev/zero"', '"\\u0000"', '"."', "5"],
        "video": ['["/dev/zero"]', '"http://x/y.mp4"', "[[1]]"],
        "config": ['"{"', '"/dev/zero"', "{a={a={}}}"],
    }
    for option, values in wrong.items():
        for value in values:
            text = f"[export]\n{option} = {value}\n"
            yield f"toml {option} = {value}", lambda folder, text=text: _options(folder, text)
    for name, nasty in NASTY.items():
        key = json.dumps(nasty)
        text = f"[export]\n{key} = 1\n"
        yield f"toml key {name}", lambda folder, text=text: _options(folder, text)
        value = f"[export]\nattn = {key}\n"
        yield f"toml value {name}", lambda folder, text=value: _options(folder, text)
    yield "toml latin-1", lambda folder: _options(folder, b"[export]\nattn = '\xe9'")
    yield "toml device", lambda _: ["export", "--config-file=/dev/zero"]
    yield "toml pipe", lambda folder: ["export", f"--config-file={_pipe(folder)}"]
    yield "toml folder", lambda folder: ["export", f"--config-file={folder}"]


def _grids() -> Iterator[tuple[str, Make]]:
    hundred = list(range(1, 101))
    texts = {
        "empty": "",
        "empty tables": "[base]\n[axes]\n",
        "comment": "# nothing\n",
        "10^8 cells": "[axes]\n"
        + "".join(f"{n} = {hundred}\n" for n in ("depth", "dim", "frames", "seed")),
        "10^5 cells": f"[axes]\nseed = {list(range(100_000))}\n",
        "1001 cells": f"[axes]\nseed = {list(range(1001))}\n",
        "deep": "[axes]\nseed = " + "[" * _DEEP + "]" * _DEEP,
        "value twice": "[axes]\nseed = [1, 1]\n",
        "no values": "[axes]\nseed = []\n",
        "no list": "[axes]\nseed = 1\n",
        "placeholder of itself": '[base]\ncheckpoint = "{checkpoint}"\n[axes]\nseed = [1]\n',
        "unknown table": "[axis]\nseed = [1]\n",
        "array of tables": "[[axes]]\nseed = [1]\n",
        "all wrong": '[axes]\nattn = ["a", "b"]\n',
    }
    for name, text in texts.items():
        yield f"grid {name}", lambda folder, text=text: ["sweep", _write(folder, "grid.toml", text)]
    for name, nasty in NASTY.items():
        text = f"[axes]\nattn = [{json.dumps(nasty)}]\n"
        yield (
            f"grid value {name}",
            lambda folder, text=text: ["sweep", _write(folder, "g.toml", text)],
        )
    yield "grid device", lambda _: ["sweep", "/dev/zero"]
    yield "grid pipe", lambda folder: ["sweep", _pipe(folder)]
    flags = [
        f"--{name}={','.join(map(str, range(1, 400)))}"
        for name in ("depth", "dim", "frames", "seed")
    ]
    yield "grid of flags, 10^10 cells", lambda _: ["sweep", *flags]


def _arguments() -> Iterator[tuple[str, Make]]:
    for name, nasty in NASTY.items():
        for command in ("inspect", "lint", "predict", "sweep", "advise", "verify"):
            more = ["clip.mp4"] if command == "predict" else []
            yield f"{command} {name}", lambda _, c=command, n=nasty, m=more: [c, n, *m]
        for option in ("attn", "checkpoint", "video", "config", "keep-fp32"):
            yield (
                f"--{option} {name}",
                lambda _, o=option, n=nasty: ["export", *_SMALL, f"--{o}={n}"],
            )
        yield f"command {name}", lambda _, n=nasty: [n]
        yield f"option {name}", lambda _, n=nasty: ["export", f"--{n}"]
    for text in ("--depth=1000000000", "--frames=100000000", "--dim=99999999", "--res=99999999"):
        yield text, lambda _, t=text: ["export", t]
    yield "long argument", lambda _: ["inspect", "a" * 100_000]


def _json() -> Iterator[tuple[str, Make]]:
    texts = {
        "deep list": "[" * 200_000,
        "deep object": '{"a":' * 100_000,
        "number": "1e999",
        "not utf-8": "\udcff",
        "list": "[]",
        "large": " " * 2**21,
    }
    for name, text in texts.items():
        yield (
            f"config {name}",
            lambda folder, t=text: ["export", f"--config={_write(folder, 'c.json', t)}"],
        )
        yield (
            f"recipe {name}",
            lambda folder, t=text: ["export", f"--recipe={_write(folder, 'r.json', t)}"],
        )
        yield f"manifest {name}", lambda folder, t=text: _manifest(folder, t)


def _manifest(folder: Path, text: str) -> list[str]:
    (folder / "made").mkdir()
    _write(folder / "made", "manifest.json", text)
    return ["verify", str(folder / "made")]


def _options(folder: Path, text: str | bytes) -> list[str]:
    _write(folder, "tsformer.toml", text)
    return ["export", *_SMALL]


def _write(folder: Path, name: str, text: str | bytes) -> str:
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    (folder / name).write_bytes(content)
    return str(folder / name)


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")

"""Write the parts of the guide that the code tells: its commands, lint rules and rewrites.

python scripts/docs.py    write the marked blocks of docs/*.md; `make docs` then builds the site
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable
from inspect import getdoc
from pathlib import Path
from typing import Any

from pages import ROOT, table, write

from exporter.cli import app
from exporter.lint.reference import describe_rules
from exporter.rewrite import REWRITES
from exporter.rewrite.rule import Rewrite
from exporter.spec import PRECISIONS

SCRIPT = "scripts/docs.py"
FUSION = Path(__file__).parent / "results" / "fusion.json"


def main() -> None:
    """Write every block that the code tells."""
    write(blocks(), SCRIPT)


def blocks() -> dict[str, str]:
    """Every block that this script writes, by its name."""
    return {
        "commands": describe_commands(),
        "rules": describe_rules(),
        "rewrites": describe_rewrites(),
        "corpus": describe_corpus(),
        "fusion": describe_fusion(json.loads(FUSION.read_text(encoding="utf-8"))),
    }


# --- commands


def describe_commands() -> str:
    """Every command with its arguments and options, as Markdown."""
    return "\n".join(_describe(name) for name in app if not name.startswith("-"))


def _describe(name: str) -> str:
    command = app[name]
    arguments = [
        a
        for a in command.assemble_argument_collection(parse_docstring=True)
        if a.parameter.help and a.show
    ]
    positional = [a for a in arguments if not a.names[0].startswith("-")]
    options = [a for a in arguments if a.names[0].startswith("-")]
    shown = " ".join(a.names[0] if a.required else f"[{a.names[0]}]" for a in positional)
    usage = " ".join(filter(None, ("tsformer", name, shown, "[OPTIONS]")))
    description, examples = _read_docstring(command.default_command)
    parts = [f"## {name}\n", f"```text\n{usage}\n```\n", f"{description}\n"]
    if positional:
        parts.append(table(["argument", "meaning"], map(_row, positional)))
    parts.append(table(["option", "meaning"], map(_row, options)))
    if examples:
        parts.append(f"Examples:\n\n```sh\n{examples}\n```\n")
    return "\n".join(parts)


def _read_docstring(function: object) -> tuple[str, str]:
    """What a command's docstring says before its sections, and its examples, one a line."""
    text = getdoc(function) or ""
    description = re.split(r"^(?:Examples|Args|Raises|Returns):", text, flags=re.MULTILINE)[0]
    found = re.search(r"^Examples:\n(.*?)(?=^\w|\Z)", text, re.DOTALL | re.MULTILINE)
    lines = found[1].split("\n") if found else []
    paragraphs = (textwrap.fill(each, 100) for each in description.strip().split("\n\n"))
    return "\n\n".join(paragraphs), "\n".join(line.strip() for line in lines if line.strip())


def _row(argument: Any) -> list[str]:  # noqa: ANN401  # cyclopts does not export its class
    """Names and meaning of one argument, with its default where the help shows that."""
    names = ", ".join(f"`{name}`" for name in argument.names)
    meaning, default = argument.parameter.help, argument.field_info.default
    if argument.show_default and default not in (None, False, ()):
        meaning += f" Default: `{default}`."
    return [names.replace("--[KEYWORD]", "--OPTION"), meaning]


# --- lint's corpus


def describe_corpus() -> str:
    """How often lint agreed with the runtimes, from the committed result, as Markdown."""
    found = json.loads((ROOT / "scripts" / "lint_corpus.json").read_text(encoding="utf-8"))
    models, versions = found["models"], found["versions"]
    head = ["runtime", "models", "refused", "false errors", "misses", "by rules alone"]
    rows = [
        [
            f"{name} {versions[package]}",
            f"{sum(models.values()):,}",
            str(found[runtime]["refused"]),
            str(len(found[runtime]["false"])),
            str(len(found[runtime]["missed"])),
            f"{found[runtime]['rules alone']['found']} of the refused found, "
            f"{found[runtime]['rules alone']['false']} false errors",
        ]
        for runtime, name, package in (
            ("onnxruntime", "ONNX Runtime, CPU,", "onnxruntime"),
            ("tensorrt", "TensorRT-RTX, parser,", "tensorrt_rtx_cu13"),
        )
    ]
    said = (
        f"Measured by `scripts/lint_corpus.py` on {models['stored']} stored and "
        f"{models['generated']:,} generated models of onnx {versions['onnx']}, most of one "
        f"node, and {models['other']} models of other packages:"
    )
    return f"{said}\n\n{table(head, rows)}"


# --- rewrites


def describe_rewrites() -> str:
    """Every rewrite in the order they are tried, as Markdown."""
    rows = [
        [f"`{name}`", _first_line(rule), _join(sorted(rule.targets)), _precisions(rule)]
        for name, rule in REWRITES.items()
    ]
    return table(["rewrite", "what it does", "runtimes", "precisions"], rows)


def describe_fusion(rows: list[dict[str, Any]]) -> str:
    """What TensorRT-RTX fuses, with and without the rewrites, as Markdown (pure)."""
    cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    order = ("model", "depth", "scheme", "attn", "precision", "res")
    for row in rows:
        cells.setdefault(tuple(row[name] for name in order), {})[row["set"]] = row
    lines = [
        [
            *(model, str(depth), scheme, f"`{attn}`", precision, str(res)),
            str(sets["none"]["kernels"]),
            str(sets["chosen"]["kernels"]),
            f"{sets['chosen']['kernels'] / sets['none']['kernels']:.2f}",
            *(_fused(sets[name]) for name in ("none", "chosen")),
        ]
        for (model, depth, scheme, attn, precision, res), sets in sorted(
            cells.items(), key=lambda cell: (cell[0][0] != "small", -cell[0][1], *cell[0][2:])
        )
        if {"none", "chosen"} <= sets.keys()
    ]
    plain, ours = "kernels, `--rewrite none`", "kernels"
    headings = ["model", "depth", "scheme", "`--attn`", "precision", "pixels", plain, ours, "ratio"]
    headings += ["fused, `--rewrite none`", "fused"]
    versions = ", ".join(sorted({row["version"] for row in rows}))
    dates = sorted({row["date"] for row in rows})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{table(headings, lines)}\nBuilt without a GPU, by {versions}, {when}.\n"


def _fused(row: dict[str, Any]) -> str:
    """The attentions that are one kernel; a mechanism without softmax attention has none."""
    return f"{row['fused_attentions']} of {row['attentions']}" if row["attentions"] else "-"


def _precisions(rule: Rewrite[Any]) -> str:
    """The precisions that a rewrite suits, with the token width up to which it suits int8."""
    suited = [name for name in PRECISIONS if name in rule.precisions]
    if rule.int8_below_dim:
        suited[suited.index("int8")] += f" (below width {rule.int8_below_dim})"
    return "all" if suited == [*PRECISIONS] else _join(suited)


def _join(runtimes: Iterable[str]) -> str:
    return ", ".join(runtimes)


def _first_line(function: object) -> str:
    return (getdoc(function) or "").partition("\n")[0].removesuffix(".")


if __name__ == "__main__":
    main()

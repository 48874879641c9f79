"""The results of `bench_gpu.py` -> one page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("Cell", "Batch", "Runtime", "Timed", "p50 ms", "p99 ms", "Clips/s", "Error", "Verdict")


def page(content: Mapping[str, Any]) -> str:
    """Write the page."""
    facts = content["environment"]
    cuda = facts.get("cuda") or {}
    device = facts["gpu"] or f"{facts['cpu']} (no GPU: a dry run)"
    lines = [
        "# Runtimes on a GPU",
        "",
        f"{device}, driver {cuda.get('driver')}, {facts['date']}, tsformer {facts['tsformer']}, "
        f"commit {content['commit']}. The run took {content['seconds']:.0f} s.",
        "",
        "`host to host` has the copies of clips and logits, `device only` has not. The rows "
        "`published`, `eager` and `torch.compile` are PyTorch on the same device.",
        "",
        *_table(HEAD, [_row(row) for row in content["rows"]]),
        "",
        "## Engines",
        "",
        *_table(("Cell", "Built in s"), _builds(content["steps"])),
        "",
        "## Not measured",
        "",
        *_table(("Cell", "Step", "Why"), _missing(content)),
    ]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["Nothing."]
    made = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in made]


def _row(row: Mapping[str, Any]) -> list[str]:
    error = row.get("rel_l2")
    return [
        row["cell"],
        str(row["batch"]),
        f"{row['runtime']} ({row['device']})",
        row.get("timing", "host to host"),
        f"{row['p50_ms']:.3f}",
        f"{row['p99_ms']:.3f}",
        f"{row['clips_per_s']:.0f}",
        "-" if error is None else f"{error:.1e}",
        row.get("verdict") or "-",
    ]


def _builds(steps: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    done = [step for step in steps if (step["step"], step["status"]) == ("build", "done")]
    return [[step["cell"], f"{step['seconds']:.1f}"] for step in done]


def _missing(content: Mapping[str, Any]) -> list[list[str]]:
    steps = [
        [step["cell"], step["step"], f"{step['status']}: {step['reason']}"]
        for step in content["steps"]
        if step["status"] != "done"
    ]
    runtimes = [
        [row["cell"], f"{row['runtime']} ({row['device']}), batch {row['batch']}", row["reason"]]
        for row in content["not_timed"]
    ]
    return steps + runtimes

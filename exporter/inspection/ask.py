"""Let the runtimes that are installed say whether they take a graph, and judge by their answer.

The rules of `lint` know the common reasons; a runtime knows all of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from exporter.files import child
from exporter.graph.file import read_graph
from exporter.lint import Finding, lint
from exporter.lint.rule import RUNTIMES, Severity

_SECONDS = 15
_MOST_NOISE = 2**16  # bytes that are read of what a loader wrote to stderr
_BEYOND_LOADING = {"baked-batch"}  # its error is about another batch than the file's


@dataclass(frozen=True)
class Answer:
    """What a runtime said: its name and version, and why it refuses the graph, or "".

    `refused` is None if it said nothing in time.
    """

    version: str
    refused: str | None


def lint_file(path: Path, *, rules_only: bool = False) -> tuple[Finding, ...]:
    """Find what is wrong with a graph: by the rules, and by what the installed runtimes say."""
    findings = lint(read_graph(path))
    return findings if rules_only else judge(findings, ask(path))


def ask(path: Path) -> dict[str, Answer]:
    """Load a graph in every installed runtime, each in a process of its own.

    Returns:
        The answers by runtime. One that is not installed, or does not start here, as TensorRT
        without a GPU, is absent. One whose process fails refuses the graph.
    """
    found = {}
    for runtime in RUNTIMES:
        command, environment = child.command("exporter.inspection.loaders")
        with tempfile.TemporaryFile() as noise:
            try:
                done = subprocess.run(
                    [*command, runtime, str(path)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=noise,
                    env=environment,
                    timeout=_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                found[runtime] = Answer(runtime, None)
                continue
            said = _last_line(noise)
        if done.returncode < 0:
            found[runtime] = Answer(runtime, "its process died while it loaded the graph")
        elif done.returncode > 0:
            how = f"failed: {said}" if said else child.describe_end(done.returncode)
            found[runtime] = Answer(runtime, f"its process {how}")
        elif done.stdout:
            found[runtime] = Answer(**json.loads(done.stdout))
    return found


def _last_line(noise: IO[bytes]) -> str:
    noise.seek(max(0, noise.seek(0, os.SEEK_END) - _MOST_NOISE))
    lines = noise.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def judge(findings: Sequence[Finding], answers: Mapping[str, Answer]) -> tuple[Finding, ...]:
    """Agree with what the runtimes said.

    An error of a rule does not count for a runtime that takes the graph. A refusal that no rule
    explains is an error of the rule `refused`. A runtime that said nothing in time is a warning of
    the rule `no-answer`.
    """
    takes = {runtime for runtime, answer in answers.items() if answer.refused == ""}
    kept = [finding for finding in (_without(each, takes) for each in findings) if finding]
    errors = (each for each in kept if each.severity == "error")
    explaining = (each for each in errors if each.rule not in _BEYOND_LOADING)
    explained = {name for each in explaining for name in each.runtimes}
    refusals = [
        _of_the_graph(
            "refused",
            "error",
            runtime,
            f"is refused by {answer.version}: {answer.refused[:300]}",
            "change what it names, or run the graph elsewhere",
        )
        for runtime, answer in answers.items()
        if answer.refused and runtime not in explained
    ]
    silent = [
        _of_the_graph(
            "no-answer",
            "warning",
            runtime,
            f"did not load in {answer.version} within {_SECONDS} s: the rules alone judge it",
            "load it there once without a limit of time",
        )
        for runtime, answer in answers.items()
        if answer.refused is None
    ]
    return (*refusals, *kept, *silent)


def _of_the_graph(rule: str, severity: Severity, runtime: str, what: str, remedy: str) -> Finding:
    return Finding(rule, severity, (runtime,), "the graph", what, None, (), remedy)


def _without(finding: Finding, takes: set[str]) -> Finding | None:
    if finding.severity != "error" or finding.rule in _BEYOND_LOADING:
        return finding
    left = tuple(runtime for runtime in finding.runtimes if runtime not in takes)
    return replace(finding, runtimes=left) if left else None

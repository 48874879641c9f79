"""Plant faults in the graphs of small exports, and see which of them the judge kills.

    python scripts/faults.py                          all models, and a table
    python scripts/faults.py --only regular-bf16      some models
    python scripts/faults.py --every 1                every fault in every model (default: a third)
    python scripts/faults.py --write                  also scripts/results/faults.json

A fault changes a graph of a proven export. The judge is that of `verify --checkpoint`: it compares
the weights with those of the model by their values, and does not look at any hash. The effect of a
fault is its largest relative change of the outputs on 80 real and natural clips. A fault with an
effect above twice the floor that passes is a false pass. The exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import fault_kinds
import torch
from fault_judge import Export, Outcome
from fault_models import MODELS

from exporter.machine import environment

RESULTS = Path(__file__).parent / "results" / "faults.json"
# Some kinds have a place in few models: every fault of these kinds is planted there. The parts of
# names of models, and of kinds.
ALL_OF = {"free": "batch", "wide-int8": "int8:", "tensorrt-int8": "int8:"}


def plant_all(name: str, every: int) -> Iterator[Outcome]:
    """Plant the faults in a model; each model gets another share of them, alone or with others."""
    faults = list(fault_kinds.kinds())
    share = faults[list(MODELS).index(name) % every :: every]
    own = [kind for part, kind in ALL_OF.items() if part in name]
    share += [f for f in faults if any(kind in f[0] for kind in own) and f not in share]
    with tempfile.TemporaryDirectory() as folder:
        made = Export(name, Path(folder))
        for kind, place, change in share:
            if outcome := made.plant(kind, place, change, Path(folder)):
                print(
                    f"{name:<24} {kind:<24} {place:<18} {outcome.state:<10} {outcome.by:<9} "
                    f"{'' if outcome.effect is None else f'{outcome.effect:.1e}'}",
                    flush=True,
                )
                yield outcome


def keep(model: str, outcomes: Sequence[Outcome]) -> None:
    """Write the outcomes of one model into the file of results, in place of its earlier ones."""
    facts = environment.describe()
    about = {key: facts[key] for key in ("date", "cpu", "packages") if key in facts}
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["faults"] if RESULTS.exists() else []
    rows = [row for row in kept if row["model"] != model]
    rows += [
        asdict(one) | {"state": one.state, "effect": one.effect and min(one.effect, 1e9)}
        for one in outcomes
    ]
    lines = ",\n".join(map(json.dumps, rows))
    text = f'{{"environment": {json.dumps(about)}, "faults": [\n{lines}\n]}}\n'
    RESULTS.write_text(text, encoding="utf-8")


def table(outcomes: Sequence[Outcome]) -> str:
    """Count killed, harmless and false passes by precision, and name the false passes."""
    lines = [f"{'':<10} {'planted':>8} {'killed':>8} {'harmless':>9} {'false passes':>13}"]
    precisions = sorted({outcome.model.rpartition("-")[2] for outcome in outcomes})
    for group in [*precisions, ""]:
        found = [o for o in outcomes if o.model.endswith(group)]
        counts = Counter(outcome.state for outcome in found)
        numbers = (counts[state] for state in ("killed", "harmless", "false pass"))
        lines.append("{:<10} {:>8} {:>8} {:>9} {:>13}".format(group or "all", len(found), *numbers))
    kinds, models = ({getattr(o, key) for o in outcomes} for key in ("kind", "model"))
    lines.append(f"{len(kinds)} kinds in {len(models)} models")
    if missing := sorted({kind for kind, _, _ in fault_kinds.kinds()} - kinds):
        lines.append(f"planted nowhere: {', '.join(missing)}")
    lines += [
        f"passed: {o.model} {o.kind} {o.place}: {o.effect:.1e}, floor {o.floor:.1e}"
        for o in outcomes
        if o.state == "false pass"
    ]
    return "\n".join(lines)


def main() -> int:
    """Plant, print the table, and return 1 if a fault with an effect passes."""
    parser = argparse.ArgumentParser(description="Plant faults in small exports.")
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment.available_flavours = cache(environment.available_flavours)  # a process each
    outcomes: list[Outcome] = []
    for name in arguments.only:
        found = list(plant_all(name, arguments.every))
        outcomes += found
        if arguments.write:
            keep(name, found)
    print(table(outcomes))
    return int(any(outcome.state == "false pass" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

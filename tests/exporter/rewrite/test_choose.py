"""The rewrites for TensorRT follow the measured table of `scripts/gpu/fusion.py`."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from exporter.load import load_model
from exporter.rewrite import REWRITES
from exporter.rewrite.choose import rewrites_to_skip
from exporter.spec import ExportSpec

ROWS = json.loads(
    (Path(__file__).parents[3] / "scripts" / "results" / "fusion.json").read_text(encoding="utf-8")
)
CELLS = defaultdict(dict)
for _row in ROWS:
    _key = ("model", "depth", "scheme", "attn", "precision", "res")
    CELLS[tuple(_row[name] for name in _key)][_row["set"]] = _row
MEASURED = {key: sets for key, sets in CELLS.items() if {"none", "chosen"} <= sets.keys()}
# `class_token` leaves out work of the last block. That is worth one kernel more.
WORTH_KERNELS = 1


@pytest.fixture(scope="module")
def model():
    return load_model(ExportSpec(attn="regular", res=(32, 32), depth=1, dim=16, dim_head=8))


def test_the_table_holds_what_export_takes(model):
    for row in ROWS:
        if row["set"] == "chosen":
            skipped = rewrites_to_skip(ExportSpec(precision=row["precision"]), model, "tensorrt")
            assert row["rules"] == [rule for rule in REWRITES if rule not in skipped]


@pytest.mark.parametrize("cell", MEASURED, ids=str)
def test_no_measured_set_fuses_more_or_has_fewer_kernels(cell):
    sets = MEASURED[cell]
    ours = sets["chosen"]
    assert ours["fused_attentions"] == max(row["fused_attentions"] for row in sets.values())
    assert ours["kernels"] <= min(row["kernels"] for row in sets.values()) + WORTH_KERNELS
    assert ours["kernels"] <= sets["none"]["kernels"]


@pytest.mark.parametrize("cell", [cell for cell in MEASURED if cell[1] == 12], ids=str)
def test_deep_models_have_the_kernels_that_the_guide_promises(cell):
    *_, scheme, attn, precision, _ = cell
    ours, plain = MEASURED[cell]["chosen"], MEASURED[cell]["none"]
    limit = 0.95 if attn == "regular" else 0.9
    assert ours["kernels"] <= limit * plain["kernels"]
    if attn == "regular" and precision != "fp32":
        steps = {"divided": 2, "joint": 1, "space": 1, "axial": 3, "local-global": 3}[scheme]
        assert ours["fused_attentions"] == ours["attentions"] == 12 * steps


def test_int8_has_few_more_kernels_than_fp16_and_fuses_as_much():
    for cell, sets in CELLS.items():
        half = CELLS.get((*cell[:4], "fp16", cell[5]), {})
        if cell[4] == "int8" and "chosen" in sets and "chosen" in half:
            assert sets["chosen"]["kernels"] <= 1.3 * half["chosen"]["kernels"]
            assert sets["chosen"]["fused_attentions"] == half["chosen"]["fused_attentions"]

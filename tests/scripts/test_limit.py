"""Test scripts/peers/limit.py: the shares, and a row of a real graph and its products."""

import json

import numpy as np
import pytest

TINY = ["--frames", "2", "--dim", "64", "--depth", "1", "--resolutions", "32"]
TINY += ["--rounds", "2", "--seconds", "0.01"]
pytestmark = pytest.mark.usefixtures("threads_kept")


@pytest.fixture(scope="module")
def limit(script):
    return script("limit")


def test_the_share_is_the_median_over_rounds(limit):
    (pair, _) = limit.list_sides(limit.parse(["--mechanisms", "performer"]))
    part = {"flops": 3e9, "runs": [2.0, 4.0, 8.0], "products": [1.0, 1.0, 8.0]}
    row = limit.summarise(pair, [part, part])
    assert row["share"] == 0.5  # the share of the medians is 0.25
    assert (row["p50_ms"], row["products_ms"]) == (4000, 1000)
    assert row["products_gflop_per_s"] == pytest.approx(3)
    assert (row["mechanism"], row["side"]) == ("performer", "ours/onnxruntime")


def test_processes_that_differ_widen_the_interval(limit):
    (pair, _) = limit.list_sides(limit.parse([]))
    parts = [{"flops": 1, "runs": [1.0] * 5, "products": [share] * 5} for share in (0.4, 0.6)]
    row = limit.summarise(pair, parts)
    assert (row["low"], row["high"]) == pytest.approx((0.4, 0.6))


@pytest.mark.slow
def test_a_run_writes_the_share_of_the_products(limit, tmp_path, capsys):
    out = tmp_path / "new" / "limit.json"
    flags = [*TINY, "--sides", "ours/onnxruntime", "--processes", "2", "--threads", "1"]
    assert limit.main([*flags, "--out", str(out)]) == 0

    content = json.loads(out.read_text())
    assert content["command"] == ["limit.py", *flags]  # it contains no folder of this machine
    (row,) = content["rows"]
    assert 0 < row["low"] <= row["share"] <= row["high"]
    assert row["threads"] == 1
    assert row["p50_ms"] > 0
    assert row["products_ms"] > 0
    assert f"share {row['share']:.2f}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_side_that_cannot_be_measured_is_reported_and_left_out(limit, tmp_path, capfd):
    out = tmp_path / "limit.json"
    assert limit.main([*TINY, "--sides", "ours/nothing", "--out", str(out)]) == 1
    assert not out.exists()
    assert "there is no 'ours/nothing'" in capfd.readouterr().err


def test_a_product_in_openvino_is_correct(limit):
    pytest.importorskip("openvino")
    shape = limit.MatmulShape(2, 8, 16, 4)
    (made,) = limit.in_openvino(shape, 1)().values()
    np.testing.assert_array_equal(made, np.full((2, 8, 4), 16.0))

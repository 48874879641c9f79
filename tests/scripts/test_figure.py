"""Test scripts/peers/figure.py: fits, drawing and text, from synthetic and small real times."""

import json
from dataclasses import asdict

import numpy as np
import pytest

pytest.importorskip("matplotlib")
ENVIRONMENT = {"cpu": "a processor", "date": "2026-11-21", "commit": "abc"}
pytestmark = pytest.mark.usefixtures("threads_kept")


@pytest.fixture(scope="module")
def figure(script):
    return script("figure")


def made_up_rows(figure, exponent=2.0):
    """Make rows whose time grows with tokens to the power `exponent`; one row failed."""
    rows = []
    for pair in figure.list_pairs(figure.parse(["--batch", "2", "--resolutions", "64", "128"])):
        ours = (pair.resolution / 16) ** (2 * exponent) / 100
        figures = figure.bench_peers.Figures(
            "timed", "", 2.0, 1.9, 2.1, ours, 2 * ours, ours_rel_l2=1e-7, peer_rel_l2=1e-7
        )
        rows.append(asdict(pair) | asdict(figures))
    lost = rows[0] | asdict(figure.bench_peers.Figures("failed", "signal 9")) | {"resolution": 256}
    return [*rows, lost]


def content_of(figure):
    rows = made_up_rows(figure)
    content = {"environment": ENVIRONMENT, "rows": rows, "attention_exponents": []}
    return content | {"model_exponents": [], "alt": figure.alternative(content)}


def test_the_exponent_of_a_power_law_is_found(figure):
    tokens = np.array([10.0, 20.0, 40.0])
    assert figure.fit_exponent(tokens, 3e-3 * tokens**1.7) == pytest.approx(1.7)


def test_exponents_of_the_whole_model_use_the_larger_resolutions(figure):
    found = figure.model_exponents(made_up_rows(figure), 64)
    assert {(row["mechanism"], row["side"]) for row in found} == {
        (mechanism, side) for mechanism in figure.STYLES for side in figure.NAMES.values()
    }
    assert all(row["exponent"] == pytest.approx(2.0) for row in found)
    assert figure.model_exponents(made_up_rows(figure), 128) == []  # one point has no slope


def test_attention_is_timed_at_every_size(figure):
    found = figure.measure_exponents(["regular", "fastformer"], [8, 16], 3)
    assert [row["mechanism"] for row in found] == ["regular", "fastformer"]
    for row in found:
        assert row["low"] <= row["exponent"] <= row["high"]
        assert len(row["p50_ms"]) == 2


@pytest.mark.slow
def test_the_same_results_give_the_same_figure(figure, tmp_path, capsys):
    source = tmp_path / "figure.json"
    source.write_text(json.dumps(content_of(figure)))
    drawn = []
    for name in ("one", "two"):
        assert figure.main(["--from", str(source), "--out", str(tmp_path / name)]) == 0
        drawn.append((tmp_path / f"{name}.svg").read_text())
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert drawn[0] == drawn[1]
    assert "fill: #ffffff" in drawn[0]  # an opaque background, so that it is readable on dark pages
    assert "Line chart" in capsys.readouterr().out


def test_the_alternative_text_contains_the_figures(figure):
    said = content_of(figure)["alt"]
    assert "batch 2" in said
    for mechanism in figure.STYLES:
        assert f"{mechanism} 0.0819 s published and 0.041 s ours at 128 px, 2.00 times" in said


def test_the_title_names_batch_and_machine(figure):
    title = figure.title(content_of(figure))
    assert "2 clips of 5 frames" in title
    assert "a processor" in title


@pytest.mark.slow
def test_a_run_measures_and_draws(figure, tmp_path, monkeypatch, capsys):
    rows = made_up_rows(figure)
    monkeypatch.setattr(figure.bench_peers, "measure_all", lambda *_: iter(rows))
    out = tmp_path / "new" / "figure"
    flags = ["--batch", "2", "--rounds", "2", "--tokens", "8", "16", "--out", str(out)]
    assert figure.main(flags) == 0
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["rows"] == rows
    assert "commit" in content["environment"]
    assert len(content["attention_exponents"]) == 3
    assert out.with_suffix(".svg").exists()
    said = capsys.readouterr().out
    assert "signal 9" in said
    assert "attention alone: tokens^" in said


def test_without_a_timed_row_nothing_is_drawn(figure, tmp_path, capsys):
    source = tmp_path / "figure.json"
    content = content_of(figure)
    source.write_text(json.dumps(content | {"rows": content["rows"][-1:]}))
    assert figure.main(["--from", str(source), "--out", str(tmp_path / "x")]) == 1
    assert "nothing to draw" in capsys.readouterr().err

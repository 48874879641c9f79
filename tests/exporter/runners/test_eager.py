"""Test the float64 truth: it computes the same clip once, and gives what eager PyTorch gives."""

import numpy as np
import pytest
import torch

from exporter.errors import RuntimeFailure
from exporter.runners import eager as eager_file
from exporter.runners.eager import EagerRunner, TruthRunner
from model import FastTimeSformer

SHAPES = {"video": (None, 2, 3, 16, 16)}
CLIPS = np.random.default_rng(0).standard_normal((2, 2, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return FastTimeSformer(2, 3, 16, 16, num_classes=2, dim=32, depth=1, dim_head=16).eval()


def test_the_truth_of_a_clip_is_computed_once(small, monkeypatch):
    made = []

    class Counting(EagerRunner):
        def run(self, inputs):
            made.append(inputs["video"].copy())
            return super().run(inputs)

    monkeypatch.setattr(eager_file, "EagerRunner", Counting)
    truth = TruthRunner(small, SHAPES)
    with truth:
        first = truth.run({"video": CLIPS[:1]})["logits"]
    with truth:
        again = truth.run({"video": CLIPS[:1].copy()})["logits"]
        other = truth.run({"video": CLIPS[1:]})["logits"]
    np.testing.assert_array_equal(np.concatenate(made), CLIPS)
    np.testing.assert_array_equal(first, again)
    with EagerRunner(small, SHAPES, "fp64") as runner:
        np.testing.assert_array_equal(other, runner.run({"video": CLIPS[1:]})["logits"])
    assert first.dtype == np.float64


def test_the_truth_refuses_wrong_shapes(small):
    with TruthRunner(small, SHAPES) as truth, pytest.raises(RuntimeFailure, match="wrong shape"):
        truth.run({"video": CLIPS[:, :, :2]})

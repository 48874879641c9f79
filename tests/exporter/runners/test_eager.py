"""Test eager PyTorch: the truth of a clip is computed once, and several clips at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import _global_forward_pre_hooks

from exporter.errors import RuntimeFailure
from exporter.precision import Int8, observe_ranges
from exporter.runners.eager import EagerRunner, TruthRunner
from model import FastTimeSformer

SHAPES = {"video": (None, 2, 3, 16, 16)}
CLIPS = np.random.default_rng(0).standard_normal((2, 2, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return FastTimeSformer(2, 3, 16, 16, num_classes=2, dim=32, depth=1, dim_head=16).eval()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Meeting(FastTimeSformer):
    """A model whose forward ends only when two threads are in it."""

    both = threading.Barrier(2, timeout=60)

    def forward(self, video):
        self.both.wait()
        return super().forward(video)


def test_the_truth_of_a_clip_is_computed_once(small, monkeypatch):
    made = []
    compute = EagerRunner.run

    def counting(runner, inputs):
        made.append(inputs["video"].copy())
        return compute(runner, inputs)

    monkeypatch.setattr(EagerRunner, "run", counting)
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


def test_two_batches_run_at_once_where_there_are_threads(two_threads):
    model = Meeting(2, 3, 16, 16, num_classes=2, dim=32, depth=1, dim_head=16).eval()
    with EagerRunner(model, SHAPES, "fp64") as runner:
        found = list(runner.run_each({"video": CLIPS[i : i + 1]} for i in (0, 1, 1, 0)))
    assert len(found) == 4
    np.testing.assert_allclose(found[3]["logits"], found[0]["logits"], rtol=1e-12)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "int8"])
def test_batches_at_once_give_what_they_give_alone_in_their_order(small, two_threads, precision):
    ranges = observe_ranges(small, {"video": CLIPS})
    int8 = Int8(ranges) if precision == "int8" else None
    with EagerRunner(small, SHAPES, precision, int8=int8) as runner:
        alone = [runner.run({"video": CLIPS[i % 2][None]})["logits"] for i in range(5)]
        together = runner.run_each({"video": CLIPS[i % 2][None]} for i in range(5))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(
                other["logits"], one, rtol=1e-5 if precision != "fp64" else 1e-12
            )


def test_runs_at_once_leave_the_number_of_threads(small, two_threads):
    with TruthRunner(small, SHAPES) as truth:
        list(truth.run_each({"video": clip[None]} for clip in CLIPS))
    with ThreadPoolExecutor(1) as pool:
        assert [torch.get_num_threads(), pool.submit(torch.get_num_threads).result()] == [2, 2]


def test_an_interrupt_ends_the_runs_that_have_begun(two_threads):
    inside, forwards = threading.Event(), []

    class Slow(FastTimeSformer):
        def forward(self, video):
            inside.set()
            for _ in range(3000):
                self.to_out.norm(torch.zeros(1, 32))
                time.sleep(0.01)
            forwards.append(video)
            return super().forward(video)

    model = Slow(2, 3, 16, 16, num_classes=2, dim=32, depth=1, dim_head=16).eval()

    def batches():
        yield {"video": CLIPS[:1]}
        yield {"video": CLIPS[1:]}
        assert inside.wait(60)
        raise KeyboardInterrupt

    with EagerRunner(model, SHAPES) as runner, pytest.raises(KeyboardInterrupt):
        list(runner.run_each(batches()))
    assert not forwards


def test_the_end_of_some_runs_ends_nothing_in_other_threads(small, two_threads):
    other, clips = nn.Linear(2, 2), iter(CLIPS)

    def batches():
        yield {"video": next(clips)[None]}
        yield {"video": next(clips)[None]}
        hooks = list(_global_forward_pre_hooks.values())
        try:
            yield {"video": CLIPS[:1]}
        finally:
            for hook in hooks:  # as another thread calls them, after the end
                hook(other, ())

    with EagerRunner(small, SHAPES) as runner:
        runs = runner.run_each(batches())
        next(runs)
        runs.close()
        assert len(list(runner.run_each({"video": clip[None]} for clip in CLIPS))) == 2
    assert not _global_forward_pre_hooks


def test_a_model_that_may_share_state_runs_alone(two_threads):
    class Alone(FastTimeSformer):
        reentrant = False

        def forward(self, video):
            assert threading.current_thread() is threading.main_thread()
            return super().forward(video)

    model = Alone(2, 3, 16, 16, num_classes=2, dim=32, depth=1, dim_head=16).eval()
    with EagerRunner(model, SHAPES) as runner:
        assert len(list(runner.run_each({"video": clip[None]} for clip in CLIPS))) == 2


def test_the_truth_refuses_wrong_shapes(small):
    with TruthRunner(small, SHAPES) as truth, pytest.raises(RuntimeFailure, match="wrong shape"):
        truth.run({"video": CLIPS[:, :, :2]})

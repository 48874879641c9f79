"""Test the public interface of FastTimeSformer: the published calls, training and errors."""

import copy
import inspect
import pickle

import pytest
import torch

from model import ConfigError, FastTimeSformer
from model.attention import MECHANISMS
from model.block import DropPath
from model.config import UPSTREAM_SCHEMES

SMALL = {"dim": 32, "patch_size": 4, "depth": 2, "dim_head": 16}
NAMES = ("frames", "channels", "height", "width", "num_classes")
SIZES = (3, 3, 8, 12, 4)
GRID = [(name, scheme) for name in MECHANISMS for scheme in UPSTREAM_SCHEMES]


def make(seed: int = 0, **options: object) -> FastTimeSformer:
    torch.manual_seed(seed)
    return FastTimeSformer(*SIZES, **{**SMALL, **options})


def clips(batch: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *SIZES[:4], generator=generator)


def rel_l2(got: torch.Tensor, truth: torch.Tensor) -> float:
    return ((got.double() - truth.double()).norm() / truth.double().norm()).item()


class TestPublishedUse:
    @pytest.mark.slow
    def test_readme_example_gives_finite_logits(self):
        b, f, c, h, w = 1, 5, 3, 512, 512
        x = torch.randn(b, f, c, h, w)
        model = FastTimeSformer(f, c, h, w, num_classes = 2, attn_mechanism = 'fastformer')  # fmt: skip  # noqa: E501

        with torch.no_grad():
            out = model(x)

        assert out.shape == (b, 2)
        assert torch.isfinite(out).all()

    def test_readme_example_of_the_layers_keeps_the_shape(self):
        from model import FastAttention, PerformerAttention, RegularAttention

        b, n, d = 16, 32, 64
        x = torch.randn(b, n, d)
        fast_attn = FastAttention(dim=d)
        reg_attn = RegularAttention(dim=d)
        performer_attn = PerformerAttention(dim=d)

        attended = [fast_attn(x), reg_attn(x), performer_attn(x)]

        assert [out.shape for out in attended] == [(b, n, d)] * 3
        assert all(torch.isfinite(out).all() for out in attended)

    def test_constructor_takes_the_published_arguments_in_the_published_order(self):
        published = {
            "dim": 128, "patch_size": 16, "depth": 12, "heads": None, "dim_head": 64,
            "drop_path": 0.1, "attn_dropout": 0.0, "proj_dropout": 0.0, "rotary_emb": True,
            "attn_mechanism": "fastformer", "attn_type": "divided", "frames_first": True,
        }  # fmt: skip
        parameters = inspect.signature(FastTimeSformer).parameters
        positional = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
        assert positional == [*NAMES, *published]
        assert {name: parameters[name].default for name in published} == published

    def test_constructor_takes_positional_arguments(self):
        arguments = (*SIZES, 32, 4, 2, 2, 16, 0.1, 0.0, 0.0, True, "regular", "joint", True)
        model = FastTimeSformer(*arguments)
        config = model.config
        assert (config.depth, config.heads, config.dim_head) == (2, 2, 16)
        assert (config.attn_mechanism, config.attn_type) == ("regular", "joint")
        assert model(clips()).shape == (2, 4)

    @pytest.mark.parametrize(("mechanism", "scheme"), GRID)
    def test_frames_second_gives_the_same_logits(self, mechanism, scheme):
        first = make(attn_mechanism=mechanism, attn_type=scheme).eval()
        second = make(attn_mechanism=mechanism, attn_type=scheme, frames_first=False).eval()
        assert torch.equal(second(clips().transpose(1, 2)), first(clips()))

    @pytest.mark.parametrize(("mechanism", "scheme"), GRID)
    @pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "learned"])
    @pytest.mark.parametrize("frames", [1, 3])
    def test_every_mechanism_with_every_scheme_gives_finite_logits(
        self, mechanism, scheme, rotary, frames
    ):
        model = FastTimeSformer(
            frames, 1, 12, 4, 5, **SMALL, attn_mechanism=mechanism, attn_type=scheme,
            rotary_emb=rotary,
        )  # fmt: skip
        out = model.eval()(torch.randn(2, frames, 1, 12, 4))
        assert out.shape == (2, 5)
        assert torch.isfinite(out).all()

    @pytest.mark.parametrize("mechanism", ["regular", "performer"])
    def test_heads_times_dim_head_may_exceed_dim(self, mechanism):
        model = make(attn_mechanism=mechanism, heads=3)
        assert model.blocks[0].attn_t.fn.to_qkv.weight.shape == (3 * 3 * 16, 32)
        assert model(clips()).shape == (2, 4)

    def test_upstream_ignores_heads_as_published(self):
        model = make(heads=8, semantics="upstream")
        assert model.blocks[0].attn_t.fn.heads == 2


@pytest.mark.usefixtures("no_grad")
class TestFunction:
    @pytest.mark.parametrize(("mechanism", "scheme"), GRID)
    def test_same_seed_gives_the_same_model(self, mechanism, scheme):
        options = {"attn_mechanism": mechanism, "attn_type": scheme}
        first, same, other = (make(seed, **options).eval()(clips()) for seed in (0, 0, 1))
        assert torch.equal(first, same)
        assert rel_l2(other, first) > 1e-2

    @pytest.mark.parametrize(("mechanism", "scheme"), GRID)
    def test_upstream_and_paper_semantics_give_different_logits(self, mechanism, scheme):
        options = {"attn_mechanism": mechanism, "attn_type": scheme}
        paper = make(**options).double().eval()
        upstream = make(seed=1, **options, semantics="upstream").double().eval()
        upstream.load_state_dict(paper.state_dict())
        assert rel_l2(upstream(clips().double()), paper(clips().double())) > 1e-3

    @pytest.mark.parametrize(("mechanism", "scheme"), GRID)
    def test_logits_of_a_clip_are_independent_of_its_batch(self, mechanism, scheme):
        model = make(attn_mechanism=mechanism, attn_type=scheme).double().eval()
        video = clips(3).double()
        video[1:] *= 100
        assert rel_l2(model(video)[:1], model(video[:1])) <= 1e-12

    @pytest.mark.parametrize(("mechanism", "scheme"), GRID)
    @pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "learned"])
    def test_logits_depend_on_frame_order_and_patch_position(self, mechanism, scheme, rotary):
        """A clip with frames or patches in another order gives other logits."""
        model = make(attn_mechanism=mechanism, attn_type=scheme, rotary_emb=rotary).double().eval()
        video = clips().double()
        reordered = video[:, [2, 0, 1]]
        shifted = video.roll(4, dims=-1)  # by one patch
        assert rel_l2(model(reordered), model(video)) > 1e-6
        assert rel_l2(model(shifted), model(video)) > 1e-6

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("mechanism", MECHANISMS)
    def test_logits_in_other_precisions_are_near_float64(self, mechanism, dtype):
        model = make(attn_mechanism=mechanism).eval()
        truth = copy.deepcopy(model).double()(clips().double())
        logits = model.to(dtype)(clips().to(dtype))
        assert logits.dtype == dtype
        assert rel_l2(logits, truth) <= {torch.float64: 0.0, torch.bfloat16: 5e-2}[dtype]

    def test_forward_does_not_change_the_model(self):
        model = make().eval()
        before = copy.deepcopy(model.state_dict())
        assert torch.equal(model(clips()), model(clips()))
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())

    def test_pickled_model_gives_the_same_logits(self):
        """`torch.save(model)`, DataLoader and spawned workers pickle the model."""
        model = make().eval()
        twin = pickle.loads(pickle.dumps(model))
        assert torch.equal(twin(clips()), model(clips()))
        assert torch.equal(twin.double().rotary["s"].cos, model.double().rotary["s"].cos)


class TestTraining:
    @pytest.mark.parametrize(("mechanism", "scheme"), GRID)
    @pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "learned"])
    @pytest.mark.parametrize("semantics", ["paper", "upstream"])
    def test_gradients_reach_every_parameter(self, mechanism, scheme, rotary, semantics):
        model = make(
            attn_mechanism=mechanism, attn_type=scheme, rotary_emb=rotary, drop_path=0.0,
            semantics=semantics,
        ).double()  # fmt: skip
        model(clips(4).double()).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert [name for name, grad in gradients.items() if grad is None] == []
        assert all(torch.isfinite(grad).all() for grad in gradients.values())
        assert [name for name, grad in gradients.items() if not grad.abs().max() > 0] == []

    @pytest.mark.slow
    @pytest.mark.parametrize("mechanism", MECHANISMS)
    def test_a_few_steps_lower_the_loss(self, mechanism):
        model = make(attn_mechanism=mechanism, drop_path=0.0)
        video, target = clips(8), torch.arange(8) % 4
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        losses = []
        for _ in range(20):
            loss = torch.nn.functional.cross_entropy(model(video), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("rate", "mechanism"),
        [
            *(("proj_dropout", name) for name in MECHANISMS),
            *(("drop_path", name) for name in MECHANISMS),
            ("attn_dropout", "regular"),
            ("attn_dropout", "fastformer"),
        ],
    )
    @pytest.mark.parametrize("scheme", UPSTREAM_SCHEMES)
    def test_dropout_rate_acts_in_training_only(self, rate, mechanism, scheme):
        options = {"attn_mechanism": mechanism, "attn_type": scheme, "drop_path": 0.0}
        model = make(**{**options, rate: 0.5})
        torch.manual_seed(3)
        video = clips(4)
        assert rel_l2(model(video), model(video)) > 1e-3
        without = make(**options)
        assert torch.equal(model.eval()(video), without.eval()(video))
        assert torch.equal(without.train()(video), without.eval()(video))

    def test_drop_path_drops_whole_samples_and_keeps_the_mean(self):
        torch.manual_seed(0)
        out = DropPath(0.25)(torch.ones(4000, 3, 2))
        per_sample = out.flatten(1)
        assert torch.equal(per_sample.amax(1), per_sample.amin(1))
        torch.testing.assert_close(out.unique(), torch.tensor([0, 1 / 0.75]), rtol=1e-6, atol=0)
        assert out.mean().item() == pytest.approx(1.0, abs=0.05)

    @torch.no_grad()
    def test_drop_path_drops_class_and_patch_tokens_of_a_sample_together(self):
        block = make(attn_mechanism="regular", drop_path=0.5, depth=1).blocks[0].train()
        for linear in (block.attn_s.fn.to_out, block.fc_t):  # only the feed-forward stays active
            linear.weight.zero_()
            linear.bias.zero_()
        cls, x = torch.randn(64, 1, 32), torch.randn(64, 3 * 2 * 3, 32)
        out_cls, out_x = block(cls, x, None)
        kept_cls = (out_cls != cls).flatten(1).any(1)
        kept_x = (out_x != x).flatten(1).any(1)
        assert 0 < kept_x.sum() < 64
        assert torch.equal(kept_cls, kept_x)


class TestRefusals:
    @pytest.mark.parametrize(
        "shape",
        [(2, 4, 3, 8, 12), (2, 3, 1, 8, 12), (2, 3, 3, 12, 8), (3, 3, 8, 12), (2, 3, 3, 8, 12, 1)],
    )
    def test_error_of_a_wrong_shape_names_got_and_expected(self, shape):
        with pytest.raises(ValueError, match="shape") as caught:
            make()(torch.zeros(shape))
        assert str(shape) in str(caught.value)
        assert "(3, 3, 8, 12)" in str(caught.value)
        assert "(b, f, c, h, w)" in str(caught.value)

    def test_error_of_a_wrong_shape_with_frames_second_names_the_given_layout(self):
        with pytest.raises(ValueError, match="shape") as caught:
            make(frames_first=False)(torch.zeros(2, 3, 4, 8, 12))
        assert "(2, 3, 4, 8, 12)" in str(caught.value)
        assert "(b, c, f, h, w)" in str(caught.value)

    @pytest.mark.parametrize("frames_first", [True, False])
    def test_input_with_too_few_axes_is_refused(self, frames_first):
        with pytest.raises(ValueError, match=r"got \(12,\)"):
            make(frames_first=frames_first)(torch.zeros(12))

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ({"attn_mechanism": "fastforme"}, ["'fastforme'", "'fastformer'", "did you mean"]),
            ({"attn_mechanism": "xyz"}, ["'xyz'", "regular, performer, fastformer"]),
            ({"attn_type": "divded"}, ["'divded'", "did you mean 'divided'"]),
            ({"semantics": "papr"}, ["'papr'", "did you mean 'paper'"]),
            ({"patch_size": 5}, ["height", "multiple of patch_size 5", "got 8", "5 or 10"]),
            ({"patch_size": 16}, ["height", "multiple of patch_size 16", "got 8", "nearest 16"]),
            ({"depth": 0}, ["depth", "at least 1", "got 0"]),
            ({"depth": True}, ["depth", "whole number", "got True"]),
            ({"dim": 2.5}, ["dim", "whole number", "got 2.5"]),
            ({"dim": 40}, ["dim", "multiple of dim_head 16", "got 40"]),
            ({"dim_head": 1, "dim": 3}, ["even dim_head", "got 1"]),
            ({"heads": 3}, ["heads x dim_head must equal dim", "got 3 x 16 and 32"]),
            ({"heads": 0}, ["heads", "at least 1", "got 0"]),
            ({"heads": "2"}, ["heads", "whole number", "got '2'"]),
            ({"drop_path": 1.0}, ["drop_path", "[0, 1)", "got 1.0"]),
            ({"attn_dropout": -0.1}, ["attn_dropout", "[0, 1)", "got -0.1"]),
            ({"proj_dropout": float("nan")}, ["proj_dropout", "[0, 1)", "got nan"]),
            ({"drop_path": "0.1"}, ["drop_path", "got '0.1'"]),
        ],
        ids=str,
    )
    def test_error_of_an_invalid_configuration_names_got_and_expected(self, options, parts):
        with pytest.raises(ConfigError) as caught:
            make(**options)
        assert [part for part in parts if part not in str(caught.value)] == []
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("value", [0, -1, 1.5, "3", None])
    def test_size_that_is_not_a_positive_whole_number_is_refused(self, name, value):
        sizes = dict(zip(NAMES, SIZES, strict=True))
        with pytest.raises(ConfigError, match=rf"{name} must be a whole number.*got {value!r}"):
            FastTimeSformer(**{**sizes, name: value}, **SMALL)

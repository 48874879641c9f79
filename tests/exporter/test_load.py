import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporter.errors import CheckpointInputError, UsageError
from exporter.files.names import default_directory
from exporter.load import check_same_checkpoint, load_model, resolve
from exporter.precision import in_precision
from exporter.rewrite import REWRITES, rewrite_measured
from exporter.rewrite.choose import rewrite_for_export, rewrites_to_skip
from exporter.spec import BatchProfile, ExportSpec
from model import FastTimeSformer, Preprocessing, save_checkpoint

SMALL = {"dim": 32, "dim_head": 16, "depth": 1, "frames": 3, "res": (32, 48)}


@pytest.fixture(scope="module")
def trained():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = FastTimeSformer(
            3, 3, 32, 48, num_classes=4, dim=32, dim_head=16, depth=2, attn_mechanism="regular"
        )
    model.preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3)
    model.labels = ("a", "b", "c", "d")
    return model.eval()


@pytest.fixture
def own(trained, tmp_path):
    save_checkpoint(trained, tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


@pytest.fixture
def published(tmp_path):
    """Save a bare state dict as the published package does; it has no configuration."""
    model = FastTimeSformer(3, 3, 32, 48, 4, dim=32, dim_head=16, depth=1, semantics="upstream")
    torch.save(dict(model.state_dict()), tmp_path / "published.pth")
    return tmp_path / "published.pth"


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_fresh_model_has_the_defaults_of_the_readme():
    config = load_model(ExportSpec()).config
    assert (config.frames, config.channels, config.height, config.width) == (5, 3, 224, 224)
    assert (config.num_classes, config.dim, config.depth, config.num_heads) == (2, 128, 12, 2)
    assert (config.attn_mechanism, config.attn_type) == ("fastformer", "divided")
    assert config.semantics == "paper"


def test_the_model_has_the_given_options():
    model = load_model(
        ExportSpec(attn="performer", scheme="joint", heads=3, num_classes=7, patch_size=8, **SMALL)
    )
    config = model.config
    assert (config.attn_mechanism, config.attn_type) == ("performer", "joint")
    assert (config.height, config.width, config.patch_size) == (32, 48, 8)
    assert (config.num_heads, config.num_classes, config.depth) == (3, 7, 1)
    assert not model.training


def test_the_seed_decides_the_weights_and_the_global_state_stays():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (load_model(ExportSpec(seed=seed, **SMALL)) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(first, again)
    assert not same_weights(first, other)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"res": (100, 100)}, "multiple of patch_size 16: got 100, nearest 96 or 112"),
        ({"frames": 0}, "frames must be a whole number of at least 1: got 0"),
        ({"dim": 100}, "dim must be a multiple of dim_head 64: got 100"),
        ({"dim_head": 63, "dim": 126}, "even dim_head: got 63"),
        ({"attn": "fastformer", "heads": 3}, "heads x dim_head must equal dim"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_usage_error(values, words):
    with pytest.raises(UsageError, match=words):
        load_model(ExportSpec(**values))


def test_a_checkpoint_of_tsformer_needs_no_argument(own, trained):
    model = load_model(ExportSpec(checkpoint=own))
    assert model.config == trained.config
    assert same_weights(model, trained)
    assert model.preprocessing == trained.preprocessing
    assert model.labels == trained.labels


def test_arguments_that_agree_with_the_checkpoint_are_accepted(own):
    load_model(ExportSpec(checkpoint=own, attn="regular", depth=2, res=(32, 48)))


@pytest.mark.parametrize("values", [{"attn": "fastformer"}, {"depth": 3}, {"res": (48, 48)}])
def test_arguments_that_contradict_the_checkpoint_are_refused(own, values):
    with pytest.raises(CheckpointInputError, match=r"own\.safetensors: contradicts .* was given"):
        load_model(ExportSpec(checkpoint=own, **values))


def test_a_published_checkpoint_is_completed_by_arguments_or_config(published):
    with pytest.raises(CheckpointInputError, match="does not tell frames, height, width"):
        load_model(ExportSpec(checkpoint=published))
    by_arguments = load_model(ExportSpec(checkpoint=published, frames=3, res=(32, 48)))
    config = {"frames": 3, "height": 32, "width": 48}
    by_config = load_model(ExportSpec(checkpoint=published, config=config))
    assert by_arguments.config == by_config.config
    assert by_config.config.semantics == "upstream"
    paper = load_model(ExportSpec(checkpoint=published, config=config, semantics="paper"))
    assert paper.config.semantics == "paper"


def test_arguments_that_contradict_the_config_are_a_usage_error(published):
    with pytest.raises(UsageError, match="--config says frames is 3, the command line 5"):
        load_model(ExportSpec(checkpoint=published, frames=5, config={"frames": 3}))


def test_a_missing_checkpoint_is_an_input_error(tmp_path):
    with pytest.raises(CheckpointInputError, match="No such file") as caught:
        load_model(ExportSpec(checkpoint=tmp_path / "none.pth"))
    assert caught.value.exit_code == 3


# --- resolve


def test_a_resolved_spec_has_every_size():
    spec = ExportSpec(**SMALL)
    resolved = resolve(spec, load_model(spec))
    sizes = ("attn", "scheme", "semantics", "frames", "channels", "num_classes", "heads", "batch")
    assert all(resolved[name] is not None for name in sizes)
    assert resolved["res"] == [32, 48]
    assert resolved["heads"] == 2
    assert "checkpoint_sha256" not in resolved


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"heads": 2},
        {"heads": 8},  # an argument that the published package ignores
        {"frames_first": False},
        {"preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3}},
    ],
    ids=str,
)
def test_a_resolved_spec_gives_the_same_model_again(published, config):
    spec = ExportSpec(checkpoint=published, frames=3, res=(32, 48), config=config)
    model = load_model(spec)
    resolved = json.loads(json.dumps(resolve(spec, model)))
    again = load_model(ExportSpec.from_dict(resolved))
    assert again.preprocessing == model.preprocessing
    assert again.config.num_heads == model.config.num_heads
    assert same_weights(again, model)


def test_a_resolved_fresh_spec_gives_the_same_model_again():
    spec = ExportSpec(seed=3, dynamic_batch=BatchProfile(1, 2, 4), **SMALL)
    model = load_model(spec)
    again = load_model(ExportSpec.from_dict(json.loads(json.dumps(resolve(spec, model)))))
    assert same_weights(again, model)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_resolved_spec_without_tensorrt_is_read_again(precision):
    """The default of these precisions names GPU architectures where an engine is built."""
    spec = ExportSpec(precision=precision, runtimes=("onnxruntime",), **SMALL)
    resolved = json.loads(json.dumps(resolve(spec, load_model(spec))))
    assert resolved["targets"] == []
    assert ExportSpec.from_dict(resolved).runtimes == ("onnxruntime",)


# --- the checkpoint of the export


def test_another_or_missing_checkpoint_is_refused(own, tmp_path):
    spec = ExportSpec(checkpoint=own)
    recorded = resolve(spec, load_model(spec))
    check_same_checkpoint(spec, recorded)
    own.write_bytes(own.read_bytes() + b"\0")
    with pytest.raises(CheckpointInputError, match="is not the checkpoint that was exported"):
        check_same_checkpoint(spec, recorded)
    own.unlink()
    with pytest.raises(CheckpointInputError, match="say where it is with --checkpoint"):
        check_same_checkpoint(spec, recorded)


def test_a_fresh_model_has_no_checkpoint_to_compare():
    check_same_checkpoint(ExportSpec(), {})


# --- the name of the directory


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "fastformer-divided-224x224-fp32"),
        ({"attn": "regular", "scheme": "joint", "res": (96, 160)}, "regular-joint-96x160-fp32"),
        ({"batch": 4}, "fastformer-divided-224x224-b4-fp32"),
        ({"dynamic_batch": BatchProfile(1, 8, 16)}, "fastformer-divided-224x224-b8-fp32"),
        ({"checkpoint": Path("runs/best.pth")}, "best-fp32"),
        ({"checkpoint": Path("best.pth"), "res": (64, 64)}, "best-64x64-fp32"),
    ],
)
def test_the_default_directory_names_the_differing_options(values, name):
    assert default_directory(ExportSpec(**values)) == Path("build") / name


def test_a_module_to_keep_in_float32_is_not_folded_into_another():
    sizes = {"attn": "regular", "res": (64, 64), "depth": 2, "dim": 32, "dim_head": 16}
    plain = ExportSpec(precision="fp16", **sizes)
    keeping = ExportSpec(precision="fp16", keep_fp32=(r"blocks\.0\.fc_t",), **sizes)
    model = load_model(plain)

    folded = rewrite_for_export(plain, model)
    assert not list(folded.get_submodule("blocks.0.fc_t").parameters())

    rewritten = rewrite_for_export(keeping, model)
    lowered = in_precision(rewritten, "fp16", keeping.keep_fp32)
    assert lowered.get_submodule("blocks.0.fc_t").weight.dtype == torch.float32
    assert lowered.get_submodule("blocks.1.fc_t").weight.dtype == torch.float16


# --- what is rewritten


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({}, []),
        ({"precision": "fp16"}, ["fold_norm", "bias_apart"]),
        ({"precision": "int8"}, ["fold_global_key"]),
        ({"no_rewrite": ("frame_weights",)}, ["frame_weights"]),
    ],
    ids=str,
)
def test_runtime_and_precision_decide_the_rewrites(options, left_out):
    sizes = {"attn": "fastformer", "res": (48, 64), "depth": 2, "dim": 8, "dim_head": 4}
    spec = ExportSpec(**sizes, **options)
    model = load_model(spec)
    fired = rewrite_measured(model, rewrites_to_skip(spec, model)).fired
    all_fired = {"class_token", "fold_norm", "frame_weights", "pooled_rotation", "fold_global_key"}
    all_fired |= {"bias_apart"}
    assert {one.name for one in fired} == all_fired.difference(left_out)


def test_a_graph_for_tensorrt_has_its_own_rewrites():
    """The table of `scripts/results/fusion.json` decides: see tests/exporter/rewrite."""
    spec = ExportSpec(attn="regular", res=(48, 64), depth=1, dim=8, dim_head=4)
    model = load_model(spec)
    skipped = rewrites_to_skip(spec, model, "tensorrt")
    assert set(REWRITES) - set(skipped) == {
        *("class_token", "fold_fc", "one_product", "sum_pools", "join_feed_forward"),
        "fold_pixels",
    }
    assert rewrites_to_skip(spec, model) != skipped
    assert rewrites_to_skip(replace(spec, optimize_for="tensorrt"), model) == skipped
    int8 = rewrites_to_skip(replace(spec, precision="int8"), model, "tensorrt")
    assert set(int8) - set(skipped) == {"join_feed_forward"}


def test_an_adapter_whose_base_cannot_be_had_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    def refuse(name):
        raise CheckpointInputError(f"the hub does not answer for {name.id}")

    monkeypatch.setattr("exporter.load.fetch", refuse)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"})
    )
    with pytest.raises(CheckpointInputError, match="adapter of some/base: the hub") as caught:
        load_model(ExportSpec(checkpoint=tmp_path))
    assert '{"base_model": "DIRECTORY"}' in str(caught.value)


def test_the_averaged_weights_are_loaded_where_they_are_asked_for(published, tmp_path):
    state = torch.load(published)
    average = {name: tensor * 0.5 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": average}, tmp_path / "both.pth")
    spec = ExportSpec(checkpoint=tmp_path / "both.pth", frames=3, res=(32, 48))
    plain, ema = load_model(spec), load_model(replace(spec, weights="ema"))
    assert torch.equal(plain.cls_token, state["cls_token"])
    assert torch.equal(ema.cls_token, average["cls_token"])
    assert "model_ema (ema) taken, as asked" in resolve(spec, ema)["notes"][0]
    with pytest.raises(UsageError, match="--weights describes a checkpoint"):
        ExportSpec(weights="ema")


def test_a_seed_gives_the_same_weights_with_one_thread_and_with_two():
    spec = ExportSpec(attn="performer", res=(32, 32), frames=2, dim=128, depth=1, dim_head=64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = load_model(spec)
            found.append({**model.state_dict(), **dict(model.named_buffers())})
    finally:
        torch.set_num_threads(before)
    one, two = found
    assert any("projection_matrix" in name for name in one)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []

"""Test Hugging Face directories: the inferred model, and one-line errors for bad directories."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model import (
    CheckpointError,
    Preprocessing,
    TimeSformerViT,
    load_checkpoint,
    save_checkpoint,
)
from model.sampling import Sampling

CONFIG = {
    "model_type": "timesformer",
    "architectures": ["TimesformerForVideoClassification"],
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "num_frames": 3,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "id2label": {"0": "run", "1": "jump", "2": "größer", "3": "a, b"},
    "transformers_version": "5.23.0",
}
PROCESSOR = {
    "image_processor_type": "VideoMAEImageProcessor",
    "crop_size": {"height": 16, "width": 16},
    "size": {"shortest_edge": 16},
    "image_mean": [0.45, 0.4, 0.35],
    "image_std": [0.225, 0.25, 0.2],
    "resample": 2,
    "rescale_factor": 1 / 255,
}
CLASSES = 4
LONGEST_MESSAGE = 600


def weights(kind: str = "divided_space_time", bias: bool = True, channels: int = 3) -> dict:
    """Return random weights of `CONFIG`, by their published names."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        state[name] = torch.randn(shape, generator=generator)

    def linear(name: str, into: int, out: int, bias: bool = True) -> None:
        add(f"{name}.weight", out, into)
        if bias:
            add(f"{name}.bias", out)

    def norm(name: str) -> None:
        add(f"{name}.weight", 24)
        add(f"{name}.bias", 24)

    def attention(name: str) -> None:
        linear(f"{name}.attention.qkv", 24, 72, bias)
        linear(f"{name}.output.dense", 24, 24)

    embeddings = "timesformer.embeddings"
    add(f"{embeddings}.cls_token", 1, 1, 24)
    add(f"{embeddings}.position_embeddings", 1, 17, 24)
    if kind != "space_only":
        add(f"{embeddings}.time_embeddings", 1, 3, 24)
    add(f"{embeddings}.patch_embeddings.projection.weight", 24, channels, 4, 4)
    add(f"{embeddings}.patch_embeddings.projection.bias", 24)
    for number in range(2):
        layer = f"timesformer.encoder.layer.{number}"
        attention(f"{layer}.attention")
        linear(f"{layer}.intermediate.dense", 24, 40)
        linear(f"{layer}.output.dense", 40, 24)
        norm(f"{layer}.layernorm_before")
        norm(f"{layer}.layernorm_after")
        if kind == "divided_space_time":
            norm(f"{layer}.temporal_layernorm")
            attention(f"{layer}.temporal_attention")
            linear(f"{layer}.temporal_dense", 24, 24)
    norm("timesformer.layernorm")
    linear("classifier", 24, CLASSES)
    return state


def write(
    path: Path,
    config: dict | None = None,
    processor: dict | None = PROCESSOR,
    state: dict[str, Tensor] | None = None,
) -> Path:
    """Write a directory as transformers saves it, without the entries that are `...`."""
    entries = {**CONFIG, **(config or {})}
    kept = {name: value for name, value in entries.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    save_file(weights() if state is None else state, path / "model.safetensors")
    return path


def processor(**entries: object) -> dict:
    return {k: v for k, v in {**PROCESSOR, **entries}.items() if v is not ...}


def load(path: Path, **arguments: object) -> TimeSformerViT:
    model = load_checkpoint(path, **arguments)
    assert isinstance(model, TimeSformerViT)
    assert not model.training
    return model


def refusal(path: Path, **arguments: object) -> str:
    """Return the error message, which must be one line that names the directory."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message.replace(str(path), "")) < LONGEST_MESSAGE
    return message


def run(model: TimeSformerViT) -> Tensor:
    config = model.config
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(2, config.frames, config.channels, config.height, config.width))


def assert_parts(message: str, *parts: str) -> None:
    assert [part for part in parts if part not in message] == []


class TestInference:
    def test_configuration_labels_and_preprocessing_are_read(self, tmp_path):
        changed = {"hidden_act": "relu", "layer_norm_eps": 1e-3, "drop_path_rate": 0.25,
                   "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.2}  # fmt: skip
        model = load(write(tmp_path, changed))
        expected = TimeSformerViT(
            3, 16, 16, CLASSES, 24, 2, 3, 4, mlp_dim=40, hidden_act="relu", norm_eps=1e-3,
            drop_path=0.25, attn_dropout=0.1, proj_dropout=0.2,
        )  # fmt: skip
        assert model.config == expected.config
        assert model.labels == ("run", "jump", "größer", "a, b")
        assert model.preprocessing == Preprocessing((0.45, 0.4, 0.35), (0.225, 0.25, 0.2), 16)
        assert model.notes == ()
        assert run(model).shape == (2, CLASSES)

    @pytest.mark.parametrize(
        ("kind", "scheme"),
        [("divided_space_time", "divided"), ("joint_space_time", "joint"), ("space_only", "space")],
    )
    @pytest.mark.parametrize("bias", [True, False])
    def test_attention_type_and_qkv_bias_are_read(self, tmp_path, kind, scheme, bias):
        entries = {"attention_type": kind, "qkv_bias": bias}
        model = load(write(tmp_path, entries, state=weights(kind, bias)))
        assert (model.config.scheme, model.config.qkv_bias) == (scheme, bias)
        assert any("space_only" in note for note in model.notes) == (scheme == "space")
        assert run(model).shape == (2, CLASSES)

    def test_every_weight_is_mapped_to_our_name(self, tmp_path):
        state = weights()
        ours = load(write(tmp_path)).state_dict()
        assert len(ours) == len(state)
        found = {float(tensor.sum()) for tensor in ours.values()}
        assert found == {float(tensor.sum()) for tensor in state.values()}
        layer = "timesformer.encoder.layer.1"
        for theirs, name in (
            (
                f"{layer}.temporal_attention.attention.qkv.weight",
                "blocks.1.attn_t.fn.to_qkv.weight",
            ),
            (f"{layer}.attention.output.dense.bias", "blocks.1.attn_s.fn.to_out.bias"),
            (f"{layer}.output.dense.weight", "blocks.1.mlp.fn.fc2.weight"),
            ("timesformer.embeddings.position_embeddings", "pos_embed"),
        ):
            assert torch.equal(ours[name], state[theirs])

    @pytest.mark.parametrize(
        ("entries", "changed"),
        [
            ({"image_size": [16, 16]}, {}),
            ({"patch_size": [4, 4]}, {}),
            ({"num_channels": ..., "hidden_act": None, "qkv_bias": ...}, {}),
            ({"id2label": ..., "num_labels": 7}, {}),
        ],
        ids=str,
    )
    def test_equivalent_entries_give_the_same_configuration(self, tmp_path, entries, changed):
        plain, other = tmp_path / "plain", tmp_path / "other"
        plain.mkdir(), other.mkdir()
        assert load(write(other, entries)).config == load(write(plain)).config

    def test_labels_without_id2label_are_those_of_label2id(self, tmp_path):
        numbers = {"d": 3, "a": 0, "c": 2, "b": 1}
        model = load(write(tmp_path, {"id2label": ..., "label2id": numbers}))
        assert model.labels == ("a", "b", "c", "d")

    def test_labels_without_id2label_are_the_library_defaults(self, tmp_path):
        model = load(write(tmp_path, {"id2label": ...}))
        assert model.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")

    def test_labels_are_ordered_by_their_numbers(self, tmp_path):
        model = load(write(tmp_path, {"id2label": {"3": "d", "1": "b", "0": "a", "2": "c"}}))
        assert model.labels == ("a", "b", "c", "d")

    @pytest.mark.slow
    def test_loading_does_not_import_transformers(self, tmp_path):
        write(tmp_path)
        code = (
            "import sys, model\n"
            f"model.load_checkpoint({str(tmp_path)!r})\n"
            "print('transformers' in sys.modules)"
        )
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["False"]


class TestWeightFiles:
    def torch_file(self, path: Path, content: object) -> Path:
        write(path)
        (path / "model.safetensors").unlink()
        torch.save(content, path / "pytorch_model.bin")
        return path

    def shards(self, path: Path, suffix: str = "safetensors") -> dict:
        """Write three shards of the weights; return their index."""
        write(path)
        (path / "model.safetensors").unlink()
        state, places = weights(), {}
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        for number in range(3):
            shard = f"{stem}-0000{number + 1}-of-00003.{suffix}"
            part = dict(list(state.items())[number::3])
            places |= dict.fromkeys(part, shard)
            if suffix == "safetensors":
                save_file(part, path / shard)
            else:
                torch.save(part, path / shard)
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
        return index

    def test_pytorch_model_bin_gives_the_same_logits(self, tmp_path):
        a, b = tmp_path / "a", tmp_path / "b"
        a.mkdir(), b.mkdir()
        assert torch.equal(run(load(self.torch_file(a, weights()))), run(load(write(b))))

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_shards_give_the_same_logits(self, tmp_path, suffix):
        a, b = tmp_path / "a", tmp_path / "b"
        a.mkdir(), b.mkdir()
        self.shards(a, suffix)
        assert torch.equal(run(load(a)), run(load(write(b))))

    def test_code_in_a_file_is_refused(self, tmp_path):
        path = self.torch_file(tmp_path, weights())
        (path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))
        assert "could run code: nothing was run" in refusal(path)

    def test_directory_without_weights_is_refused(self, tmp_path):
        (write(tmp_path) / "model.safetensors").unlink()
        assert_parts(refusal(tmp_path), "no weights", "model.safetensors", "pytorch_model.bin")

    def test_missing_shard_is_refused(self, tmp_path):
        self.shards(tmp_path)
        (tmp_path / "model-00002-of-00003.safetensors").unlink()
        assert_parts(refusal(tmp_path), "shard model-00002-of-00003.safetensors", "missing")

    def test_key_missing_from_its_shard_is_refused(self, tmp_path):
        index = self.shards(tmp_path)
        places = {**index["weight_map"], "timesformer.x": "model-00001-of-00003.safetensors"}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        assert_parts(refusal(tmp_path), "model-00001-of-00003", "lacks timesformer.x", "index.json")

    def test_key_missing_from_the_index_is_loaded(self, tmp_path):
        """The shards decide, not the index: no weight is dropped."""
        index = self.shards(tmp_path)
        places = index["weight_map"]
        del places["classifier.bias"]
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert run(load(tmp_path)).shape == (2, CLASSES)

    @pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b"])
    def test_shard_outside_the_directory_is_refused(self, tmp_path, shard):
        index = self.shards(tmp_path)
        index["weight_map"]["classifier.bias"] = shard
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert_parts(refusal(tmp_path), repr(shard), "not a file beside it")

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
    def test_index_without_weight_map_is_refused(self, tmp_path, content):
        self.shards(tmp_path)
        (tmp_path / "model.safetensors.index.json").write_text(content)
        assert "no weight_map" in refusal(tmp_path)

    @pytest.mark.parametrize("name", ["model.safetensors", "model-00003-of-00003.safetensors"])
    def test_damaged_weights_file_is_refused(self, tmp_path, name):
        if name == "model.safetensors":
            write(tmp_path)
        else:
            self.shards(tmp_path)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert_parts(refusal(tmp_path), name, "not a whole safetensors file")

    def test_nan_weights_are_refused(self, tmp_path):
        state = weights()
        state["classifier.weight"][1, 2] = float("nan")
        assert_parts(refusal(write(tmp_path, state=state)), "NaN", "classifier.weight")


class TestJson:
    def test_missing_config_is_refused(self, tmp_path):
        (write(tmp_path) / "config.json").unlink()
        assert_parts(refusal(tmp_path), "directory without config.json", "model.safetensors")

    @pytest.mark.parametrize(
        "name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"]
    )
    @pytest.mark.parametrize(
        "content", [b"", b'{"a": 1', b"\xff\xfe{}", b"[" * 100_000], ids=["", "cut", "utf", "deep"]
    )
    def test_damaged_json_is_refused(self, tmp_path, name, content):
        write(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / name).write_bytes(content)
        assert_parts(refusal(tmp_path), name, "damaged JSON")

    @pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
    def test_json_without_an_object_is_refused(self, tmp_path, name):
        (write(tmp_path) / name).write_text("[1, 2]")
        assert_parts(refusal(tmp_path), name, "holds list", "JSON object")

    @pytest.mark.parametrize("kind", ["videomae", "vivit", None, ...])
    def test_error_of_another_architecture_names_it(self, tmp_path, kind):
        message = refusal(write(tmp_path, {"model_type": kind}))
        shown = repr(None if kind is ... else kind)
        assert_parts(message, "config.json", f"model_type {shown}", "'timesformer'")

    @pytest.mark.parametrize(
        ("entries", "parts"),
        [
            (
                {"attention_type": "divided_spacetime"},
                ["attention_type", "'divided_spacetime'", "did you mean 'divided_space_time'"],
            ),
            ({"hidden_act": "gelu_old"}, ["hidden_act", "gelu, relu, selu, gelu_new"]),
            ({"hidden_act": ["gelu"]}, ["hidden_act"]),
            ({"hidden_size": "24"}, ["hidden_size", "whole number", "'24'"]),
            ({"hidden_size": 24.0}, ["hidden_size", "24.0"]),
            ({"num_frames": 0}, ["num_frames", "at least 1", "got 0"]),
            ({"num_frames": True}, ["num_frames", "True"]),
            ({"image_size": [16, 16, 16]}, ["image_size", "[16, 16, 16]"]),
            ({"image_size": [16, "16"]}, ["image_size"]),
            ({"patch_size": [4, 2]}, ["patch_size", "[4, 2]"]),
            ({"num_attention_heads": 5}, ["heads 5", "got 24"]),
            ({"qkv_bias": "yes"}, ["qkv_bias", "'yes'"]),
            ({"layer_norm_eps": "small"}, ["norm_eps", "'small'"]),
            ({"drop_path_rate": 1.5}, ["drop_path", "1.5"]),
            ({"image_size": 18}, ["height", "multiple of patch_size 4", "got 18"]),
            ({"id2label": {"0": "a"}}, ["id2label", "1 labels", "expected 4"]),
            ({"id2label": {str(n): "x" for n in range(5)}}, ["id2label", "5 labels"]),
            ({"id2label": {"0": "a", "1": "b", "2": "c", "4": "d"}}, ["id2label", "0 to 3"]),
            ({"id2label": {"0": "a", "00": "b", "1": "c", "2": "d"}}, ["id2label", "0 to 3"]),
            ({"id2label": {"first": "a"}}, ["id2label", "by number"]),
            ({"id2label": ["a", "b", "c", "d"]}, ["id2label", "by number"]),
            ({"id2label": ..., "label2id": {"a": None, "b": 1}}, ["by number", "'a': None"]),
            ({"id2label": ..., "label2id": {"a": [0], "b": 1}}, ["by number", "'a': [0]"]),
            ({"id2label": ..., "label2id": {"a": float("inf")}}, ["by number", "'a': inf"]),
        ],
        ids=str,
    )
    def test_invalid_config_is_refused(self, tmp_path, entries, parts):
        assert_parts(refusal(write(tmp_path, entries, processor=None)), *parts)

    @pytest.mark.parametrize(
        ("entries", "parts"),
        [
            ({"hidden_size": 48}, ["hidden_size is 48", "24", "cls_token"]),
            ({"num_frames": 8}, ["num_frames is 8", "3", "time_embeddings of shape (1, 3, 24)"]),
            ({"num_channels": 1}, ["num_channels is 1", "3", "projection.weight"]),
            ({"patch_size": 8, "image_size": 32}, ["patch_size is 8", "4"]),
            ({"intermediate_size": ...}, ["intermediate_size is 3072", "40"]),
            ({"num_hidden_layers": 3}, ["num_hidden_layers is 3", "2"]),
            ({"qkv_bias": False}, ["qkv_bias is False", "True", "qkv.bias"]),
            ({"image_size": 32}, ["image_size 32", "65 positions", "(1, 17, 24)"]),
            ({"image_size": [16, 32]}, ["image_size [16, 32]", "33 positions"]),
            ({"attention_type": "joint_space_time"}, ["joint_space_time", "temporal_attention"]),
            ({"attention_type": "space_only"}, ["space_only", "temporal_attention"]),
        ],
        ids=str,
    )
    def test_config_that_contradicts_the_weights_is_refused(self, tmp_path, entries, parts):
        message = refusal(write(tmp_path, entries))
        assert_parts(message, "config.json", "contradicts the weights", *parts)

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("joint_space_time", "divided_space_time"),
            ("joint_space_time", "space_only"),
            ("space_only", "joint_space_time"),
            ("space_only", "divided_space_time"),
        ],
    )
    def test_attention_type_that_contradicts_the_weights_is_refused(self, tmp_path, kind, said):
        message = refusal(write(tmp_path, {"attention_type": said}, state=weights(kind)))
        assert_parts(message, f"attention_type is '{said}'", kind)


class TestKeys:
    def test_model_without_classifier_gives_the_class_token_after_the_last_norm(self, tmp_path):
        bare = {
            name.removeprefix("timesformer."): tensor
            for name, tensor in weights().items()
            if not name.startswith("classifier.")
        }
        whole = load(write(tmp_path))
        features = load(write(tmp_path, state=bare))
        assert (features.config.num_classes, features.labels) == (0, None)
        assert torch.equal(whole.head(run(features)), run(whole))

    def test_mixed_keys_of_two_families_are_refused(self, tmp_path):
        mixed = {
            **weights(),
            "blocks.0.attn.qkv.weight": torch.zeros(72, 24),
            "patch_embed.proj.weight": torch.zeros(24, 3, 4, 4),
        }
        message = refusal(write(tmp_path, state=mixed))
        assert_parts(message, "several models", "(top) (facebookresearch", "(huggingface")

    def test_weights_of_another_family_are_refused(self, tmp_path):
        other = {
            "blocks.0.attn.qkv.weight": torch.zeros(72, 24),
            "patch_embed.proj.weight": torch.zeros(24, 3, 4, 4),
        }
        write(tmp_path, state=other)
        assert_parts(refusal(tmp_path), "directory of huggingface", "facebookresearch")
        assert_parts(refusal(tmp_path, family="huggingface"), "not of family", "blocks.0")

    def test_unknown_weights_are_refused(self, tmp_path):
        assert "no known family" in refusal(write(tmp_path, state={"a": torch.zeros(1)}))
        extra = {**weights(), "timesformer.pooler.weight": torch.zeros(2)}
        assert "unknown weights: pooler.weight" in refusal(write(tmp_path, state=extra))

    def test_weights_beside_the_model_are_left_aside_and_told(self, tmp_path):
        extra = {**weights(), "pooler.weight": torch.zeros(2)}
        notes = load(write(tmp_path, state=extra)).notes
        assert "left aside beside the model: pooler.weight" in notes

    @pytest.mark.parametrize("name", weights())
    def test_any_missing_weight_is_refused(self, tmp_path, name):
        state = weights()
        del state[name]
        assert refusal(write(tmp_path, state=state))

    @pytest.mark.parametrize("name", [name for name in weights() if "layer.1" not in name])
    @pytest.mark.parametrize("shape", [(), (5,), (1, 0, 24)], ids=str)
    def test_any_wrong_shape_is_refused(self, tmp_path, name, shape):
        assert refusal(write(tmp_path, state={**weights(), name: torch.zeros(shape)}))

    def test_weights_file_without_its_directory_needs_the_heads(self, tmp_path):
        file = write(tmp_path) / "model.safetensors"
        assert_parts(refusal(file), "does not tell heads", "--heads")
        model = load(file, config={"heads": 3})
        assert torch.equal(run(model), run(load(tmp_path)))
        assert_parts(" ".join(model.notes), "no config.json", "hidden_act gelu")

    @pytest.mark.parametrize("family", ["facebookresearch", "fast_timesformer"])
    def test_directory_with_another_given_family_is_refused(self, tmp_path, family):
        message = refusal(write(tmp_path), family=family)
        assert_parts(message, "directory of huggingface", family)


class TestConfig:
    def test_given_family_gives_the_same_logits(self, tmp_path):
        model = load(write(tmp_path), family="huggingface")
        assert torch.equal(run(model), run(load(tmp_path)))

    def test_config_with_published_names_gives_the_same_logits(self, tmp_path):
        config = {name: CONFIG[name] for name in CONFIG if "_" in name and name != "model_type"}
        del config["transformers_version"]
        model = load(write(tmp_path), config=config | {"attention_type": "divided_space_time"})
        assert torch.equal(run(model), run(load(tmp_path)))

    @pytest.mark.parametrize(
        ("name", "value", "parts"),
        [
            ("num_frames", 8, ["frames is 3 by num_frames of config.json", "8 was given"]),
            ("frames", 8, ["frames is 3", "8 was given"]),
            ("hidden_size", 48, ["dim is 24 by hidden_size of config.json", "48 was given"]),
            ("num_labels", 5, ["num_classes is 4 by classifier.weight", "5 was given"]),
            ("attention_type", "space_only", ["scheme is 'divided'", "'space' was given"]),
            ("attention_type", "space", ["attention_type", "'space'", "space_only"]),
            ("hidden_act", "relu", ["hidden_act is 'gelu'", "'relu' was given"]),
            ("attn", "fastformer", ["attn is 'regular' by its family"]),
            ("hidden_sizes", 24, ["'hidden_sizes'"]),
        ],
    )
    def test_config_that_contradicts_the_directory_is_refused(self, tmp_path, name, value, parts):
        assert_parts(refusal(write(tmp_path), config={name: value}), *parts)

    @pytest.mark.parametrize(
        "config", [{"image_size": 32}, {"height": 32, "width": 32}, {"image_size": [32, 32]}]
    )
    def test_another_resolution_resizes_the_positions_and_the_short_side(self, tmp_path, config):
        write(tmp_path, processor=processor(size={"shortest_edge": 20}))
        model = load(tmp_path, config=config)
        assert (model.config.height, model.config.width) == (32, 32)
        rows = torch.arange(8) // 2
        chosen = (1 + 4 * rows[:, None] + rows).flatten()
        stored = weights()["timesformer.embeddings.position_embeddings"]
        assert torch.equal(model.pos_embed[:, 1:], stored[:, chosen])
        assert torch.equal(model.pos_embed[:, :1], stored[:, :1])
        assert model.preprocessing.short_side == 40  # 20 at a height of 16 scales to 40 at 32
        assert "positions resized from 4 x 4 to 8 x 8 patches" in model.notes
        assert any("for 16 x 16" in note and "40, not 20" in note for note in model.notes)

    def test_config_replaces_labels_and_preprocessing(self, tmp_path):
        write(tmp_path, {"id2label": {"0": "a"}}, processor(image_mean="none"))
        given = {
            "labels": ["e", "f", "g", "h"],
            "preprocessing": {"mean": [0.1] * 3, "std": [0.2] * 3, "short_side": 20},
        }
        model = load(tmp_path, config=given)
        assert model.labels == ("e", "f", "g", "h")
        assert model.preprocessing == Preprocessing((0.1,) * 3, (0.2,) * 3, 20)

    @pytest.mark.parametrize("side", [0, -1, 2.5, "20", True])
    def test_invalid_short_side_is_refused(self, tmp_path, side):
        given = {"preprocessing": {"mean": [0.1] * 3, "std": [0.2] * 3, "short_side": side}}
        assert_parts(refusal(write(tmp_path), config=given), "short_side", repr(side))


class TestPreprocessing:
    def loaded(self, path: Path, entries: dict | None) -> TimeSformerViT:
        return load(write(path, processor=entries))

    @pytest.mark.parametrize(
        ("entries", "mean", "std"),
        [
            ({}, (0.45, 0.4, 0.35), (0.225, 0.25, 0.2)),
            ({"do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
            ({"image_mean": 0.5, "image_std": 0.25}, (0.5,) * 3, (0.25,) * 3),
            ({"rescale_factor": 1 / 127.5}, (0.225, 0.2, 0.175), (0.1125, 0.125, 0.1)),
            ({"do_rescale": False, "do_normalize": False}, (0.0,) * 3, (1 / 255,) * 3),
            (
                {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3},
                (0.5,) * 3,
                (0.2,) * 3,
            ),
            ({"image_mean": ..., "image_std": ...}, (0.5,) * 3, (0.5,) * 3),
            (
                {"image_mean": ..., "image_std": ..., "image_processor_type": ...},
                (0.485, 0.456, 0.406),
                (0.229, 0.224, 0.225),
            ),
        ],
        ids=str,
    )
    def test_scale_and_normalisation_are_folded(self, tmp_path, entries, mean, std):
        model = self.loaded(tmp_path, processor(**entries))
        assert model.preprocessing.mean == pytest.approx(mean)
        assert model.preprocessing.std == pytest.approx(std)
        pixel = torch.tensor(200.0)
        rescaled = pixel * entries.get("rescale_factor", 1 / 255)
        if not entries.get("do_rescale", True):
            rescaled = pixel
        if entries.get("do_normalize", True) and "image_mean" not in entries:
            rescaled = (rescaled - 0.45) / 0.225
            got = (pixel / 255 - model.preprocessing.mean[0]) / model.preprocessing.std[0]
            assert got == pytest.approx(rescaled.item())

    @pytest.mark.parametrize(
        ("entries", "short_side", "notes"),
        [
            ({}, 16, []),
            ({"size": 20}, 20, []),
            ({"size": {"shortest_edge": 20}, "crop_size": 16}, 20, []),
            ({"size": {"shortest_edge": 20}, "crop_size": [16, 16]}, 20, []),
            ({"size": {"shortest_edge": 12}}, None, ["pads with black"]),
            ({"size": {"height": 16, "width": 16}}, 16, []),
            ({"size": {"height": 24, "width": 20}}, 20, ["squashes frames to 24 x 20"]),
            ({"do_resize": False}, None, ["resizes no frames"]),
            ({"do_center_crop": False}, 16, ["crops no frames"]),
            ({"do_resize": False, "do_center_crop": False}, None, ["resizes no frames"]),
            ({"resample": 3}, 16, []),
            ({"resample": 0}, 16, ["resample 0"]),
            ({"resample": [2]}, 16, ["resample [2]"]),
            ({"image_processor_type": "VivitImageProcessor"}, 16, ["VivitImageProcessor read as"]),
            ({"image_processor_type": ..., "feature_extractor_type": "VideoMAEX"}, 16, []),
        ],
        ids=str,
    )
    def test_resize_and_crop_give_the_short_side_and_notes(
        self, tmp_path, entries, short_side, notes
    ):
        model = self.loaded(tmp_path, processor(**entries))
        assert (model.config.height, model.config.width) == (16, 16)
        assert model.preprocessing.short_side == short_side
        assert len(model.notes) == len(notes)
        for note, part in zip(model.notes, notes, strict=True):
            assert part in note

    def test_a_fixed_size_stretches_the_frames_and_the_resample_is_kept(self, tmp_path):
        entries = {"size": {"height": 16, "width": 16}, "resample": 3}
        how = self.loaded(tmp_path, processor(**entries)).preprocessing
        assert (how.stretch, how.interpolation, how.antialias) == (True, "bicubic", True)

    def test_a_processor_that_samples_frames_tells_the_sampling(self, tmp_path):
        sampled = {"do_sample_frames": True, "num_frames": 3}
        how = self.loaded(tmp_path, processor(**sampled)).preprocessing
        assert how.sampling == Sampling("uniform", "starts")
        assert self.loaded(tmp_path, processor()).preprocessing.sampling is None

    @pytest.mark.parametrize(
        "entries",
        [
            {"crop_size": {"height": 24, "width": 32}, "size": {"shortest_edge": 32}},
            {"do_center_crop": False, "size": {"height": 24, "width": 32}},
        ],
        ids=str,
    )
    def test_the_model_runs_at_the_size_of_the_frames(self, tmp_path, entries):
        model = self.loaded(tmp_path, processor(**entries))
        assert (model.config.height, model.config.width) == (24, 32)
        assert "positions resized from 4 x 4 to 6 x 8 patches" in model.notes
        assert any("24 x 32 of preprocessor_config.json" in note for note in model.notes)
        assert run(model).shape == (2, CLASSES)

    def test_frames_that_do_not_fit_the_patches_are_refused(self, tmp_path):
        write(tmp_path, processor=processor(crop_size=18))
        assert_parts(refusal(tmp_path), "preprocessor_config.json", "18 x 18", "patch_size 4")
        assert load(tmp_path, config={"image_size": 16}).config.height == 16

    def test_missing_processor_gives_the_library_defaults_and_a_note(self, tmp_path):
        model = self.loaded(tmp_path, None)
        assert model.preprocessing.mean == (0.485, 0.456, 0.406)
        assert model.preprocessing.short_side is None
        (note,) = model.notes
        assert_parts(note, "no preprocessor_config.json", "0.485", "0.225")

    def test_missing_processor_for_other_channels_gives_unit_preprocessing(self, tmp_path):
        state = weights(channels=1)
        model = load(write(tmp_path, {"num_channels": 1}, processor=None, state=state))
        assert model.preprocessing == Preprocessing.unit(1)
        assert_parts(model.notes[0], "no preprocessor_config.json", "1 channels")

    def test_video_preprocessor_config_is_read(self, tmp_path):
        write(tmp_path, processor=None)
        entries = {**PROCESSOR, "image_mean": [0.1] * 3}
        (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(entries))
        assert load(tmp_path).preprocessing.mean == (0.1,) * 3

    @pytest.mark.parametrize(
        ("entries", "parts"),
        [
            ({"size": {"longest_edge": 16}}, ["size", "longest_edge", "shortest_edge"]),
            ({"size": {"shortest_edge": 16, "longest_edge": 20}}, ["size", "longest_edge"]),
            ({"size": "16"}, ["size", "'16'"]),
            ({"size": 0}, ["size", "0"]),
            ({"crop_size": {"height": 16}}, ["crop_size", "'height': 16"]),
            ({"crop_size": [16, 16, 16]}, ["crop_size"]),
            ({"crop_size": []}, ["crop_size"]),
            ({"image_mean": [0.5, "x", 0.5]}, ["image_mean", "'x'"]),
            ({"image_mean": [0.5, float("nan"), 0.5]}, ["image_mean", "nan"]),
            ({"image_mean": [0.5], "image_std": [0.5]}, ["got 1 means", "3 channels"]),
            ({"image_mean": [0.5]}, ["got 1 and 3"]),
            ({"image_std": [0.0] * 3}, ["std must be positive"]),
            ({"rescale_factor": 0}, ["rescale_factor", "got 0"]),
            ({"rescale_factor": "1/255"}, ["rescale_factor", "1/255"]),
        ],
        ids=str,
    )
    def test_invalid_processor_is_refused(self, tmp_path, entries, parts):
        assert_parts(refusal(write(tmp_path, processor=processor(**entries))), *parts)


@pytest.mark.parametrize("family", [None, "huggingface", "facebookresearch"])
def test_model_saved_in_our_own_format_is_restored(tmp_path, family):
    write(tmp_path, {"layer_norm_eps": 1e-3}, processor(size={"shortest_edge": 20}))
    model = load(tmp_path)
    save_checkpoint(model, tmp_path / "own.safetensors")
    again = load(tmp_path / "own.safetensors", family=family)
    assert again.config == model.config
    assert again.labels == model.labels
    assert again.preprocessing == model.preprocessing
    assert again.preprocessing.short_side == 20
    assert torch.equal(run(again), run(model))


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("single_label_classification", "single-label"),
        ("multi_label_classification", "multi-label"),
        ("regression", "regression"),
        (None, "single-label"),
    ],
)
def test_problem_type_tells_what_logits_mean(tmp_path, kind, task):
    assert load_checkpoint(write(tmp_path, {"problem_type": kind})).task == task


def test_one_output_without_a_problem_type_is_a_value_and_the_notes_say_so(tmp_path):
    state = weights()
    state |= {name: state[name][:1].clone() for name in ("classifier.weight", "classifier.bias")}
    model = load_checkpoint(write(tmp_path, {"id2label": ...}, state=state))
    assert model.task == "regression"
    assert any("one output is taken as a value" in note for note in model.notes)


def test_an_unknown_problem_type_is_refused_unless_the_task_is_told(tmp_path):
    path = write(tmp_path, {"problem_type": "ranking"})
    with pytest.raises(CheckpointError, match=r"unknown problem_type of config\.json.*--config"):
        load_checkpoint(path)
    assert load_checkpoint(path, config={"task": "single-label"}).task == "single-label"

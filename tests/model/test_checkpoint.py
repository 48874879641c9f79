"""Test checkpoints: loading, inferred configurations, and one-line errors for bad files."""

import builtins
import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from model import (
    CheckpointError,
    FastTimeSformer,
    Preprocessing,
    load_checkpoint,
    save_checkpoint,
)
from model.attention import MECHANISMS
from model.config import UPSTREAM_SCHEMES

# frames, channels, height, width, classes
SIZES = (3, 3, 8, 12, 4)
SMALL = {"dim": 32, "patch_size": 4, "depth": 2, "dim_head": 16}
CLIP = {"frames": 3, "height": 8, "width": 12}  # published rotary files lack these
LONGEST_MESSAGE = 600


def make(**options: object) -> FastTimeSformer:
    torch.manual_seed(0)
    return FastTimeSformer(*SIZES, **{**SMALL, **options}).eval()


def published(**options: object) -> dict[str, torch.Tensor]:
    """Return a state dict of names and tensors only, as the published package saves it."""
    return dict(make(semantics="upstream", **options).state_dict())


def save(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def refusal(path: Path, **arguments: object) -> str:
    """Return the error message, which must be one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message.replace(str(path), "")) < LONGEST_MESSAGE
    return message


def assert_same_function(loaded: FastTimeSformer, original: FastTimeSformer) -> None:
    torch.manual_seed(1)
    video = torch.randn(2, *SIZES[:4])
    with torch.no_grad():
        assert torch.equal(loaded(video), original(video))


GRID = [(name, scheme) for name in MECHANISMS for scheme in UPSTREAM_SCHEMES]


class TestOwnFiles:
    @pytest.mark.parametrize(("mechanism", "scheme"), GRID)
    @pytest.mark.parametrize("semantics", ["paper", "upstream"])
    @pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "learned"])
    def test_saved_model_loads_without_arguments(
        self, tmp_path, mechanism, scheme, semantics, rotary
    ):
        saved = make(
            attn_mechanism=mechanism, attn_type=scheme, semantics=semantics, rotary_emb=rotary,
            drop_path=0.25,
        )  # fmt: skip
        save_checkpoint(saved, tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert loaded.config == saved.config
        assert not loaded.training
        assert_same_function(loaded, saved)

    def test_preprocessing_and_labels_are_restored(self, tmp_path):
        saved = make()
        saved.preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        saved.labels = ("run", "jump", "größer", "a, b")
        save_checkpoint(saved, tmp_path / "m.safetensors")
        loaded = load_checkpoint(str(tmp_path / "m.safetensors"))
        assert loaded.preprocessing == saved.preprocessing
        assert loaded.labels == saved.labels

    def test_file_without_labels_gives_no_labels_and_default_preprocessing(self, tmp_path):
        save_checkpoint(make(), tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert loaded.labels is None
        assert loaded.preprocessing == Preprocessing((0.0,) * 3, (1.0,) * 3)

    def test_config_replaces_labels_and_training_rates(self, tmp_path):
        saved = make()
        saved.labels = ("a", "b", "c", "d")
        save_checkpoint(saved, tmp_path / "m.safetensors")
        changed = {"labels": ["e", "f", "g", "h"], "drop_path": 0.4}
        loaded = load_checkpoint(tmp_path / "m.safetensors", config=changed)
        assert loaded.labels == ("e", "f", "g", "h")
        assert loaded.config.drop_path == 0.4

    def test_loaded_model_takes_frames_first(self, tmp_path):
        saved = make(frames_first=False)
        save_checkpoint(saved, tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert loaded.config.frames_first
        video = torch.randn(2, *SIZES[:4])
        with torch.no_grad():
            assert torch.equal(loaded(video), saved(video.transpose(1, 2)))

    def test_random_features_and_changed_heads_are_restored(self, tmp_path):
        saved = make(attn_mechanism="performer", heads=3)
        saved.blocks[0].attn_t.fn.redraw_projection_matrix(seed=77)
        save_checkpoint(saved, tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert loaded.blocks[0].attn_t.fn.heads == 3
        assert_same_function(loaded, saved)

    @pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "no suffix"])
    def test_content_and_not_the_name_decides_the_format(self, tmp_path, name):
        save_checkpoint(make(), tmp_path / name)
        assert_same_function(load_checkpoint(tmp_path / name), make())

    def test_metadata_is_json_that_safetensors_can_read(self, tmp_path):
        save_checkpoint(make(), tmp_path / "m.safetensors")
        with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
            description = json.loads(file.metadata()["tsformer"])
        assert description["family"] == "fast_timesformer"
        assert description["config"]["attn_mechanism"] == "fastformer"

    def test_half_precision_weights_load_as_float32(self, tmp_path):
        save_checkpoint(make().half(), tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert_same_function(loaded, make().half().float())

    def test_error_of_a_contradiction_names_both_values(self, tmp_path):
        save_checkpoint(make(), tmp_path / "m.safetensors")
        message = refusal(tmp_path / "m.safetensors", config={"frames": 5})
        assert "frames is 3" in message
        assert "5 was given" in message
        message = refusal(tmp_path / "m.safetensors", semantics="upstream")
        assert "'paper'" in message
        assert "'upstream'" in message

    @pytest.mark.parametrize(
        "description",
        ["[]", "5", "null", "{", '{"config": 5}', '{"config": {"frames": "x"}}',
         '{"config": {"frames": 3}}', '{"family": "other"}',
         pytest.param("[" * 100_000, id="nested deeply")],
    )  # fmt: skip
    def test_damaged_metadata_is_refused(self, tmp_path, description):
        path = tmp_path / "m.safetensors"
        save_file(published(), path, metadata={"tsformer": description})
        assert refusal(path)

    @pytest.mark.parametrize("entry", [5, {"sampling": "uniform"}], ids=str)
    def test_an_entry_that_we_do_not_write_is_ignored(self, tmp_path, entry):
        save_checkpoint(make(), tmp_path / "m.safetensors")
        with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
            description = json.loads(file.metadata()["tsformer"])
        metadata = {"tsformer": json.dumps({**description, "clip": entry})}
        save_file(make().state_dict(), tmp_path / "other.safetensors", metadata=metadata)
        assert load_checkpoint(tmp_path / "other.safetensors").preprocessing == Preprocessing()


class TestOwnStateDicts:
    """A file of `torch.save(model.state_dict())` must load as our model, not as a published one."""

    WRAPS: dict[str, Callable[[nn.Module], object]] = {  # noqa: RUF012
        "bare": lambda model: model.state_dict(),
        "wrapped": lambda model: {"state_dict": model.state_dict(), "epoch": 3},
        "parallel": lambda model: nn.DataParallel(model).state_dict(),
        "parallel, wrapped": lambda model: {"model": nn.DataParallel(model).state_dict()},
    }

    @pytest.mark.parametrize("wrap", WRAPS)
    @pytest.mark.parametrize("semantics", ["paper", "upstream"])
    def test_state_dict_loads_as_the_saved_model(self, tmp_path, wrap, semantics):
        original = make(semantics=semantics)
        path = save(tmp_path / "m.pth", self.WRAPS[wrap](original))
        loaded = load_checkpoint(path, config=CLIP)
        assert loaded.config == original.config
        assert_same_function(loaded, original)

    def test_state_dict_loads_without_config(self, tmp_path):
        path = save(tmp_path / "m.pth", make().state_dict())
        assert load_checkpoint(path).config == make().config


class TestPublishedFiles:
    @pytest.mark.parametrize(("mechanism", "scheme"), GRID)
    @pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "learned"])
    def test_values_in_the_file_are_inferred(self, tmp_path, mechanism, scheme, rotary):
        options = {"attn_mechanism": mechanism, "attn_type": scheme, "rotary_emb": rotary}
        path = save(tmp_path / "m.pth", published(**options))
        untold = {"height": 8, "width": 12}
        if rotary:  # only learned positions give the frames
            untold["frames"] = 3
        if not rotary and mechanism == "regular":  # no frequencies or weights give dim_head
            assert "dim_head" in refusal(path, config=untold)
            untold["dim_head"] = 16
        loaded = load_checkpoint(path, config=untold)
        assert loaded.config == make(**options, semantics="upstream").config
        assert_same_function(loaded, make(**options, semantics="upstream"))

    @pytest.mark.parametrize(("channels", "told"), [(3, {}), (1, {}), (4, {"channels": 4}),
                                                    (4, {"patch_size": 4})])  # fmt: skip
    def test_channels_and_patch_size_are_inferred(self, tmp_path, channels, told):
        torch.manual_seed(0)
        original = FastTimeSformer(3, channels, 8, 12, 4, **SMALL, semantics="upstream")
        path = save(tmp_path / "m.pth", dict(original.state_dict()))
        config = load_checkpoint(path, config={**CLIP, **told}).config
        assert (config.channels, config.patch_size) == (channels, 4)

    @pytest.mark.parametrize("semantics", [None, "upstream", "paper"])
    def test_semantics_are_upstream_by_default(self, tmp_path, semantics):
        path = save(tmp_path / "m.pth", published())
        loaded = load_checkpoint(path, "fast_timesformer", CLIP, semantics)
        assert loaded.config.semantics == (semantics or "upstream")
        assert_same_function(loaded, make(semantics=semantics or "upstream"))

    @pytest.mark.parametrize(
        ("wrapper", "prefix"),
        [
            (None, "module."),
            (None, "_orig_mod."),
            ("state_dict", ""),
            ("model_state_dict", "module."),
            ("model_state", "_orig_mod.module."),
            ("model", "module._orig_mod."),
            ("module", "module."),
        ],
    )
    def test_wrappers_and_prefixes_are_removed(self, tmp_path, prefix, wrapper):
        state = {prefix + name: tensor for name, tensor in published().items()}
        content = state if wrapper is None else {wrapper: state, "epoch": 3, "lr": 0.1}
        path = save(tmp_path / "m.pt", content)
        assert_same_function(load_checkpoint(path, config=CLIP), make(semantics="upstream"))

    def test_tensors_beside_the_wrapper_are_ignored(self, tmp_path):
        content = {"loss": torch.tensor(0.3), "state_dict": published(), "step": torch.tensor(7)}
        path = save(tmp_path / "m.pth", content)
        assert_same_function(load_checkpoint(path, config=CLIP), make(semantics="upstream"))

    def test_file_in_the_format_before_zip_loads(self, tmp_path):
        path = save(tmp_path / "m.pth", published(), _use_new_zipfile_serialization=False)
        assert_same_function(load_checkpoint(path, config=CLIP), make(semantics="upstream"))

    def test_safetensors_without_our_metadata_loads(self, tmp_path):
        save_file(published(), tmp_path / "m.safetensors", metadata={"format": "pt"})
        loaded = load_checkpoint(tmp_path / "m.safetensors", config=CLIP)
        assert_same_function(loaded, make(semantics="upstream"))

    @pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "no suffix"])
    def test_content_and_not_the_name_decides_the_format(self, tmp_path, name):
        path = save(tmp_path / name, published())
        assert_same_function(load_checkpoint(path, config=CLIP), make(semantics="upstream"))

    def test_trained_frequencies_are_used(self, tmp_path):
        original = make(semantics="upstream")
        state = {**original.state_dict(), "frame_rot_emb.inv_freqs": torch.linspace(1, 0, 8)}
        original.load_state_dict(state)
        loaded = load_checkpoint(save(tmp_path / "m.pth", dict(state)), config=CLIP)
        assert_same_function(loaded, original)
        with pytest.raises(AssertionError):
            assert_same_function(loaded, make(semantics="upstream"))

    def test_error_of_missing_entries_names_them(self, tmp_path):
        message = refusal(save(tmp_path / "m.pth", published()))
        assert "does not tell frames, height, width" in message


CONTRADICTIONS = {
    "dim": (32, 64),
    "depth": (2, 3),
    "num_classes": (4, 5),
    "dim_head": (16, 8),
    "attn_mechanism": ("fastformer", "regular"),
    "attn_type": ("divided", "joint"),
    "rotary_emb": (True, False),
}


class TestContradictions:
    @pytest.mark.parametrize("name", CONTRADICTIONS)
    def test_error_of_a_contradiction_of_file_and_config_names_both_values(self, tmp_path, name):
        told, given = CONTRADICTIONS[name]
        path = save(tmp_path / "m.pth", published())
        message = refusal(path, config={**CLIP, name: given})
        assert f"{name} is {told!r}" in message
        assert f"{given!r} was given" in message

    def test_contradiction_of_learned_positions_and_clip_is_refused(self, tmp_path):
        path = save(tmp_path / "m.pth", published(rotary_emb=False))
        message = refusal(path, config={**CLIP, "frames": 4})
        assert "frames is 3" in message
        assert "4 was given" in message
        message = refusal(path, config={"height": 16, "width": 20})
        assert "pos_emb.weight" in message
        assert "16 x 20" in message

    def test_contradiction_of_patch_embedding_and_config_is_refused(self, tmp_path):
        path = save(tmp_path / "m.pth", published())
        message = refusal(path, config={**CLIP, "channels": 3, "patch_size": 2})
        assert "patch_size is 4" in message
        assert "2 was given" in message
        message = refusal(path, config={**CLIP, "channels": 2})
        assert "project_in.weight of shape (32, 48)" in message
        assert "channels 2" in message

    @pytest.mark.parametrize(
        ("config", "parts"),
        [
            ({"framess": 3}, ["'framess'", "did you mean 'frames'"]),
            ({"height": 10}, ["height", "multiple of patch_size 4", "got 10"]),
            ({"frames": 0}, ["frames", "at least 1", "got 0"]),
            ({"frames": "3"}, ["frames", "got '3'"]),
            ({"semantics": "papr"}, ["'papr'", "did you mean 'paper'"]),
            ({"labels": ["a", "b"]}, ["labels", "got 2", "expected 4"]),
            ({"labels": 5}, ["labels", "got 5"]),
            ({"labels": "abcd"}, ["labels", "got 'abcd'"]),
            ({"preprocessing": {"mean": [0.5]}}, ["preprocessing", "mean and std"]),
            ({"preprocessing": {"mean": [0.5], "std": [0.5]}}, ["got 1", "3 channels"]),
            ({"preprocessing": {"mean": [0.5] * 3, "std": [0.5]}}, ["got 3 and 1"]),
            ({"preprocessing": {"mean": [0.5] * 3, "std": [0.0] * 3}}, ["std must be positive"]),
            ({"preprocessing": {"mean": 0.5, "std": 0.5}}, ["preprocessing", "0.5"]),
            ({"drop_path": "0.1"}, ["drop_path", "got '0.1'"]),
        ],
        ids=str,
    )
    def test_invalid_config_is_refused(self, tmp_path, config, parts):
        path = save(tmp_path / "m.pth", published())
        message = refusal(path, config={**CLIP, **config})
        assert [part for part in parts if part not in message] == []

    def test_error_of_an_unknown_family_names_the_nearest_one(self, tmp_path):
        path = save(tmp_path / "m.pth", published())
        message = refusal(path, family="fast_timesfromer", config=CLIP)
        assert "'fast_timesfromer'" in message
        assert "did you mean 'fast_timesformer'" in message


class Payload:
    """An object whose unpickling opens a file for writing."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return builtins.open, (str(self.marker), "w")


class TestCodeInFiles:
    @pytest.mark.parametrize("name", ["m.pth", "m.pt", "m.safetensors"])
    @pytest.mark.parametrize("form", ["torch", "torch, old", "pickle", "beside the weights"])
    def test_code_in_a_file_is_refused_and_not_run(self, tmp_path, name, form):
        marker, path = tmp_path / "ran", tmp_path / name
        payload = Payload(marker)
        if form == "pickle":
            path.write_bytes(pickle.dumps(payload))
        elif form == "beside the weights":
            save(path, {"state_dict": published(), "args": payload})
        else:
            save(path, payload, _use_new_zipfile_serialization=form == "torch")
        message = refusal(path, family="fast_timesformer", config=CLIP)
        assert not marker.exists()
        assert "could run code: nothing was run" in message

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_payload_runs_under_plain_pickle(self, tmp_path):
        """The test above is meaningful: plain pickle runs the same payload."""
        buffer = io.BytesIO(pickle.dumps(Payload(tmp_path / "ran")))
        pickle.load(buffer).close()
        assert (tmp_path / "ran").exists()

    def test_pickled_module_is_refused(self, tmp_path):
        message = refusal(save(tmp_path / "m.pth", nn.Linear(2, 2)))
        assert "Python objects" in message
        assert "state_dict" in message


class TestBadFiles:
    def test_missing_file_is_refused(self, tmp_path):
        assert "No such file" in refusal(tmp_path / "none.pth")

    def test_directory_is_refused(self, tmp_path):
        assert "directory" in refusal(tmp_path)

    @pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
    def test_empty_file_is_refused(self, tmp_path, name):
        (tmp_path / name).touch()
        assert "empty" in refusal(tmp_path / name)

    @pytest.mark.parametrize("text", ["hello\n", "state_dict = {}\n" * 100, "{}", "12345678{", "€"])
    @pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
    def test_text_file_is_refused(self, tmp_path, name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert "not a whole" in refusal(tmp_path / name)

    @pytest.mark.parametrize("form", ["m.pth", "old.pth"])
    def test_the_reason_of_a_truncated_file_is_a_plain_sentence(self, tmp_path, form):
        path = save(tmp_path / form, published(), _use_new_zipfile_serialization=form == "m.pth")
        path.write_bytes(path.read_bytes()[:-200])
        said = f"{path} is not a whole PyTorch file of weights: it begins as one, but the rest is"
        assert refusal(path).startswith(f"{said} damaged or missing; copy or download it again")
        path.write_bytes(b"hello")
        assert "weights: it does not begin as one; copy" in refusal(path)

    @pytest.mark.slow
    @pytest.mark.parametrize("cut", [1, 9, 100, 0.2, 0.5, 0.9, -100, -1])
    @pytest.mark.parametrize("form", ["m.pth", "old.pth", "m.safetensors"])
    def test_truncated_file_is_refused(self, tmp_path, form, cut):
        path = tmp_path / form
        if form == "m.safetensors":
            save_checkpoint(make(), path)
        else:
            save(path, published(), _use_new_zipfile_serialization=form == "m.pth")
        whole = path.read_bytes()
        assert load_checkpoint(path, config=CLIP).config.dim == 32
        path.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
        assert refusal(path, config=CLIP)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nan_or_infinite_weights_are_refused(self, tmp_path, value):
        state = published()
        state["blocks.1.mlp.norm.weight"][3] = value
        message = refusal(save(tmp_path / "m.pth", state), config=CLIP)
        assert "NaN or infinite" in message
        assert "blocks.1.mlp.norm.weight" in message

    def test_refusal_gives_no_warnings(self, tmp_path, recwarn):
        """PyTorch warns about pickles of other programs; the refusal suppresses these warnings."""
        (tmp_path / "m.pth").write_bytes(pickle.dumps({"state_dict": [1, 2]}, protocol=4))
        assert refusal(tmp_path / "m.pth")
        assert list(recwarn) == []

    @pytest.mark.parametrize("content", [[1, 2], 5, "text", torch.zeros(3), {}, {"epoch": 3},
                                         {"state_dict": {}}, {"model": {"model": 3}}])  # fmt: skip
    def test_file_without_weights_is_refused(self, tmp_path, content):
        assert "no weights" in refusal(save(tmp_path / "m.pth", content))

    def test_weights_of_another_model_are_refused(self, tmp_path):
        path = save(tmp_path / "m.pth", nn.Linear(2, 2).state_dict())
        assert "no known family: got keys bias, weight" in refusal(path)
        assert refusal(path, family="fast_timesformer", config=CLIP)

    def test_missing_weights_are_refused(self, tmp_path):
        state = published()
        del state["blocks.0.fc_t.bias"]
        message = refusal(save(tmp_path / "m.pth", state), config=CLIP)
        assert "lacks weights: blocks.0.fc_t.bias" in message

    def test_unknown_weights_are_refused(self, tmp_path):
        state = {**published(), **{f"extra.{number}": torch.zeros(1) for number in range(5)}}
        message = refusal(save(tmp_path / "m.pth", state), config=CLIP)
        assert "unknown weights: extra.0, extra.1, extra.2 and 2 more" in message

    @pytest.mark.parametrize(
        "name", ["blocks.0.attn_s.fn.to_qkv.weight", "to_out.fn.bias", "image_rot_emb.scales"]
    )
    def test_error_of_a_wrong_shape_names_got_and_expected(self, tmp_path, name):
        state = published()
        expected = tuple(state[name].shape)
        state[name] = torch.zeros(7, 3)
        message = refusal(save(tmp_path / "m.pth", state), config=CLIP)
        assert f"{name} has the wrong shape: got (7, 3), expected {expected}" in message

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [name for name in published() if name.count(".") < 4])
    @pytest.mark.parametrize("shape", [(), (0,), (5,), (1, 2, 3)], ids=str)
    def test_any_wrong_shape_is_refused(self, tmp_path, name, shape):
        state = published()
        state[name] = torch.zeros(shape)
        assert refusal(save(tmp_path / "m.pth", state), config=CLIP)

    def test_gap_in_the_block_numbers_is_refused(self, tmp_path):
        state = {name.replace("blocks.1.", "blocks.2."): t for name, t in published().items()}
        message = refusal(save(tmp_path / "m.pth", state), config=CLIP)
        assert "blocks are not numbered" in message

    def test_state_dict_with_foreign_metadata_is_refused(self, tmp_path):
        state = OrderedDict(published())
        state._metadata = {"": {"config": "no configuration"}}
        assert refusal(save(tmp_path / "m.pth", state), config=CLIP)


class TestSaving:
    def test_save_replaces_an_old_file(self, tmp_path):
        path = tmp_path / "m.safetensors"
        save_checkpoint(make(depth=1), path)
        save_checkpoint(make(), path)
        assert load_checkpoint(path).config.depth == 2
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("stage", ["write_bytes", "replace"])
    def test_failed_save_leaves_only_the_old_file(self, tmp_path, monkeypatch, stage):
        path = tmp_path / "m.safetensors"
        save_checkpoint(make(), path)
        whole = path.read_bytes()

        def fail(partial: Path, _: object) -> None:
            with partial.open("wb") as file:
                file.write(whole[:100])
            raise OSError("no space left")

        monkeypatch.setattr(Path, stage, fail)
        with pytest.raises(OSError, match="no space left"):
            save_checkpoint(make(depth=1), path)
        assert path.read_bytes() == whole
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    def test_failed_save_onto_a_directory_leaves_no_file(self, tmp_path):
        (tmp_path / "m").mkdir()
        with pytest.raises(OSError, match="directory"):
            save_checkpoint(make(), tmp_path / "m")
        assert [entry.name for entry in tmp_path.iterdir()] == ["m"]

    def test_save_does_not_change_the_model(self, tmp_path):
        trained = make().train()
        save_checkpoint(trained, tmp_path / "m.safetensors")
        assert trained.training
        assert all(parameter.requires_grad for parameter in trained.parameters())

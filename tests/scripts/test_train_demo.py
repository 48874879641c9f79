import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from model import FastTimeSformer, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "scripts" / "checkpoints"
MECHANISMS = ("fastformer", "performer", "regular")
FRESH_SEED = (
    10**6
)  # the script trains with seeds from 1 to its number of steps, and holds out seed 0
CHANCE = 1 / 8
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.spec_from_file_location(
            "train_demo", ROOT / "scripts" / "train_demo.py"
        )
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "train_demo", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module", autouse=True)
def settings():
    """Undo the settings that the script makes for its process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def trained():
    return {
        name: load_checkpoint(CHECKPOINTS / f"motion-{name}.safetensors") for name in MECHANISMS
    }


@pytest.fixture(scope="module")
def fresh(script, trained):
    """Make clips that no checkpoint has seen, and their labels."""
    return script.labelled_clips(trained["regular"], 256, FRESH_SEED)


def tiny(script):
    model = FastTimeSformer(3, 3, 32, 32, 8, dim=32, dim_head=16, depth=1, drop_path=0.0)
    model.preprocessing, model.labels = script.PREPROCESSING, script.MOTION_LABELS
    return model


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.slow
class TestCommitted:
    def test_a_checkpoint_is_small_and_has_its_configuration(self, script, trained, mechanism):
        model = trained[mechanism]

        assert (CHECKPOINTS / f"motion-{mechanism}.safetensors").stat().st_size < 1_000_000
        assert model.config == script.build(mechanism, seed=0).config
        assert model.config.attn_mechanism == mechanism
        assert model.labels == script.MOTION_LABELS
        assert model.preprocessing == script.PREPROCESSING

    def test_the_record_has_enough_clips_and_a_high_accuracy(self, script, mechanism):
        result = json.loads((CHECKPOINTS / "motion.json").read_text())[mechanism]

        assert result["accuracy"] >= script.REQUIRED_ACCURACY
        assert result["held_out_clips"] >= 1024
        assert not 1 <= result["held_out_seed"] <= result["steps"]
        assert result["seconds"] < 300
        assert result["steps"] == script.RECIPES[mechanism].steps < FRESH_SEED
        assert {"seed", "torch", "date", "cpu", "cores"} <= result.keys()

    @pytest.mark.slow
    def test_new_clips_are_classified_correctly(self, script, trained, fresh, mechanism):
        assert script.accuracy(trained[mechanism], *fresh) >= 0.95

    def test_reversed_clips_get_the_opposite_direction(self, script, trained, fresh, mechanism):
        clips, labels = fresh
        names = [name.split() for name in script.MOTION_LABELS]
        turned = [script.MOTION_LABELS.index(f"{OPPOSITE[way]} {speed}") for way, speed in names]

        assert (
            script.accuracy(trained[mechanism], clips.flip(1), torch.tensor(turned)[labels]) > 0.9
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("frame", [0, 4])
    def test_a_single_frame_gives_chance_accuracy(self, script, trained, fresh, mechanism, frame):
        clips, labels = fresh
        still = clips[:, frame : frame + 1].expand_as(clips)

        assert abs(script.accuracy(trained[mechanism], still, labels) - CHANCE) < 0.07

    def test_shuffled_frames_hide_the_direction(self, script, trained, fresh, mechanism):
        clips, labels = fresh
        orders = torch.rand(clips.shape[:2], generator=torch.Generator().manual_seed(0)).argsort(1)
        shuffled = torch.stack([clip[order] for clip, order in zip(clips, orders, strict=True)])

        # An order is as likely as its reverse, which swaps opposite directions. Axis and speed may
        # still be visible, so the expected accuracy is at most 0.5. The margin is 3 sigma.
        assert script.accuracy(trained[mechanism], shuffled, labels) < 0.5 + 0.1


@pytest.mark.slow
def test_training_reduces_the_loss(script, monkeypatch):
    torch.manual_seed(0)
    model, recipe = tiny(script), script.Recipe(steps=40)
    same = script.labelled_clips(model, 8, seed=1)
    monkeypatch.setattr(script, "batches", lambda _model, recipe: [same] * recipe.steps)
    monkeypatch.setattr(script, "LOG_EVERY", 1)
    losses = [loss for _, loss, _ in script.train(model, recipe)]

    assert len(losses) == 40
    assert losses[-1] < 0.5 * losses[0]


def test_training_again_gives_the_same_weights(script):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        model = tiny(script)
        list(script.train(model, script.Recipe(steps=4, batch=8)))
        states.append(model.state_dict())

    for name, weight in states[0].items():
        assert torch.equal(weight, states[1][name]), name


def test_batches_do_not_repeat_and_exclude_held_out_clips(script):
    model = tiny(script)
    held_out, _ = script.labelled_clips(model, 8, script.HELD_OUT_SEED)
    got = [clips for clips, _ in script.batches(model, script.Recipe(steps=3, batch=8))]

    assert len(got) == 3
    every = torch.cat((*got, held_out)).flatten(1)
    assert len(every.unique(dim=0)) == 32


def test_a_model_below_the_required_accuracy_is_saved_and_exits_with_1(
    script, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(script.RECIPES, "regular", script.Recipe(steps=10, batch=2))
    monkeypatch.setattr(script, "HELD_OUT_CLIPS", 16)
    (tmp_path / "motion.json").write_text('{"performer": {"accuracy": 1.0}}')

    assert script.main(["regular", "--out", str(tmp_path)]) == 1

    results = json.loads((tmp_path / "motion.json").read_text())
    assert list(results) == ["performer", "regular"]
    assert results["regular"]["accuracy"] < 0.95
    assert load_checkpoint(tmp_path / "motion-regular.safetensors").labels == script.MOTION_LABELS
    assert "held out" in capsys.readouterr().out


def test_an_unknown_mechanism_is_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["linear"])

    assert "got linear, expected regular, performer, fastformer" in capsys.readouterr().err

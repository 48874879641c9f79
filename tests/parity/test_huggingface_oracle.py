"""Save directories with Hugging Face transformers, run them in both packages, and compare.

transformers is only a test dependency: our package reads its directories without it.
"""

import json
import os
import random
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from exporter.inputs.colour import CONVERSION
from exporter.inputs.video import read_clip
from model import TimeSformerViT, load_checkpoint

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers reads it at import

from transformers import TimesformerConfig, TimesformerForVideoClassification
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.utils import logging

pytestmark = pytest.mark.slow  # the published package runs beside ours

logging.disable_progress_bar()

# Relative L2 distance of the logits to those of transformers in float64.
FP32_LIMIT = 1e-5
FP64_LIMIT = 1e-9

ACTIVATIONS = ("gelu", "relu", "selu", "gelu_new")
DIVIDED, JOINT, SPACE = "divided_space_time", "joint_space_time", "space_only"


def configuration(number: int, **options: object) -> dict:
    """Return a small config with sizes drawn from `number`; activations and kinds alternate."""
    draw = random.Random(number)
    heads, patch = draw.choice((1, 2, 3, 5)), draw.choice((3, 4, 5, 8))
    hidden = heads * draw.choice((4, 6, 7, 11))
    return {
        "image_size": patch * draw.randint(2, 5),
        "patch_size": patch,
        "num_channels": draw.choice((1, 3, 3, 4)),
        "num_frames": draw.choice((1, 2, 3, 5, 7)),
        "hidden_size": hidden,
        "num_hidden_layers": draw.randint(1, 4),
        "num_attention_heads": heads,
        "intermediate_size": draw.choice((hidden, 3 * hidden + 1, 50)),
        "hidden_act": ACTIVATIONS[number % 4],
        "layer_norm_eps": draw.choice((1e-6, 1e-12, 1e-3)),
        "qkv_bias": number % 3 != 0,
        "attention_type": (DIVIDED, JOINT)[number // 4 % 2],
        "num_labels": draw.choice((2, 5, 11)),
        **options,
    }


CASES = {f"{number}-{DIVIDED if number // 4 % 2 == 0 else JOINT}": number for number in range(16)}


def make(entries: dict) -> TimesformerForVideoClassification:
    """Build a model whose every parameter has an effect: none keeps its initial zero or one."""
    torch.manual_seed(0)
    # The documentation of transformers lists selu, but its table of activations lacks it.
    known = entries if entries.get("hidden_act") != "selu" else {**entries, "hidden_act": "gelu"}
    theirs = TimesformerForVideoClassification(TimesformerConfig(**known)).eval()
    if known is not entries:
        theirs.config.hidden_act = "selu"
        for layer in theirs.timesformer.encoder.layer:
            layer.intermediate.intermediate_act_fn = torch.nn.SELU()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            norm = "layernorm" in name and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.3)
    return theirs


def both(path: Path, entries: dict, **config: object) -> tuple:
    """Return the transformers model in float64, and our model of its saved directory."""
    theirs = make(entries)
    theirs.save_pretrained(path)
    ours = load_checkpoint(path, config=config)
    assert isinstance(ours, TimeSformerViT)
    return theirs.double(), ours


def clips(ours: TimeSformerViT) -> Tensor:
    config = ours.config
    torch.manual_seed(1)
    return torch.randn(2, config.frames, config.channels, config.height, config.width)


def rel_l2(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_cases_cover_all_kinds():
    drawn = [configuration(number) for number in CASES.values()]
    assert len(drawn) >= 12
    combinations = {(entry["hidden_act"], entry["attention_type"]) for entry in drawn}
    assert len(combinations) == 2 * len(ACTIVATIONS)
    assert {entry["qkv_bias"] for entry in drawn} == {True, False}
    assert {entry["num_channels"] for entry in drawn} == {1, 3, 4}
    assert len({entry["layer_norm_eps"] for entry in drawn}) == 3
    assert any(entry["intermediate_size"] % entry["hidden_size"] for entry in drawn)
    assert any(entry["image_size"] % 2 for entry in drawn)


@pytest.mark.parametrize("number", CASES.values(), ids=CASES)
def test_logits_equal_the_transformers_logits(tmp_path, number):
    theirs, ours = both(tmp_path, configuration(number))
    video = clips(ours)
    truth = theirs(video.double()).logits
    assert rel_l2(ours(video), truth) <= FP32_LIMIT
    ours.double()
    assert rel_l2(ours(video.double()), truth) <= FP64_LIMIT
    ours.get_parameter("blocks.0.attn_s.fn.to_qkv.weight")[-1, 0] += 0.1  # the check can fail
    assert rel_l2(ours(video.double()), truth) > 10 * FP64_LIMIT


@pytest.mark.parametrize(
    "entries",
    [
        *({"hidden_act": name} for name in ("gelu_pytorch_tanh", "gelu_fast", "quick_gelu")),
        *({"hidden_act": name} for name in ("silu", "tanh")),
        {"image_size": [15, 20], "patch_size": 5},
        {"image_size": [20, 15], "patch_size": 5, "attention_type": JOINT},
        {"drop_path_rate": 1},
    ],
    ids=str,
)
def test_further_entries_of_the_configuration_give_the_same_logits(tmp_path, entries):
    theirs, ours = both(tmp_path, configuration(2, **entries))
    if "image_size" in entries:  # the library accepts a pair, but its forward divides a number
        theirs.config.image_size = entries["image_size"][1]
    video = clips(ours).double()
    assert rel_l2(ours.double()(video), theirs(video).logits) <= FP64_LIMIT


@pytest.mark.parametrize("number", range(4))
def test_space_only_averages_the_frames_of_the_transformers_encoder(tmp_path, number):
    """The original averages the frames before the last norm; transformers keeps a row a frame."""
    entries = configuration(number, attention_type=SPACE, num_frames=3)
    theirs, ours = both(tmp_path, entries)
    video = clips(ours)
    assert len(theirs(video.double()).logits) == 2 * 3
    tokens = theirs.timesformer.encoder(theirs.timesformer.embeddings(video.double()))[0]
    frames = tokens.unflatten(0, (2, 3))  # b f n d
    truth = theirs.classifier(theirs.timesformer.layernorm(frames.mean(1))[:, 0])
    assert rel_l2(ours(video), truth) <= FP32_LIMIT
    assert rel_l2(ours.double()(video.double()), truth) <= FP64_LIMIT
    assert [note for note in ours.notes if "space_only" in note]


@pytest.mark.parametrize("kind", [DIVIDED, JOINT])
@pytest.mark.parametrize("grid", [(6, 6), (3, 3), (2, 3), (5, 9), (7, 3)])
def test_resized_positions_give_the_transformers_logits(tmp_path, kind, grid):
    entries = configuration(1, attention_type=kind, image_size=15, patch_size=5)
    height, width = 5 * grid[0], 5 * grid[1]
    theirs, ours = both(tmp_path, entries, height=height, width=width)
    video = clips(ours)
    assert video.shape[-2:] == (height, width)
    truth = theirs(video.double()).logits
    assert rel_l2(ours(video), truth) <= FP32_LIMIT
    assert rel_l2(ours.double()(video.double()), truth) <= FP64_LIMIT
    note = f"positions resized from 3 x 3 to {grid[0]} x {grid[1]} patches"
    assert (note in ours.notes) == (grid != (3, 3))


@pytest.mark.parametrize("options", [{"max_shard_size": "2KB"}, {"max_shard_size": "5GB"}])
def test_shards_give_the_transformers_logits(tmp_path, options):
    theirs = make(configuration(2))
    theirs.save_pretrained(tmp_path, **options)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or options["max_shard_size"] == "5GB"
    ours = load_checkpoint(tmp_path)
    video = clips(ours)
    assert rel_l2(ours(video), theirs.double()(video.double()).logits) <= FP32_LIMIT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_give_the_transformers_logits(tmp_path, dtype):
    theirs = make(configuration(3)).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path)
    video = clips(ours)
    assert rel_l2(ours(video), theirs.double()(video.double()).logits) <= FP32_LIMIT


def test_defaults_equal_the_transformers_defaults(tmp_path):
    """Entries and labels that config.json lacks get the defaults of the transformers class."""
    small = {
        "image_size": 16, "patch_size": 8, "hidden_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 3, "intermediate_size": 20,
    }  # fmt: skip
    theirs, full = both(tmp_path, small)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "timesformer", **small}))
    ours = load_checkpoint(tmp_path)
    assert ours.config == full.config
    assert ours.labels == tuple(theirs.config.id2label.values()) == ("LABEL_0", "LABEL_1")
    video = clips(ours)
    assert rel_l2(ours(video), theirs(video.double()).logits) <= FP32_LIMIT


def test_labels_equal_the_transformers_labels(tmp_path):
    names = {number: f"act {number}" for number in (3, 11, 0, 10, 1, 2, 9, 4, 5, 6, 7, 8)}
    theirs, ours = both(tmp_path, configuration(5, num_labels=12, id2label=names))
    assert ours.labels == tuple(theirs.config.id2label[number] for number in range(12))


# --- real clips -----------------------------------------------------------------------------------

MEAN, STD = [0.45, 0.4, 0.35], [0.225, 0.25, 0.2]
PROCESSORS = {
    "crop of the short side": {"size": {"shortest_edge": 32}},
    # The width is 84.7 here, and transformers rounds it down.
    "crop of 32 out of 36": {"size": {"shortest_edge": 36}},
    "crop of 32 out of 57": {"size": {"shortest_edge": 57}},
    "of other range": {"size": {"shortest_edge": 36}, "rescale_factor": 1 / 127.5},
    "unscaled": {"size": {"shortest_edge": 36}, "do_rescale": False},
    "not normalised": {"size": {"shortest_edge": 36}, "do_normalize": False},
}


def frames_of(path: Path, indices: tuple[int, ...]) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        images = [
            frame.reformat(format="rgb24", interpolation=CONVERSION).to_ndarray()
            for index, frame in enumerate(container.decode(video=0))
            if index in indices
        ]
    assert len(images) == len(indices)
    return images


@pytest.mark.parametrize(
    ("clip", "entries"),
    [("bikes", list(PROCESSORS.values())[1]), *(("carphone", e) for e in PROCESSORS.values())],
    ids=["bikes", *PROCESSORS],
)
def test_real_clip_gives_the_transformers_pixels_and_logits(real_clips, tmp_path, clip, entries):
    processor = VideoMAEImageProcessorPil(
        crop_size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD, **entries
    )
    processor.save_pretrained(tmp_path)
    theirs, ours = both(
        tmp_path, configuration(1, image_size=32, patch_size=8, num_frames=3, num_channels=3)
    )
    config = ours.config
    read = read_clip(
        real_clips[clip],
        frames=config.frames,
        height=config.height,
        width=config.width,
        preprocessing=ours.preprocessing,
    )
    given = processor(frames_of(real_clips[clip], read.indices), return_tensors="np")
    pixels = np.asarray(given["pixel_values"])
    assert pixels.shape == read.array.shape
    # transformers rounds to whole gray levels after each of the two passes of its resize.
    level = np.array(ours.preprocessing.std).reshape(3, 1, 1) * 255
    assert np.abs((read.array - pixels) * level).max() <= 1.5
    assert np.abs((read.array - pixels) * level).mean() <= 0.35

    same = torch.from_numpy(read.array)
    truth = theirs(same.double()).logits
    assert rel_l2(ours(same), truth) <= FP32_LIMIT
    assert rel_l2(ours.double()(same.double()), truth) <= FP64_LIMIT
    assert ours.notes == ()

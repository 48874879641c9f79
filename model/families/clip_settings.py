"""What the settings of a file tell about its clips: sampling, views, size before the crop.

facebookresearch and SlowFast write a `cfg` (`DATA.SAMPLING_RATE`, `TEST.NUM_SPATIAL_CROPS`);
OpenMMLab writes its pipelines as Python text (`SampleFrames`, `ThreeCrop`); others write a rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from model.config import ClipConfig, ConfigError
from model.families.file_settings import Settings
from model.sampling import CROPS, Sampling, Views

_RATES = ("sampling_rate", "frame_interval", "frame_stride", "frame_sample_rate")
_HIGHEST_RATE = 1000  # a higher one is that of a sound
_FRAMES_PER_SECOND = ("target_fps",)
_SOMETHING = ("ssv2", "something")  # datasets whose loader takes segments of the whole file
_PAST_END = {"loop": "loop", "repeat_last": "clamp"}
_AVERAGES = {"prob": "probabilities", "score": "logits"}


def read_clip_settings(
    settings: Settings, config: ClipConfig, rules: Sampling
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return entries of `Preprocessing` that the settings tell, and a note for each.

    `rules` is the sampling of the family's loader: the settings tell its numbers only.
    """
    steps = _steps(settings)
    told, notes = (
        _of_pipeline(steps, config, settings.value("average_clips"))
        if "SampleFrames" in steps
        else ({}, ())
    )
    if not told:
        told, notes = _of_loader(settings, config, rules)
    if (sampling := told.get("sampling")) and (spacing := sampling.spacing(config.frames)):
        told["spacing"] = spacing
    return told, notes


def _steps(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Collect the steps of all pipelines by their type: `dict(type='SampleFrames', ...)`."""
    calls: dict[str, dict[str, Any]] = {}
    for path, value in settings.values.items():
        parent, _, name = path.rpartition(".")
        calls.setdefault(parent, {})[name] = value
    steps: dict[str, list[dict[str, Any]]] = {}
    for call in calls.values():
        if isinstance(kind := call.get("type"), str):
            steps.setdefault(kind, []).append(call)
    return steps


def _of_pipeline(
    steps: Mapping[str, list[dict[str, Any]]], config: ClipConfig, average: object
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read the test pipeline of OpenMMLab, or that of the training if there is no other."""
    every = steps["SampleFrames"]
    tests = [step for step in every if step.get("test_mode") is True]
    step = (tests or every)[-1]  # validation and test may differ; the test comes last
    length, interval = step.get("clip_len", 0), step.get("frame_interval", 1)
    clips, past = step.get("num_clips", 1), step.get("out_of_bound_opt", "loop")
    if length == 1 and clips == config.frames:  # segments of the whole file
        sampling, clips = Sampling("uniform", "centres"), 1
    else:
        place = {"rate": interval, "past_end": _PAST_END.get(str(past), "loop")}
        sampling = _valid(Sampling("dense", "steps", place="centre"), place)
    if sampling is None:
        return {}, ()
    told: dict[str, Any] = {"sampling": sampling}
    entries = {
        "clips": clips if tests else 1,
        "crops": 3 if "ThreeCrop" in steps else 1,
        "average": _AVERAGES.get(str(average), "probabilities"),
    }
    if views := _valid(Views(), entries):
        told["views"] = views
    return told, tuple(f"{name} {value} by its SampleFrames" for name, value in told.items())


def _of_loader(
    settings: Settings, config: ClipConfig, rules: Sampling
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read the `cfg` of facebookresearch and SlowFast, or a bare rate."""
    told: dict[str, Any] = {}
    notes: list[str] = []
    fps = settings.number(_FRAMES_PER_SECOND)
    dataset = settings.text("train.dataset")
    if dataset and any(word in dataset.value.lower() for word in _SOMETHING):
        told["sampling"] = Sampling("uniform", "middles")
        notes.append(f"sampling {told['sampling']} by {dataset.where} {dataset.value}")
    rate = settings.number(_RATES)
    if rate and rate.value <= _HIGHEST_RATE and "sampling" not in told:
        entries = {"kind": "dense", "rate": rate.value, "fps": fps.value if fps else rules.fps}
        if sampling := _valid(rules, entries):
            told["sampling"] = sampling
            notes.append(f"sampling {sampling} by {rate.where}")
    crops = settings.number(("num_spatial_crops",))
    clips = settings.number(("num_ensemble_views",))
    if crops and clips and crops.value in CROPS:
        told["views"] = Views(min(clips.value, 100), crops.value)
        notes.append(f"views {told['views']} by {clips.where} and {crops.where}")
        if side := _short_side(settings, config, crops.value):
            told["short_side"] = side
    if settings.value("reverse_input_channel") in (True, "true"):
        told["channel_order"] = "bgr"
    return told, tuple(notes)


def _short_side(settings: Settings, config: ClipConfig, crops: int) -> int | None:
    """Return the shorter side before the crop: with three crops, it is that of the crop."""
    crop, scales = settings.number(("test_crop_size",)), settings.value("train_jitter_scales")
    if crop is None:
        return None
    side = crop.value
    if crops == 1 and isinstance(scales, list) and scales and type(scales[0]) is int:
        side = max(scales[0], side)
    return max(1, round(side * min(config.height, config.width) / crop.value))


def _valid(base: Any, entries: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return the description, or None if the file has values that are not valid."""
    try:
        return replace(base, **entries)
    except ConfigError:
        return None

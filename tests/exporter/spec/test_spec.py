import dataclasses
import json
from pathlib import Path

import pytest

from exporter import BatchProfile, ExportSpec
from exporter.errors import UsageError
from exporter.spec import REWRITE_NAMES

REFUSED = {
    "unknown mechanism": ({"attn": "fastfomer"}, "did you mean 'fastformer'?"),
    "unknown scheme": ({"scheme": "dividet"}, "joint, divided"),
    "unknown semantics": ({"semantics": "published"}, "paper, upstream"),
    "unknown precision": ({"precision": "fp8"}, "fp32"),
    "unknown engine": ({"engine": "trt"}, "auto, rtx, tensorrt, none"),
    "unknown target": ({"targets": ("sm86", "sm90")}, "'sm90'"),
    "no clips": ({"batch": 0}, "--batch: got 0, expected 1 to 4,096"),
    "batch above the profile": (
        {"batch": 9, "dynamic_batch": BatchProfile(1, 4, 8)},
        "got 9, expected 1 to 8",
    ),
    "batch below the profile": (
        {"batch": 1, "dynamic_batch": BatchProfile(2, 4, 8)},
        "got 1, expected 2 to 8",
    ),
    "opset without bf16": (
        {"opset": 21, "precision": "bf16"},
        "--opset: got 21, expected 22 to 23",
    ),
    "mask and labels": ({"eval": "motion", "mask": True}, "labelled clips come without masks"),
    "an engine for ONNX Runtime": (
        {"runtimes": ("onnxruntime",), "engine": "rtx"},
        "--engine rtx needs tensorrt in --for",
    ),
    "a graph for TVM": ({"runtimes": ("tvm",)}, "onnxruntime, openvino, tensorrt"),
    "nothing to keep": ({"keep_fp32": ("blocks",)}, "choose fp16, bf16 or int8"),
    "nothing to calibrate": (
        {"calibration": ("a.mp4",), "precision": "fp16"},
        "choose --precision",
    ),
    "opset too old": ({"opset": 15}, "--opset: got 15, expected 16 to 23"),
    "opset unknown": ({"opset": 24}, "--opset: got 24, expected 16 to 23"),
    "no threads": ({"threads": 0}, "--threads: got 0, expected 1 to 512"),
    "a crash of torch": ({"threads": 10**8}, "--threads: got 100000000, expected 1 to 512"),
    "no rate": ({"sampling": "dense:0"}, "--sampling: rate of the sampling: got 0"),
    "no crops": ({"views": "1x0"}, "--views: crops of the views: got 0"),
    "no average": ({"views": "1x1:best"}, "--views: unknown average of the views: got 'best'"),
    "negative time": ({"bench_seconds": -1.0}, "--bench-seconds: got -1.0"),
    "time that is no number": ({"bench_seconds": float("nan")}, "--bench-seconds: got nan"),
    "endless time": ({"bench_seconds": float("inf")}, "--bench-seconds: got inf"),
    "more than a day": (
        {"bench_seconds": 1e99},
        "--bench-seconds: got 1e+99, expected 0 to 86,400",
    ),
    "no rewrites, as a tuple": ({"rewrite": ()}, "rewrite: got (), expected a text"),
    "seed beyond 64 bits": ({"seed": 2**64}, "--seed"),
    "config without checkpoint": ({"config": {"frames": 5}}, "add --checkpoint PATH"),
    "Turing in fp32": ({"targets": ("sm75",)}, "omit sm75"),
}


@pytest.mark.parametrize(("values", "words"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_is_not_valid_is_refused_with_the_expected_one(values, words):
    with pytest.raises(UsageError) as caught:
        ExportSpec(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_turing_is_refused_among_other_targets():
    with pytest.raises(UsageError, match="sm75"):
        ExportSpec(targets=("sm86", "sm75", "sm89"))


@pytest.mark.parametrize(
    "profile", [(0, 1, 1), (2, 1, 3), (1, 4, 3), (-1, 0, 1), ("1", 2, 3), (1, 1.5, 2)]
)
def test_a_profile_must_be_whole_and_in_order(profile):
    with pytest.raises(UsageError, match="1 <= MIN <= OPT <= MAX"):
        BatchProfile(*profile)


@pytest.mark.parametrize(
    "text",
    [
        *("", "4", "1:4", "1:4:8:16", "1:x:4", "1:-2:4", " 1:2:4", "1:2:4\n"),
        pytest.param("1:2:" + "9" * 5000, id="long"),
    ],
)
def test_text_that_is_not_a_profile_is_refused(text):
    with pytest.raises(UsageError, match="MIN:OPT:MAX"):
        BatchProfile.parse(text)


def test_a_profile_is_parsed():
    assert BatchProfile.parse("1:4:16") == BatchProfile(1, 4, 16)
    assert BatchProfile.parse("3:3:3") == BatchProfile(3, 3, 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 1),
        ({"batch": 3}, 3),
        ({"dynamic_batch": BatchProfile(1, 4, 8)}, 4),
        ({"dynamic_batch": BatchProfile(1, 4, 8), "batch": 8}, 8),
    ],
)
def test_the_batch_of_a_run_is_batch_or_opt_or_1(values, expected):
    assert ExportSpec(**values).run_batch == expected


def test_a_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExportSpec().attn = "regular"


FULL = ExportSpec(
    model="timesformer_pytorch",
    mask=True,
    embed_preprocess=True,
    outputs=("features", "tokens"),
    attn="performer",
    res=(96, 160),
    scheme="joint",
    frames=7,
    channels=1,
    num_classes=3,
    task="multi-label",
    sampling="dense:4@30",
    views="1x3",
    dim=64,
    depth=2,
    heads=2,
    dim_head=32,
    patch_size=8,
    semantics="upstream",
    checkpoint=Path("trained.pth"),
    weights="ema",
    no_store_clips=True,
    config={"rotary_emb": True, "height": 96},
    batch=2,
    dynamic_batch=BatchProfile(1, 2, 4),
    precision="int8",
    keep_fp32=(r"blocks\.0", "project_in"),
    calibration=(Path("clips"),),
    rewrite="none",
    optimize_for="tensorrt",
    no_rewrite=("fold_fc",),
    opset=21,
    runtimes=("tensorrt",),
    engine="rtx",
    targets=("sm86", "sm89"),
    video=(Path("a.mp4"), Path("b c.mp4")),
    seed=7,
    allow_ill_conditioned=True,
    threads=2,
    bench_seconds=1.5,
)


@pytest.mark.parametrize("spec", [ExportSpec(), FULL], ids=["default", "full"])
def test_a_spec_is_equal_after_json(spec):
    assert ExportSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_full_spec_has_no_field_at_its_default():
    default = ExportSpec()
    same = {
        f.name
        for f in dataclasses.fields(FULL)
        if getattr(FULL, f.name) == getattr(default, f.name)
    }
    assert same == {"eval"}  # a mask excludes it


def test_fields_that_a_report_adds_are_ignored():
    values = {**FULL.to_dict(), "checkpoint_sha256": "0123"}
    assert ExportSpec.from_dict(values) == FULL


def test_strings_become_paths_and_one_clip_becomes_a_tuple():
    spec = ExportSpec(checkpoint="a.pth", video="b.mp4")

    assert spec.checkpoint == Path("a.pth")
    assert spec.video == (Path("b.mp4"),)
    assert ExportSpec(video=["a.mp4", "b.mp4"]).video == (Path("a.mp4"), Path("b.mp4"))


@pytest.mark.parametrize("res", [512, (512,), [512, 512], "512"])
def test_a_resolution_that_is_not_a_pair_is_refused(res):
    with pytest.raises(UsageError, match=r"expected \(height, width\)"):
        ExportSpec(res=res)


def test_the_rewrite_names_are_those_of_the_table():
    from exporter.rewrite import REWRITES

    assert tuple(REWRITES) == REWRITE_NAMES


@pytest.mark.parametrize(
    ("runtimes", "engine", "wanted"),
    [
        ((), "auto", "auto"),
        ((), "none", "none"),
        (("tensorrt",), "none", "none"),
        (("onnxruntime", "tensorrt"), "rtx", "rtx"),
        (("onnxruntime",), "auto", "none"),
    ],
)
def test_an_engine_is_wanted_where_tensorrt_is_a_runtime(runtimes, engine, wanted):
    assert ExportSpec(runtimes=runtimes, engine=engine).wanted_engine == wanted


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"frames": "4"}, "frames: got '4', expected a whole number or None"),
        ({"frames": True}, "frames: got True, expected a whole number or None"),
        ({"seed": 1.5}, "seed: got 1.5, expected a whole number"),
        ({"res": (32.5, 32)}, "res: got (32.5, 32), expected (height, width) or None"),
        ({"res": (32, 32, 32)}, "res: got (32, 32, 32), expected (height, width) or None"),
        ({"bench_seconds": "1"}, "bench_seconds: got '1', expected a number"),
        ({"mask": "yes"}, "mask: got 'yes', expected True or False"),
        ({"checkpoint": b"x"}, "checkpoint: got b'x', expected a path or None"),
        ({"video": 1}, "video: got 1, expected a tuple of paths"),
        ({"outputs": [1]}, "outputs: got [1], expected a tuple of texts"),
        ({"dynamic_batch": "1:2:4"}, "dynamic_batch: got '1:2:4', expected a BatchProfile or None"),
        ({"views": (1, 3)}, "views: got (1, 3), expected a text or None"),
        ({"config": "{}"}, "config: got '{}', expected a mapping"),
    ],
)
def test_a_value_of_another_type_is_refused_where_it_is_given(values, said):
    with pytest.raises(UsageError) as refused:
        ExportSpec(**values)
    assert str(refused.value) == said


def test_a_whole_number_is_also_a_number_and_a_path_also_a_text():
    spec = ExportSpec(bench_seconds=1, eval=Path("clips"), checkpoint="a.pth")
    assert (spec.bench_seconds, spec.eval, spec.checkpoint) == (1, "clips", Path("a.pth"))

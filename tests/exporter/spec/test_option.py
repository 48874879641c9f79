import dataclasses
from pathlib import Path

import pytest
from cyclopts import App

from exporter.cli.export import ExportOptions, export
from exporter.errors import UsageError
from exporter.spec import MODEL_ARGUMENTS, OF_THE_GRAPH, OPTIONS, ExportSpec
from exporter.spec.option import (
    BatchProfile,
    Choices,
    check_choices,
    check_precision,
    document,
    option,
    options_of,
)


@document
@dataclasses.dataclass(frozen=True)
class Tea:
    """How to make tea."""

    kind: str | None = option(None, "Kind: green\nor black.", choices=Choices("kind", ("green",)))
    extras: tuple[str, ...] = option((), "Extras.", choices=Choices("extra", ("milk", "lemon")))
    cups_at_once: int = option(1, "Cups.", precisions=("fp16", "int8"), graph=1)
    notes: dict = option({}, "Notes.", flag="note", precisions=("int8",))


OF_TEA = options_of(Tea)


# One value of each option that is not its default, and the options that the value needs.
GIVEN = {
    "model": "facebookresearch",
    "attn": "regular",
    "res": (32, 48),
    "scheme": "joint",
    "frames": 3,
    "channels": 1,
    "batch": 2,
    "num_classes": 7,
    "task": "multi-label",
    "sampling": "dense:4@30",
    "views": "1x3",
    "dim": 32,
    "depth": 1,
    "heads": 2,
    "dim_head": 16,
    "patch_size": 8,
    "checkpoint": Path("a.pth"),
    "weights": "ema",
    "config": {"eps": 1e-6},
    "semantics": "upstream",
    "video": [Path("a.mp4"), Path("b.mp4")],
    "mask": True,
    "embed_preprocess": True,
    "outputs": ("features", "hidden-states"),
    "eval": "motion",
    "rewrite": "none",
    "no_rewrite": ["fold_fc"],
    "optimize_for": "tensorrt",
    "precision": "fp16",
    "keep_fp32": ["blocks.0"],
    "calibration": [Path("clips")],
    "dynamic_batch": BatchProfile(1, 2, 4),
    "opset": 21,
    "runtimes": ("tensorrt",),
    "engine": "none",
    "targets": ("sm86",),
    "no_store_clips": True,
    "allow_ill_conditioned": True,
    "threads": 1,
    "bench_seconds": 2.5,
    "seed": 5,
}
NEEDED = {
    "weights": {"checkpoint": Path("a.pth")},
    "config": {"checkpoint": Path("a.pth")},
    "keep_fp32": {"precision": "fp16"},
    "calibration": {"precision": "int8"},
}


def test_options_are_read_in_the_order_of_their_fields():
    assert list(OF_TEA) == ["kind", "extras", "cups_at_once", "notes"]


def test_a_flag_is_the_name_with_hyphens_by_default():
    assert [declared.flag for declared in OF_TEA.values()] == [
        "kind",
        "extras",
        "cups-at-once",
        "note",
    ]


def test_each_object_has_its_own_default_dict():
    assert Tea().notes == {}
    assert Tea().notes is not Tea().notes


def test_the_docstring_lists_every_option_on_one_line():
    assert "\nArgs:\n    kind (str | None): Kind: green or black.\n" in Tea.__doc__
    assert Tea.__doc__.startswith("How to make tea.\n\n")


@pytest.mark.parametrize(
    ("tea", "words"),
    [
        (Tea(kind="greem"), "did you mean 'green'?"),
        (Tea(extras=("milk", "lemno")), "did you mean 'lemon'?"),
        (Tea(extras=["salt"]), "milk, lemon"),
    ],
)
def test_a_value_that_is_not_a_choice_is_refused(tea, words):
    with pytest.raises(UsageError) as caught:
        check_choices(tea, OF_TEA)
    assert words in str(caught.value)


@pytest.mark.parametrize("tea", [Tea(), Tea(kind="green", extras=("milk", "lemon"))])
def test_a_value_that_is_a_choice_is_accepted(tea):
    check_choices(tea, OF_TEA)


def test_an_option_of_some_precisions_is_refused_at_another():
    with pytest.raises(UsageError, match=r"--cups-at-once .* --precision fp32.*fp16 or int8"):
        check_precision(Tea(), OF_TEA, "fp32")
    with pytest.raises(UsageError, match=r"--note .* --precision fp16.*choose --precision int8"):
        check_precision(Tea(notes={"a": 1}), OF_TEA, "fp16")
    check_precision(Tea(notes={"a": 1}), OF_TEA, "int8")
    check_precision(Tea(cups_at_once=0), OF_TEA, "fp32")  # 0 means that the option is not set


def test_the_metadata_of_a_graph_keeps_its_order():
    # model.onnx contains this order, so a new option of the graph takes the next place.
    assert " ".join(OF_THE_GRAPH) == (
        "model attn scheme res frames channels num_classes dim depth heads dim_head patch_size "
        "semantics batch dynamic_batch mask embed_preprocess precision keep_fp32 rewrite "
        "no_rewrite optimize_for opset seed"
    )


def test_the_options_of_the_graph_have_distinct_places():
    places = sorted(declared.graph for declared in OPTIONS.values() if declared.graph)
    assert places == list(range(1, len(OF_THE_GRAPH) + 1))


def test_the_model_arguments_are_the_common_options_of_all_families():
    assert " ".join(MODEL_ARGUMENTS) == (
        "attn scheme frames channels num_classes dim depth heads dim_head patch_size semantics"
    )


def test_the_command_line_has_every_option_of_a_spec_once():
    arguments = App(default_command=export).assemble_argument_collection()
    names = [name for argument in arguments for name in argument.names]
    assert [names.count(f"--{declared.flag}") for declared in OPTIONS.values()] == [1] * len(
        OPTIONS
    )


def test_no_options_make_the_default_spec():
    assert ExportOptions().to_spec() == ExportSpec()


def test_every_option_sets_its_field_of_the_spec():
    assert set(GIVEN) == set(OPTIONS)
    for name, value in GIVEN.items():
        needed = NEEDED.get(name, {})
        made = ExportOptions(**{name: value}, **needed).to_spec()
        wanted = tuple(value) if isinstance(value, list) else value
        assert getattr(made, name) == wanted
        assert getattr(ExportSpec(**{name: wanted}, **needed), name) == wanted
        assert getattr(ExportSpec(**needed), name) != wanted


@pytest.mark.parametrize("name", ["targets", "no_rewrite", "keep_fp32"])
def test_one_word_stands_for_several(name):
    word = GIVEN[name][0]
    needed = NEEDED.get(name, {})
    assert getattr(ExportSpec(**{name: word}, **needed), name) == (word,)


def test_output_takes_names_of_outputs_and_one_directory():
    options = ExportOptions(output=["features,tokens", "build/x"], outputs=("logits",))
    assert options.directory == Path("build/x")
    assert options.to_spec().outputs == ("logits", "features", "tokens")
    assert ExportOptions(output=["./features"]).directory == Path("features")
    assert ExportOptions(output=["./features"]).to_spec().outputs == ()


def test_two_directories_are_refused():
    with pytest.raises(UsageError, match="--output is given twice"):
        _ = ExportOptions(output=["a", "b"]).directory

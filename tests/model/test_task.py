"""Test what logits mean: by the checkpoint, by the number of outputs, and by the user."""

import pytest

from exporter import ExportSpec
from exporter.errors import UsageError
from exporter.load import load_model
from model import FastTimeSformer, load_checkpoint, save_checkpoint
from model.config import ConfigError
from model.task import TASK_NAMES, assume_task, check_task

SMALL = {"dim": 16, "dim_head": 16, "depth": 1}
SPEC = {**SMALL, "frames": 2, "res": (16, 16)}


@pytest.mark.parametrize(
    ("outputs", "task"), [(0, "regression"), (1, "regression"), (2, "single-label")]
)
def test_one_output_is_a_value_and_several_are_classes(outputs, task):
    assert assume_task(outputs) == task


def test_one_output_is_never_a_class():
    assert check_task("multi-label", 1) == "multi-label"
    with pytest.raises(ConfigError, match="at least two classes"):
        check_task("single-label", 1)
    with pytest.raises(ConfigError, match="did you mean 'multi-label'"):
        check_task("multilabel", 3)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_our_own_files_keep_it(task, tmp_path):
    model = FastTimeSformer(2, 3, 16, 16, 3, **SMALL)
    model.task = task
    save_checkpoint(model, tmp_path / "x.safetensors")
    assert load_checkpoint(tmp_path / "x.safetensors").task == task
    given = load_checkpoint(tmp_path / "x.safetensors", config={"task": "regression"})
    assert given.task == "regression"


def test_a_fresh_model_has_the_task_of_the_option():
    assert load_model(ExportSpec(**SPEC, num_classes=1)).task == "regression"
    assert load_model(ExportSpec(**SPEC)).task == "single-label"
    assert load_model(ExportSpec(**SPEC, task="multi-label")).task == "multi-label"
    with pytest.raises(UsageError, match="--task single-label needs at least two classes"):
        load_model(ExportSpec(**SPEC, num_classes=1, task="single-label"))

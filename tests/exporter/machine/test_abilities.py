import pytest

from exporter.errors import DoctorError
from exporter.machine.abilities import REQUIRABLE, TASKS, abilities, require
from exporter.machine.environment import Finding

ALL = ("PyTorch", "ONNX", "ONNX Runtime", "ONNX Runtime on CUDA", "TensorRT", "TensorRT-RTX")
ALL = (*ALL, "OpenVINO", "NVIDIA GPU", "Video (PyAV)")


def able(*broken):
    """The names of the tasks of a machine on which these parts do not work."""
    return {ability.name for ability in found(*broken) if not ability.missing}


def found(*broken):
    parts = [Finding(part, True, "1.0") for part in ALL if part not in broken]
    return abilities([*parts, *(Finding(p, False, "missing", f"install {p}") for p in broken)])


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ((), set()),
        (("PyTorch",), {"export"}),
        (("ONNX",), {"export"}),
        (("ONNX Runtime",), {"export", "use"}),
        (("Video (PyAV)",), {"export", "use", "openvino"}),
        (("TensorRT",), set()),
        (("TensorRT", "TensorRT-RTX"), {"build", "engine"}),
        (("ONNX Runtime on CUDA",), {"gpu"}),
        (("NVIDIA GPU",), {"gpu", "engine"}),
        (("OpenVINO",), {"openvino"}),
    ],
)
def test_a_part_that_does_not_work_takes_its_tasks_away(broken, lost):
    assert able(*broken) == set(TASKS) - lost


def test_the_requirements_are_tasks():
    assert set(REQUIRABLE) < set(TASKS)


def test_what_is_missing_is_told_once():
    everything = found("NVIDIA GPU", "OpenVINO")
    require([], everything)
    with pytest.raises(DoctorError) as caught:
        require(REQUIRABLE, everything)
    assert str(caught.value) == (
        "this machine cannot run model.onnx on the GPU or run engines or run exports in "
        "OpenVINO: got NVIDIA GPU: missing, OpenVINO: missing; install NVIDIA GPU, install OpenVINO"
    )
    assert caught.value.exit_code == 4


def test_remedies_follow_one_another():
    (gpu,) = (a for a in found("NVIDIA GPU", "ONNX Runtime on CUDA") if a.name == "gpu")
    assert gpu.remedies == "install NVIDIA GPU, then install ONNX Runtime on CUDA"

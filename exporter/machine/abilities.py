"""Findings of `doctor` -> what this machine can be used for, and what is missing for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exporter.errors import DoctorError
from exporter.machine.environment import Finding

GPU, CUDA = "NVIDIA GPU", "ONNX Runtime on CUDA"
ANY_TENSORRT = ("TensorRT-RTX", "TensorRT")  # one of them is enough
# Name -> the task, and what it needs: parts of `doctor`, or a choice of parts.
TASKS: Mapping[str, tuple[str, Sequence[str | tuple[str, ...]]]] = {
    "export": ("make exports", ("PyTorch", "ONNX", "ONNX Runtime", "Video (PyAV)")),
    "use": ("prove, time and use exports", ("ONNX Runtime", "Video (PyAV)")),
    "build": ("build engines", (ANY_TENSORRT,)),
    "gpu": ("run model.onnx on the GPU", (GPU, CUDA)),
    "engine": ("run engines", (GPU, ANY_TENSORRT)),
    "openvino": ("run exports in OpenVINO", ("OpenVINO", "Video (PyAV)")),
}
REQUIRABLE = ("gpu", "engine", "openvino")


@dataclass(frozen=True)
class Ability:
    """A task of this machine, and the findings that keep it from it."""

    name: str
    task: str
    missing: tuple[Finding, ...]

    @property
    def remedies(self) -> str:
        """What to do, in words."""
        return ", then ".join(dict.fromkeys(f.remedy for f in self.missing if f.remedy))


def abilities(findings: Iterable[Finding]) -> list[Ability]:
    """Tell for every task whether the findings allow it (pure)."""
    by_part = {finding.part: finding for finding in findings}
    made = []
    for name, (task, needs) in TASKS.items():
        missing = (_missing(need, by_part) for need in needs)
        made.append(Ability(name, task, tuple(found for found in missing if found)))
    return made


def _missing(need: str | tuple[str, ...], findings: Mapping[str, Finding]) -> Finding | None:
    """The finding that stands against a need; of a choice, the first one."""
    choice = (need,) if isinstance(need, str) else need
    found = [findings[part] for part in choice if part in findings]
    return None if not found or any(finding.works for finding in found) else found[0]


def require(names: Iterable[str], found: Iterable[Ability]) -> None:
    """Raise unless this machine has the named abilities.

    Raises:
        DoctorError: with the parts that are missing.
    """
    lacking = [ability for ability in found if ability.name in names and ability.missing]
    if lacking:
        parts = dict.fromkeys(f for ability in lacking for f in ability.missing)
        raise DoctorError(
            f"this machine cannot {' or '.join(ability.task for ability in lacking)}",
            got=", ".join(f"{finding.part}: {finding.found}" for finding in parts),
            remedy=", ".join(dict.fromkeys(f.remedy for f in parts if f.remedy)) or None,
        )

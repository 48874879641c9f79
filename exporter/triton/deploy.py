"""An export -> models of a Triton Inference Server repository, beside the models already there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError, OutputError, ParityError
from exporter.files.machines import read_machines
from exporter.files.manifest import read_manifest
from exporter.files.staging import ENTRY_MARK, MANIFEST, StagedEntries
from exporter.triton.config import LABELS, TritonModel
from exporter.triton.plan import FILES, SUFFIXES, Deployment, Serving, plan


def deploy(
    directory: Path, repository: Path, serving: Serving, *, force: bool = False
) -> Deployment:
    """Write the models of an export into a repository, beside the models already there.

    All models appear, or none. `force` replaces all models of the same name together. It also
    removes a model that this call does not write, so that the server has no old model beside the
    new ones.

    Args:
        directory: The exported directory, with its proof.
        repository: The model repository; created if missing.
        serving: The options of serving.
        force: Replace the models of the same name.

    Raises:
        NoExportError: if the directory is not an export.
        ManifestError: if the export is not complete, or was changed.
        ParityError: if the export is not proven.
        UsageError: if the options do not fit the export.
        TritonError: if Triton can run no file of the export.
        OutputError: if the repository cannot be written, or has models of the same name already.
    """
    manifest = read_manifest(directory, needs=("report.json",))
    _require_proof(directory, manifest)
    machines = read_machines(directory, manifest)
    try:
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        deployment = plan(_of_present(directory, manifest), report, serving, machines)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"{directory} cannot be understood: {error!r}"
        raise ManifestError(what, remedy="export it again") from error
    names = [model.name for model in deployment.models]
    family = [serving.name + suffix for suffix in SUFFIXES]
    with StagedEntries(repository, names, family=family, force=force) as staged:
        try:
            for model in deployment.models:
                _write(model, directory, staged.path / model.name)
        except OSError as error:
            raise OutputError(f"cannot write {repository}: {error.strerror}") from error
        staged.publish()
    return deployment


def _of_present(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of the manifest the files that are not in the directory."""
    there = {
        name: entry for name, entry in manifest["files"].items() if (directory / name).is_file()
    }
    return {**manifest, "files": there}


def _require_proof(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse an export that is not proven, unless the user accepted that at export time."""
    verdict = manifest.get("verdict")
    accepted = verdict == "ill-conditioned" and manifest["spec"].get("allow_ill_conditioned")
    if verdict != "pass" and not accepted:
        raise ParityError(
            f"{directory} is not proven, so it is not served",
            got=f"verdict {verdict}",
            expected="pass",
            remedy=f"see {directory / 'report.html'}",
        )


def _write(model: TritonModel, directory: Path, place: Path) -> None:
    """Fill the directory of one model; copy the manifest of its export into it."""
    version = place / "1"
    version.mkdir(parents=True)
    (place / "config.pbtxt").write_text(model.config, encoding="ascii")
    shutil.copyfile(directory / MANIFEST, place / ENTRY_MARK)
    if model.labels:
        lines = "".join(f"{label}\n" for label in model.labels)
        (place / LABELS).write_text(lines, encoding="utf-8", errors="backslashreplace")
    if model.backend in FILES:
        theirs, ours = FILES[model.backend]
        shutil.copyfile(directory / theirs, version / ours)
    if model.program:
        (version / "model.py").write_text(model.program, encoding="ascii")

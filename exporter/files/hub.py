"""Models of the Hugging Face hub: download a checkpoint, upload an export.

`huggingface_hub` does both: its cache, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and its token hold here too.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from exporter.errors import (
    CheckpointInputError,
    HubError,
    TsformerError,
    UsageError,
    first_line,
)
from exporter.errors.install import missing_package

_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-][\w./-]*))?", re.ASCII)
# A path with one of these endings is a file that is missing, not the name of a repository.
_FILES = (".pth", ".pt", ".pyth", ".ckpt", ".safetensors", ".bin", ".tar", ".pdparams", ".json")
_DESCRIPTION = ("config.json", "*preprocessor_config.json", "adapter_config.json")
_SAFETENSORS = ("*model*.safetensors", "*.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin")


class HubName(NamedTuple):
    """A repository of the hub, and the branch, tag or commit that was asked for."""

    id: str
    revision: str | None


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit, in the cache of this machine."""

    name: str
    commit: str
    directory: Path

    @property
    def pinned(self) -> str:
        """The name with its commit: it means the same files for ever."""
        return f"{self.name}@{self.commit}"


def parse_name(path: Path | str) -> HubName | None:
    """Read `organisation/name[@revision]`; `None` for a path: one that exists is never a name."""
    match = _ID.fullmatch(str(path))
    if match is None or match[1].startswith(".") or str(path).lower().endswith(_FILES):
        return None
    return None if os.path.lexists(path) else HubName(match[1], match[2])


@cache  # one export reads one commit, even if the branch moves meanwhile
def fetch(name: HubName) -> Snapshot:
    """Download a model and its description into the cache, or find them there.

    Raises:
        MissingPackageError: if `huggingface_hub` is not installed.
        CheckpointInputError: if the repository cannot be read.
    """
    hub = _import_hub(f"the checkpoint {name.id}")

    def download(*patterns: str) -> Path:
        return Path(
            hub.snapshot_download(
                name.id,
                revision=name.revision,
                allow_patterns=list(patterns),
                library_name="tsformer",
            )
        )

    with _explaining(name, CheckpointInputError):
        directory = download(*_DESCRIPTION, *_SAFETENSORS)
        if not any(directory.glob("*.safetensors")):
            directory = download(*_DESCRIPTION, *_PICKLES)
    return Snapshot(name.id, directory.name, directory)


def push(
    directory: Path, repository: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Upload an export with its report, and return the address of the commit.

    Args:
        directory: An export.
        repository: `organisation/name`; it is made if it does not exist.
        private: Make it a private repository.
        revision: The branch to upload to; it is made if it does not exist.

    Raises:
        MissingPackageError: if `huggingface_hub` is not installed.
        UsageError: if the repository has no such name.
        HubError: if the hub refuses, or cannot be reached.
    """
    match = _ID.fullmatch(repository)
    if match is None or match[2]:
        raise UsageError("REPOSITORY", got=repr(repository), expected="organisation/name")
    hub = _import_hub("tsformer push")
    name = HubName(repository, revision)
    with _explaining(name, HubError):
        api = hub.HfApi(library_name="tsformer")
        api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            revision=revision,
            commit_message=f"Upload {directory.name}, exported by tsformer",
            ignore_patterns=[".*", ".*/**"],  # what a process that was killed left
        )
    return str(commit.commit_url)


def _import_hub(user: str):  # noqa: ANN202  # the module
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ModuleNotFoundError as error:
        raise missing_package("huggingface_hub", user) from error
    disable_progress_bars()  # standard error is for our own progress
    return huggingface_hub


@contextlib.contextmanager
def _explaining(name: HubName, kind: type[TsformerError]) -> Iterator[None]:
    """Turn an error of the hub, or of the network, into one line that says what to do."""
    try:
        yield
    except Exception as error:  # each version of the library has its own errors of the network
        what, remedy = _explain(name, error)
        raise kind(what, remedy=remedy) from error


def _explain(name: HubName, error: Exception) -> tuple[str, str]:
    """Say what is wrong, and what to do."""
    from huggingface_hub import constants, errors

    endpoint, id, log_in = constants.ENDPOINT, name.id, "set HF_TOKEN, or run hf auth login"
    match error:
        case errors.GatedRepoError():
            return (
                f"{id} is gated, and this machine has no access to it",
                f"ask for access on {endpoint}/{id}, then {log_in}",
            )
        case errors.RepositoryNotFoundError():
            return (
                f"{id} is neither a path here nor a repository of {endpoint} that you may read",
                f"check the name; for a private one {log_in}",
            )
        case errors.RevisionNotFoundError():
            return f"{id} has no revision {name.revision!r}", "give a branch, a tag or a commit"
        case errors.HFValidationError():
            return f"{id} is no name of the hub: {first_line(error)}", "see the names on the hub"
        case errors.HfHubHTTPError():
            denied = getattr(error.response, "status_code", 0) in (401, 403)
            return (
                f"{endpoint} refused {id}: {first_line(error)}",
                log_in if denied else "try later",
            )
        case errors.LocalEntryNotFoundError() | ConnectionError():
            here = (
                "HF_HUB_OFFLINE is set"
                if constants.HF_HUB_OFFLINE
                else f"{endpoint} does not answer"
            )
            return (
                f"{here}, and {id} is neither a path here nor in the cache of the hub",
                "go online, or give the directory of the model",
            )
    return f"{endpoint}, {id}: {type(error).__name__}: {first_line(error)}", "see --debug"

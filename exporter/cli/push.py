"""`tsformer push`: upload an export to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from exporter.cli.parsing import Flag
from exporter.cli.terminal import say, show


def push(
    directory: Path,
    repository: str,
    /,
    *,
    private: Flag = False,
    revision: str | None = None,
    debug: Flag = False,
) -> int:
    """Upload an export with its report and its model card to the Hugging Face hub.

    The card, README.md, is written anew before, with what machines recorded since the export. A
    card without its line `Written by tsformer` is yours, and stays. The repository is made if it
    does not exist. The token is that of huggingface_hub: HF_TOKEN, or the one of hf auth login.

    Examples:
        tsformer push build/mine my-name/gestures --private

    Args:
        directory: A directory that tsformer export wrote; it must be unchanged.
        repository: organisation/name on the hub.
        private: Make it a private repository.
        revision: Branch to upload to (default: main).
        debug: Show the trace of an error.
    """
    del debug
    from exporter.files.hub import push as upload
    from exporter.files.manifest import read_manifest
    from exporter.target.model_card import MODEL_CARD, write_model_card

    read_manifest(directory)
    if not write_model_card(directory, repository, revision):
        say(f"{directory / MODEL_CARD} is your own text, and is uploaded as it is", 0)
    show(upload(directory, repository, private=private, revision=revision))
    return 0

"""The options that choose the frames of a clip: their check, and the `clip` table they make."""

from __future__ import annotations

from exporter.errors import UsageError
from model.config import ConfigError
from model.sampling import Sampling, Views


def check_clip(sampling: str | None, views: str | None) -> None:
    """Raise `UsageError` unless the texts describe a sampling and views."""
    try:
        if sampling is not None:
            Sampling.parse(sampling)
        if views is not None:
            Views.parse(views)
    except ConfigError as error:
        raise UsageError(f"--{error}") from error


def clip_of(sampling: str | None, views: str | None) -> dict[str, str]:
    """Give the entries of a `clip` table that the command line sets."""
    given = {"sampling": sampling, "views": views}
    return {name: text for name, text in given.items() if text is not None}

"""Label clips on a Ray cluster with Ray Data: the same rows as here. Only this file imports `ray`.

Each worker opens the export once. Rows come back as they are finished, and are appended here; the
clips of a worker that dies are done again by another one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from exporter.errors import RuntimeFailure, TsformerError
from exporter.errors.install import missing_package
from exporter.inputs.container import THREAD_TYPE
from exporter.predict.batches import in_groups
from exporter.predict.label import Labeller, Labelling, Row, rows_of
from exporter.predict.read import read_clip_or_reason

LOCAL = "local"
_CLIPS_OF_A_BLOCK = 16  # what is lost, and done again, when a worker dies


def labeller(address: str) -> Labeller:
    """Return what labels clips on the cluster of an address; `local` starts one on this machine.

    Raises:
        MissingPackageError: if Ray is not installed.
        RuntimeFailure: if the cluster does not answer, or a worker fails.
    """
    _import_ray()

    def run(how: Labelling, clips: Sequence[str]) -> Iterator[list[Row]]:
        if clips:
            yield from _label(address, how, clips)

    return run


def _label(address: str, how: Labelling, clips: Sequence[str]) -> Iterator[list[Row]]:
    ray = _import_ray()
    # Workers start in other folders.
    here = replace(how, directory=Path(how.directory).resolve(), threads=how.threads or 1, jobs=0)
    paths = [{"clip": clip, "path": os.path.abspath(clip)} for clip in clips]  # noqa: PTH100
    try:
        _start(ray, address, how.jobs)
        blocks = -(-len(paths) // _CLIPS_OF_A_BLOCK)
        rows = ray.data.from_items(paths, override_num_blocks=blocks).map_batches(
            _Worker,
            fn_constructor_args=(here,),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=how.jobs),
            num_cpus=1,
        )
        for block in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield [_row(values) for values in block.to_pylist()]
    except TsformerError:
        raise
    except (ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[-300:]
        raise RuntimeFailure(f"Ray at {address} failed: {text}") from error
    finally:
        ray.shutdown()


def _start(ray: Any, address: str, workers: int) -> None:  # noqa: ANN401  # the module
    """Connect to a cluster, or start one here; its log files keep what it would print."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        ray.init(include_dashboard=False, num_cpus=workers, **quiet)
    else:
        ray.init(address, **quiet)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class _Worker:
    """One actor of Ray: an open export."""

    def __init__(self, how: Labelling) -> None:
        self.how, self.predictor = how, how.open()

    def __call__(self, block: dict[str, Any]) -> dict[str, list[Any]]:
        """Label the clips of one block."""
        THREAD_TYPE.set("NONE")  # there is an actor for each core
        card = self.predictor.card
        rows: list[Row] = []
        paths = (Path(str(path)) for path in block["path"])
        clips = (read_clip_or_reason(path, card.config, card.preprocessing) for path in paths)
        for group in in_groups(clips, self.predictor.batches.most):
            rows += rows_of(self.predictor, group, self.how)
        named = [
            replace(row, clip=str(name)) for row, name in zip(rows, block["clip"], strict=True)
        ]
        return {each.name: [getattr(row, each.name) for row in named] for each in fields(Row)}


def _row(values: dict[str, Any]) -> Row:
    made: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return Row(**made)


def _import_ray() -> Any:  # noqa: ANN401  # the module
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise missing_package("ray", "tsformer label --ray") from error
    return ray

"""`tsformer triton`: write an export as models of a Triton Inference Server repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.parsing import Flag, Json, Whole, WholeOrNone
from exporter.cli.terminal import show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exporter.triton.plan import Deployment


def triton(
    directory: Path,
    repository: Path,
    /,
    *,
    name: str | None = None,
    queue_delay: WholeOrNone = None,
    instances: Whole = 1,
    device: str | None = None,
    ensemble: Flag = False,
    force: Flag = False,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Write an export as models of a Triton Inference Server repository.

    NAME_onnx runs model.onnx in ONNX Runtime. NAME_trt runs the engine in TensorRT. The export
    must be proven. The command lists the models that it leaves out, with the reason. A graph that
    was not run on --device is written with a note: verify it on the server first.

    Examples:
        tsformer triton build/fastformer-divided-224x224-fp32 models

        tsformer triton build/mine models --name gestures --queue-delay 5000 --ensemble

    Args:
        directory: A directory that tsformer export wrote; it must be unchanged and proven.
        repository: The model repository; models of other names stay unchanged.
        name: Prefix of the models' names (default: the name of the directory).
        queue_delay: Longest wait for a full batch, in microseconds (default 2000).
        instances: Copies of each model that run side by side (default 1).
        device: Device of ONNX Runtime: cpu or cuda (default: cuda where it was proven, else cpu).
        ensemble: Add a model NAME that takes uint8 frames (b, f, h, w, c).
        force: Replace the models of the same name.
        json_: Print JSON instead of a table.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.triton.deploy import deploy
    from exporter.triton.plan import Serving

    serving = Serving(
        name=directory.absolute().name if name is None else name,
        queue_delay=queue_delay,
        instances=instances,
        device=device,
        ensemble=ensemble,
    )
    deployment = deploy(directory, repository, serving, force=force)
    show(_json(deployment, repository) if json_ else _table(deployment, repository))
    return 0


def _json(deployment: Deployment, repository: Path) -> str:
    models = [
        {
            "name": model.name,
            "backend": model.backend,
            "device": None if model.steps else model.device,
            "max_batch_size": model.max_batch_size,
            "preferred_batch_size": model.preferred,
            "queue_delay_microseconds": model.queue_delay if model.preferred else None,
            "instances": model.instances,
        }
        for model in deployment.models
    ]
    facts = {
        "repository": str(repository),
        "models": models,
        "left_out": deployment.left_out,
        "notes": deployment.notes,
    }
    return json.dumps(facts, indent=2)


def _table(deployment: Deployment, repository: Path) -> RenderableType:
    from rich.console import Group
    from rich.constrain import Constrain

    from exporter.report.table import WIDTH, plain, table, texts

    made = table(*texts("Model", "Backend", "Device", "Batch", "Formed", "Waits", "Instances"))
    for model in deployment.models:
        formed = ", ".join(map(str, model.preferred))
        made.add_row(
            model.name,
            model.backend,
            "-" if model.steps else model.device,
            f"up to {model.max_batch_size}" if model.max_batch_size else "fixed",
            formed or "-",
            f"{model.queue_delay / 1000:g} ms" if formed else "-",
            "-" if model.steps else str(model.instances),
        )
    lines = [f"{name} is left out: {reason}" for name, reason in deployment.left_out.items()]
    lines += [*deployment.notes, str(repository)]
    return Constrain(Group(made, *map(plain, lines)), width=WIDTH)

"""The stage `accuracy`: every runtime of an export on labelled clips."""

from __future__ import annotations

from exporter.inputs.dataset import MOTION, Dataset
from exporter.machine.cores import usable_cores
from exporter.predict.batches import Batches
from exporter.predict.evaluate import Evaluation, Subject, evaluate
from exporter.results import Accuracy
from exporter.run.job import Job
from exporter.run.stages import Stage
from exporter.runners.eager import EagerRunner
from exporter.runners.open import Opened


def measure_accuracy(
    job: Job, dataset: Dataset, opened: Opened, stage: Stage
) -> tuple[Accuracy, ...]:
    """Measure accuracy; a failure is said in the report, and never costs the export."""
    model, batch = job.model, job.spec.run_batch
    labels = model.labels or tuple(map(str, range(model.config.num_classes)))
    subject = Subject(model.config, model.preprocessing, model.task, labels)

    def on_clip(done: int, total: int, clip: str) -> None:
        stage.progress(done / total, clip)

    try:
        with EagerRunner(model, job.inputs.shapes) as eager:
            runners = (eager, *opened.for_accuracy)
            models = [("", Batches(runner, batch, batch)) for runner in runners]
            jobs = 0 if dataset.name == MOTION else usable_cores() or 1
            found = evaluate(models, subject, dataset, jobs=jobs, on_clip=on_clip)
        rows = _accuracy_rows(found)
    except Exception as error:  # the export is finished without it
        stage.failed, stage.detail = True, f"not measured: {' '.join(str(error).split())}"
        return ()
    stage.detail = f"{rows[0].clips} clips of {dataset.name}"
    if found.bad:
        stage.detail += f", {len(found.bad)} bad; the first: {found.bad[0].reason}"
    return rows


def _accuracy_rows(found: Evaluation) -> tuple[Accuracy, ...]:
    """Take the figure of each runtime by which models of its task are compared."""
    rows = []
    for row in found.judged:
        measure, value = row.metrics.main
        if value is None:
            raise ValueError(f"no clip of {found.data} gives a figure ({len(found.bad)} bad)")
        low, high = row.metrics.interval or (None, None)
        who = (row.runtime, row.device, row.precision, found.data, row.metrics.clips)
        rows.append(Accuracy(*who, value, low, high, row.agreement, measure, len(found.bad)))
    return tuple(rows)

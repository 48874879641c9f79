"""`tsformer label`: many clips to rows of a file, in parallel and resumable."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exporter.cli.parsing import Flag, Json, Output, WholeOrNone, jobs_of
from exporter.cli.terminal import counting, kept_in, progress, read_stdin, show
from exporter.errors import UsageError, VideoError
from exporter.spec import clip_of

if TYPE_CHECKING:
    from exporter.predict.label import Labelled, Labeller

ListFile = Annotated[str | None, Parameter(name="--list", allow_leading_hyphen=True)]  # - is stdin


def label(
    directory: Path,
    /,
    *clips: Path,
    output: Output = None,
    list_: ListFile = None,
    top: WholeOrNone = None,
    sampling: str | None = None,
    views: str | None = None,
    device: str = "cpu",
    threads: WholeOrNone = None,
    batch: WholeOrNone = None,
    jobs: WholeOrNone = None,
    shard: str | None = None,
    ray: str | None = None,
    features: Flag = False,
    json_: Json = False,
    quiet: Flag = False,
    debug: Flag = False,
) -> int:
    """Give each of many clips a row in a file: its classes, their scores, or why it has none.

    A run that was ended, even by a kill, goes on where it was: clips with a row are passed over.
    Rows do not depend on --jobs or --shard. Another --batch may change the last digits: see the
    guide.

    Examples:
        tsformer label build/trained archive/ -o rows.jsonl --jobs 4

        find /data -name '*.mp4' | tsformer label build/trained --list - -o rows.parquet

        tsformer label build/trained archive/ -o rows-1.jsonl --shard 1/8

        tsformer label build/features archive/ -o rows.parquet --features

    Args:
        directory: What `tsformer export` made.
        clips: Video files, and folders: the clips are the files and folders of frames below them.
        output: The file of rows: its name ends in .jsonl or .parquet.
        list_: A file with a clip on each line; - reads the list from standard input.
        top: Classes of a row, best first (default 5, or all where there are fewer).
        sampling: Frames of a clip, as uniform or dense:32@30 (default: as the export says).
        views: Views of a clip whose answers are averaged, as 1x3 (default: as the export says).
        device: cpu and cuda run model.onnx in ONNX Runtime, engine runs the TensorRT engine,
            openvino runs OpenVINO on the CPU.
        threads: Threads on the CPU (default: one for each core).
        batch: Clips of one run (default: as many as the model takes).
        jobs: Processes that read clips (default: one for each core); with --ray, workers.
        shard: Take only part i of n of the clips, as 1/8; n machines take one part each.
        ray: Address of a Ray cluster that labels the clips; local starts one here.
        features: Add a column with the features of each clip; the export must have that output.
        json_: Print the counts as JSON.
        quiet: Print nothing but errors.
        debug: Show the trace of an error.
    """
    del debug
    if output is None:
        raise UsageError("-o is missing", expected="a file that ends in .jsonl or .parquet")
    from exporter.predict.label import Labelling, find_clips, in_shard
    from exporter.predict.label import label as label_clips
    from exporter.predict.rows import log_path

    jobs = jobs_of(jobs)
    found = find_clips(clips, *_read_list(list_))
    found = in_shard(found, shard) if shard else found
    how = Labelling(
        directory,
        device=device,
        threads=threads,
        batch=batch,
        top=top,
        jobs=jobs,
        clip=clip_of(sampling, views),
        features=features,
    )
    labeller = _on_ray(ray) if ray else None
    with kept_in(log_path(output)), progress(shown=not (quiet or json_)) as on_progress:
        counted = counting("label", on_progress)
        labelled = label_clips(how, found, output, labeller=labeller, on_progress=counted)
    if json_:
        show(json.dumps(asdict(labelled)))
    elif not quiet:
        show(_summary(output, labelled))
    return 0


def _on_ray(address: str) -> Labeller:
    from exporter.predict.on_ray import labeller

    return labeller(address)


def _read_list(listed: str | None) -> tuple[str | None, Path | None]:
    """Read a list of clips; return its text, and its folder if it is a file."""
    if listed is None:
        return None, None
    if listed == "-":
        return read_stdin(), None
    try:
        text = Path(listed).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise VideoError(f"--list {listed} cannot be read: {error.strerror}") from error
    return text, Path(listed).parent


def _summary(output: Path, labelled: Labelled) -> str:
    total = labelled.before + labelled.added
    bad = f", {labelled.bad} bad" if labelled.bad else ""
    before = f" ({labelled.before:,} were there)" if labelled.before else ""
    rate = labelled.added / labelled.seconds if labelled.seconds else 0.0
    return f"{output}: {total:,} clips{before}{bad}; {rate:.1f} clips/s"

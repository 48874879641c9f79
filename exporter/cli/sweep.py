"""`tsformer sweep`: an export for every cell of a grid, none made twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from exporter.cli.export import export
from exporter.cli.parsing import Flag, Json, Output, Whole
from exporter.cli.terminal import kept_in, show, sweep_progress
from exporter.errors import ParityError, SweepError, UsageError
from exporter.report.escape import one_line
from exporter.spec import OPTIONS, ExportSpec, nearest
from exporter.spec.checks import check_count
from exporter.sweep.grid import RECIPE, Grid, name_of, read_grid, words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exporter.sweep.run import Cell

# Options that decide what is exported; all others of `export` belong to one call.
_OPTIONS = (*(declared.flag for declared in OPTIONS.values()), RECIPE)
# Options that only some precisions take: only cells of these precisions get them.
_PRECISIONS = {each.flag: each.precisions for each in OPTIONS.values() if each.precisions}


def sweep(
    file: Path | None = None,
    /,
    *,
    output: Output = None,
    jobs: Whole = 1,
    json_: Json = False,
    quiet: Flag = False,
    debug: Flag = False,
    **options: Annotated[list[str], Parameter(negative="")],
) -> int:
    """Export every cell of a grid: attention, resolution, frames, precision.

    Any option of tsformer export is an option here too; a comma list makes an
    axis of it. FILE is TOML with the same names: options of all cells in
    [base], lists of values in [axes]. A text may hold the value of another
    option, as {attn}. Options given here replace those of the file.

    What is finished is kept, and made again only if what decides it changed:
    weights, clips, options, packages, this program, the machine. So an
    interrupted sweep goes on where it was. A cell that fails is a row with its
    reason, and is tried again by the next call.

    Exit codes: 0 if all cells are proven, 5 if some are not, 4 if some failed.

    Examples:
        tsformer sweep --attn fastformer,regular --res 64,128 -o build/grid

        tsformer sweep sweep.toml --checkpoint 'runs/{attn}.pth' --jobs 2

    Args:
        file: The grid, as TOML.
        output: Directory of the sweep (default: build/ and the name of FILE, or build/sweep).
        jobs: Cells made at a time, with the threads divided; each is timed alone, with all.
        json_: Print sweep.json instead of a table.
        quiet: Print nothing but errors.
        debug: Show the trace of an error.
        options: Any option of tsformer export.
    """
    del debug
    check_count("--jobs", jobs)
    grid = (read_grid(file) if file else Grid()).with_flags(options)
    cells = _cells(grid)
    directory = output or Path("build", file.stem if file else "sweep")
    from exporter.sweep.run import sweep as run

    with kept_in(directory), sweep_progress(shown=not (quiet or json_)) as on_progress:
        found = run(grid, cells, directory, jobs=jobs, on_progress=on_progress)
    if json_:
        show((directory / "sweep.json").read_text(encoding="utf-8").rstrip())
    elif not quiet:
        show(_table(found))
        show(f"{directory}/sweep.json")
    _require_all(found["rows"], cells, directory)
    return 0


def _cells(grid: Grid) -> list[Cell]:
    """Make the cells with their specs; a cell that cannot be exported has the reason instead.

    Raises:
        UsageError: if all cells with one of the values cannot be exported: a mistake in the value.
    """
    from exporter.sweep.run import Cell

    parser = App(default_command=export, result_action="return_value")
    for name in (*grid.base, *grid.axes):
        if name not in _OPTIONS:
            closest = nearest(name, _OPTIONS)
            raise UsageError(
                f"{name} is no option of an export",
                remedy=f"did you mean {closest}?" if closest else "see tsformer export --help",
            )
    cells = []
    for values in grid.cells():
        try:
            cells.append(Cell(values, _spec(parser, grid.options(values))))
        except (UsageError, CycloptsError) as error:
            cells.append(Cell(values, None, one_line(error)))
    _refuse_mistakes(grid, cells)
    return cells


def _spec(parser: App, options: Mapping[str, Any]) -> ExportSpec:
    precision = str(options.get("precision", "fp32"))
    taken = {
        name: value
        for name, value in options.items()
        if RECIPE in options or precision in _PRECISIONS.get(name, (precision,))
    }
    _, bound, _ = parser.parse_args(words(taken), exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return bound.arguments["options"].to_spec()


def _refuse_mistakes(grid: Grid, cells: Sequence[Cell]) -> None:
    for name, values in grid.axes.items():
        for value in values:
            with_it = [cell for cell in cells if cell.values[name] == value]
            if all(cell.spec is None for cell in with_it):
                raise UsageError(f"no cell of {name} {value} can be exported: {with_it[0].problem}")
    if all(cell.spec is None for cell in cells):
        raise UsageError(cells[0].problem)


def _table(sweep: Mapping[str, Any]) -> RenderableType:
    """Make a table of 80 columns with a line for each cell, and list the reasons below it."""
    from rich.console import Group
    from rich.constrain import Constrain

    from exporter.report import mb, ms, sci
    from exporter.report.table import WIDTH, figures, marks, plain, table, texts
    from exporter.sweep.results import read_cells

    measured = figures("Error", "p50 ms", "Accuracy", "Size")
    made = table(*texts(*sweep["axes"]), *marks("Verdict"), *measured)
    reasons = []
    for row, cell in zip(sweep["rows"], read_cells(sweep["rows"]), strict=True):
        word = row["verdict"] or row["status"]
        style = {"pass": "bold green", "failed": "bold red", "fail": "bold red"}.get(word, "yellow")
        first = next(iter(cell.made), None)
        accuracy = first and first.accuracy
        made.add_row(
            *(str(value) for value in row["cell"].values()),
            plain(word, style),
            sci(first and first.error),
            ms(first and first.p50_ms),
            "-" if accuracy is None else f"{accuracy:.1%}",
            mb(first and first.bytes),
        )
        if row["reason"]:
            reasons.append(plain(f"{name_of(row['cell'])}: {row['reason']}"))
    return Constrain(Group(made, *reasons), width=WIDTH)


def _require_all(rows: Sequence[Mapping[str, Any]], cells: Sequence[Cell], place: Path) -> None:
    """Raise unless every cell is proven; cells that could not be exported come first."""
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        first = f"{name_of(failed[0]['cell'])}: {failed[0]['reason']}"
        count = f"{len(failed)} of {len(rows)} cells failed"
        raise SweepError(f"{count}, first {first}", remedy=f"see {place}/sweep.json")
    unproven = [
        row
        for row, cell in zip(rows, cells, strict=True)
        if row["verdict"] != "pass"
        and not (
            row["verdict"] == "ill-conditioned" and cell.spec and cell.spec.allow_ill_conditioned
        )
    ]
    if unproven:
        first = f"{name_of(unproven[0]['cell'])} ({unproven[0]['verdict']})"
        count = f"{len(unproven)} of {len(rows)} cells are not proven"
        raise ParityError(f"{count}, first {first}", remedy=f"see {place}")

"""`tsformer.toml`: a file with options for every command. The command line overrides it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.config import Dict

from exporter.errors import UsageError
from exporter.files.toml import read_toml
from exporter.spec import nearest
from exporter.sweep.grid import words

FILE, OPTION = Path("tsformer.toml"), "--config-file"


def take_option(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Separate `--config-file PATH` from the other arguments of a command.

    Raises:
        UsageError: if no path follows the option.
    """
    others: list[str] = []
    path = None
    given = iter(argv)
    for word in given:
        name, equals, value = word.partition("=")
        if word == "--":
            return [*others, word, *given], path
        if name != OPTION:
            others.append(word)
            continue
        value = value if equals else next(given, "")
        if not value:
            raise UsageError(f"{OPTION} has no path", remedy=f"give one: {OPTION} {FILE}")
        path = Path(value)
    return others, path


def use_options(app: App, argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Give the called command the options of the configuration file.

    Returns:
        The arguments of the call, and a line that names the file; no line with --quiet.

    Raises:
        UsageError: if an argument is empty, or the file cannot be read or contains an unknown
            command or option.
    """
    argv, path = take_option(argv)
    _refuse_empty(argv)
    app.config = ()
    commands = [name for name in app if not name.startswith("-")]
    if not argv or argv[0] not in commands or {"--help", "-h"} & {*argv}:
        return argv, None
    if path is None and not FILE.is_file():
        return argv, None
    path = path or FILE
    table = _read(app, commands, path).get(argv[0])
    if table is None:
        return argv, None
    named, _ = _names(app[argv[0]])
    known = {name: value for name, value in table.items() if name in named}
    app.config = (Dict({argv[0]: known}, source=str(path)),)
    # Options that the command does not declare are passed as words. From a file, cyclopts would
    # ignore all of them if the command line has one.
    given = {word.partition("=")[0] for word in argv}
    others = {n: v for n, v in table.items() if n not in named and f"--{n}" not in given}
    quiet = "--quiet" in argv or table.get("quiet") is True
    line = f"options of [{argv[0]}] in {path} are used"
    traced = ["--debug"] if table.get("debug") is True else []  # `main` looks for it here
    return [argv[0], *traced, *argv[1:], *words(others)], None if quiet else line


def _refuse_empty(argv: Sequence[str]) -> None:
    """Raise `UsageError` if an argument is empty: an empty path would be the current directory."""
    for before, word in itertools.pairwise(["", *argv]):
        name, equals, value = word.partition("=")
        if word and not (name.startswith("--") and equals and not value):
            continue
        what = name or (f"the argument after {before}" if before else "the first argument")
        raise UsageError(f"{what} is empty", remedy="give a value, or omit it")


def _read(app: App, commands: Sequence[str], path: Path) -> dict[str, dict[str, Any]]:
    """Read and check the tables of the file, one for each command."""
    checked = {}
    for name, table in read_toml(path, UsageError).items():
        if name not in commands or not isinstance(table, Mapping):
            raise _unknown(f"{path}: {name}", "a table named as a command", name, commands)
        checked[name] = _check(f"{path}: [{name}]", table, app[name])
    return checked


def _check(where: str, table: Mapping[str, Any], command: App) -> dict[str, Any]:
    names, takes_any = _names(command)
    checked = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in names and not takes_any:
            raise _unknown(f"{where} {key}", "an option of this command", name, names)
        if value == "":
            raise UsageError(f"{where} {key} is empty", remedy="give a value, or omit it")
        checked[name] = json.dumps(value) if isinstance(value, Mapping) else value
    return checked


def _names(command: App) -> tuple[list[str], bool]:
    """Return the options that a command declares, and whether it accepts other options."""
    arguments = command.assemble_argument_collection()
    every = [name for argument in arguments for name in argument.names]
    names = [name.removeprefix("--") for name in every if name.startswith("--")]
    return names, any(a.field_info.kind is a.field_info.VAR_KEYWORD for a in arguments)


def _unknown(what: str, expected: str, name: str, options: Sequence[str]) -> UsageError:
    closest = nearest(name, [option for option in options if option != name])
    hint = f"did you mean {closest}?" if closest else f"there are {', '.join(options)}"
    return UsageError(what, expected=expected, remedy=hint)

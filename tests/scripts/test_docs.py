"""Test the guide: generated parts are up to date, commands exist, and it builds strictly."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from exporter.cli import app
from exporter.cli.config_file import take_option

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
COMMANDS = [name for name in app if not name.startswith("-")]
OPTIONS_OF_ALL = {"--help", "-h", "--version", "--install-completion", "--config-file"}
# Words that stand for a value of the reader.
PLACEHOLDERS = {"COMMAND", "[OPTIONS]"}


def fenced(text, languages):
    """Yield the code blocks in these languages."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language in languages:
            yield block


def shown_commands():
    """Yield every `tsformer COMMAND ...` of the blocks and the text, with its page."""
    for page, text in TEXTS.items():
        lines = [line for block in fenced(text, ("sh", "console")) for line in block.splitlines()]
        commands = [line.removeprefix("$ ") for line in lines]
        commands += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
        for command in commands:
            words = shlex.split(command, comments=True) if command.startswith("tsformer ") else []
            if words and not PLACEHOLDERS & {*words}:
                yield page, words[1:]


def options_of(command):
    arguments = app[command].assemble_argument_collection()
    names = {name for argument in arguments for name in argument.names if name.startswith("-")}
    return names | (options_of("export") if command == "sweep" else set()) | OPTIONS_OF_ALL


def test_generated_parts_are_up_to_date(script):
    pages, docs = script("pages"), script("docs")
    blocks = docs.blocks()
    assert [p for p, text in TEXTS.items() if pages.fill(text, blocks, docs.SCRIPT) != text] == []
    together = "".join(TEXTS.values())
    assert [name for name in blocks if f"<!-- /{name} -->" not in together] == []


def test_the_guide_describes_every_command_and_option():
    page = TEXTS["docs/commands.md"]
    for command in COMMANDS:
        (section,) = re.findall(rf"^## {command}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
        named = set(re.findall(r"`(--?[a-z][a-z0-9-]*)`", section))
        arguments = app[command].assemble_argument_collection()
        shown = [name for a in arguments if a.show for name in a.names]
        names = {name for name in shown if re.fullmatch(r"--?[a-z][a-z0-9-]*", name)}
        assert names - named == set()


@pytest.mark.slow
def test_commands_in_the_guide_exist():
    shown = list(shown_commands())
    assert len(shown) > 50
    for page, (command, *rest) in shown:
        if command in OPTIONS_OF_ALL:
            continue
        assert command in COMMANDS, (page, command)
        named = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert named <= options_of(command), (page, command)


@pytest.mark.slow
def test_command_lines_in_the_guide_are_valid():
    for page, text in TEXTS.items():
        for block in fenced(text, ("sh", "console")):
            for line in block.splitlines():
                if line.removeprefix("$ ").startswith("tsformer "):
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                    argv, _ = take_option(words[1:])
                    called, bound, _ = app.parse_args(argv, exit_on_error=False, print_error=False)
                    options = next(iter(bound.arguments.values()), None)
                    if called.__name__ == "export" and options.recipe is None:
                        assert options.to_spec(), (page, line)


def test_options_in_the_text_exist():
    known = set.union(*map(options_of, COMMANDS))
    known |= {
        "--strict",
        "--record",
        "--gpus",
        "--shm-size",
        "--OPTION",
    }  # options of other programs
    for page, text in TEXTS.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`]+)`", prose):
            named = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", code))
            assert named <= known, (page, code)


def test_scripts_and_make_targets_in_the_text_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page, text in TEXTS.items():
        for name in re.findall(r"\b((?:scripts|exporter|model|tests|examples)/[\w/.]+\w)", text):
            assert "NAME" in name or (ROOT / name).exists(), (page, name)
        for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page, target)


def test_code_blocks_are_well_formed():
    for text in TEXTS.values():
        for block in fenced(text, ("toml",)):
            tomllib.loads(block)
        for block in fenced(text, ("json",)):
            json.loads(block)
        for block in fenced(text, ("py", "python")):
            ast.parse(block)


def test_links_between_files_have_targets():
    for page, text in TEXTS.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            name, _, anchor = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.is_file(), (page, target)
            if anchor:
                assert anchor in anchors(path.read_text(encoding="utf-8")), (page, target)


def anchors(text):
    """Make the anchors of the headings as GitHub and MkDocs do."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", line).strip().lower()) for line in headings}


@pytest.mark.slow
def test_the_guide_builds_strictly_and_loads_nothing_from_outside(tmp_path):
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    # Do not pass --quiet: it hides warnings, and --strict counts only visible ones.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(?!INFO ).+", done.stderr, re.MULTILINE) == []

    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in tmp_path.glob("*.html")}
    for path in tmp_path.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        fetched = re.findall(
            r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"?(\S+)", html
        )
        assert [url for url in fetched if re.match(r"(?:https?:)?//", url)] == [], path
    for path in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\W?(?:https?:)?//", path.read_text(encoding="utf-8")), path
    api = (tmp_path / "python.html").read_text(encoding="utf-8")
    assert "FastTimeSformer" in api
    assert "dynamic_batch" in api
    assert (tmp_path / "images" / "figure.svg").is_file()

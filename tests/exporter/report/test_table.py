"""The one table of the terminal: foreign text in it is shown, never interpreted."""

import io

import pytest
from rich.console import Console

from exporter.report.table import figures, marks, plain, plain_line, table, texts

HOSTILE = "\x1b[31mred\u202e [bold]x[/bold] :smile:"
SHOWN = "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER} [bold]x[/bold] :smile:"


def printed(what, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(what)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_cells_and_headings_show_foreign_text_as_it_is():
    made = table(*texts(HOSTILE))
    made.add_row(HOSTILE)
    out = "\n".join(printed(made))
    assert out.count(SHOWN) == 2
    assert "\x1b" not in out


def test_figures_are_set_to_the_right_and_words_to_the_left():
    made = table(*texts("Name"), *marks("Verdict"), *figures("Error"))
    made.add_row("a long name", "pass", "1")
    made.add_row("b", "fail", "1.0e-07")
    lines = [line for line in printed(made) if line.strip()]
    assert lines[0] == " Name         Verdict    Error"
    assert lines[2:] == [" a long name  pass           1", " b            fail     1.0e-07"]


def test_text_is_folded_before_a_figure_is_cut():
    made = table(*texts("Name"), *figures("Error"))
    made.add_row("name_" * 10, "1.0e-07")
    lines = printed(made, width=30)
    assert max(map(len, lines)) <= 30
    assert "".join(line.split()[0] for line in lines if "name" in line) == "name_" * 10
    assert any(line.endswith("1.0e-07") for line in lines)


@pytest.mark.parametrize("gap", [2, 3])
def test_the_gap_is_the_space_between_columns(gap):
    made = table(*texts("a", "b"), gap=gap)
    made.add_row("x", "y")
    assert f" x{' ' * gap}y" in printed(made)


def test_a_style_of_our_own_stays():
    made = table(*texts("a"))
    made.add_row(plain("x", "bold"))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(made)
    assert "\x1b[1mx" in console.file.getvalue()


def test_a_line_is_one_line_and_a_text_keeps_its_lines():
    assert plain("a\nb  c").plain == "a\nb  c"
    assert plain_line("a\nb  c").plain == "a b c"

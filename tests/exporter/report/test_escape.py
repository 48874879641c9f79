"""Foreign text is inert in a terminal, Markdown and HTML, and ordinary text is not changed."""

import pytest

from exporter.report.escape import (
    clause,
    code,
    html,
    markdown,
    one_line,
    printable,
    without_control,
)

LOST = "\N{REPLACEMENT CHARACTER}"
ORDINARY = ["clip 1.mp4", "naïve", "中文", "नमस्ते", "می‌خواهم", "👩‍🔬", "100 % of 3"]  # with joiners


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_not_changed(text):
    assert {escaped(text) for escaped in (printable, without_control, html, markdown)} == {text}
    assert code(text) == f"`{text}`"


@pytest.mark.parametrize("sign", ["\x00", "\t", "\r", "\x1b", "\x7f", "\x9b", "\u202e", "\u2066"])
def test_what_moves_the_cursor_or_turns_text_is_replaced(sign):
    assert printable(f"a{sign}b") == without_control(f"a{sign}b") == f"a{LOST}b"
    assert sign not in html(f"a{sign}b")


def test_a_terminal_gets_no_lone_byte_of_a_file_name():
    assert printable("clip\udcff.mp4").encode() == f"clip{LOST}.mp4".encode()


def test_ends_of_lines_stay_where_there_may_be_several_lines():
    assert printable("a\nb") == without_control("a\nb") == "a\nb"
    assert html("a\nb") == markdown("a\nb") == one_line("a\n b") == "a b"


def test_html_is_escaped_inside_attributes_too():
    assert html('<b title="x">&\'') == "&lt;b title=&quot;x&quot;&gt;&amp;&#x27;"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("*x* `y` [z](u) ~s~", r"\*x\* \`y\` \[z\](u) \~s\~"),
        ("_a_b_", r"\_a_b\_"),
        ("<script>", "&lt;script&gt;"),
    ],
)
def test_markdown_is_escaped(text, escaped):
    assert markdown(text) == escaped


@pytest.mark.parametrize(
    ("text", "shown"), [("a`b", "`` a`b ``"), ("a|b", r"`a\|b`"), ("``", "``` `` ```")]
)
def test_code_cannot_be_left(text, shown):
    assert code(text) == shown


def test_a_clause_has_no_full_stop():
    assert clause("It failed.\n") == "It failed"

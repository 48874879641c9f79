"""SVG from matplotlib -> SVG that is a part of a page, with the colours and fonts of the page.

Plots are drawn in placeholder colours, which become CSS variables of the page, so that one drawing
suits light and dark pages. They are drawn with tokens, which become words here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import Markup

SERIES = ("series-1", "series-2", "series-3", "series-4", "series-5", "series-6")
TONES = ("ink", "soft", "line", "sheet", "bar", "eager", "allowed", "pass", "fail", *SERIES)
_XLINK = "{http://www.w3.org/1999/xlink}href"
_PLACEHOLDER = re.compile(r"#0000([0-9a-f]{2})\b")
_REFERENCE = re.compile(r"(url\(#|^#)([\w.-]+)")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_TOKEN = re.compile(r"@(\d+)@")


def tone_of(name: str) -> str:
    """Give the placeholder colour of a CSS variable of the page."""
    return f"#0000{TONES.index(name) + 1:02x}"


def token_of(index: int) -> str:
    """Give the token that stands for the words of that index."""
    return f"@{index}@"


def clean(svg: str, name: str, words: Sequence[tuple[str, str]]) -> Markup:
    """Give the content of a drawing as a part of a page.

    Args:
        svg: What matplotlib wrote.
        name: Goes before every id, so that no two plots of a page share an id.
        words: The text of each token: as it is shown, and whole.
    """
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith("style"):  # its rules would hold for the whole page
                parent.remove(child)
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
        element.attrib.update(_attributes(element.attrib, name))
        _put_words(element, words)
    _keep_ids_in_use(root, name)
    return Markup("").join(
        Markup(ElementTree.tostring(child, encoding="unicode")) for child in root
    )


def _keep_ids_in_use(root: ElementTree.Element, name: str) -> None:
    """Remove the ids without a reference; an id that starts with a dot becomes a class."""
    used = {
        found[2]
        for element in root.iter()
        for key, value in element.attrib.items()
        if key != "id" and (found := _REFERENCE.search(value))
    }
    for element in root.iter():
        if element.attrib.get("id", "") not in used:
            given = element.attrib.pop("id", "")
            if given.startswith(f"{name}-."):
                element.attrib["class"] = given.removeprefix(f"{name}-.")


def _attributes(given: dict[str, str], name: str) -> dict[str, str]:
    """Move the attributes into a new mapping, as a page has them."""
    made = {}
    for key, value in list(given.items()):
        del given[key]
        if key == "style":
            value = re.sub(r"font-family:[^;]*;? ?", "", value)
            value = _PLACEHOLDER.sub(lambda found: f"var(--{TONES[int(found[1], 16) - 1]})", value)
        elif key == "id":
            value = f"{name}-{value}"
        elif key in (_XLINK, "clip-path"):
            value = _REFERENCE.sub(rf"\g<1>{name}-\g<2>", value)
        elif key in ("d", "x", "y", "transform", "points"):
            value = " ".join(_LONG_NUMBER.sub(_short_number, value).split())
            value = re.sub(r"rotate\(-0 [^)]*\)", "", value)
        if value:
            made["href" if key == _XLINK else key] = value
    return made


def _short_number(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")  # a hundredth of a pixel is enough


def _put_words(element: ElementTree.Element, words: Sequence[tuple[str, str]]) -> None:
    found = _TOKEN.fullmatch(element.text or "")
    if not found:
        return
    element.text, whole = words[int(found[1])]
    if element.text != whole:
        ElementTree.SubElement(element, "title").text = whole

"""The reference of the lint rules is made from the rules."""

import re

import pytest

from exporter.lint import RULES
from exporter.lint.reference import describe_rules


@pytest.fixture(scope="module")
def sections():
    """The text of each section, by its heading."""
    parts = re.split(r"^## (.+)$", describe_rules(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_rule_has_one_section_in_the_order_of_the_rules(sections):
    headings = re.findall(r"^#+ (.+)$", describe_rules(), flags=re.MULTILINE)
    assert headings == list(RULES)
    assert list(sections) == list(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_section_has_all_that_is_known_of_its_rule(sections, name):
    rule, text = RULES[name], sections[name]
    assert f"**{rule.severity.capitalize()}** on " in text
    assert ("ONNX Runtime" in text.split(".")[0]) == ("onnxruntime" in rule.runtimes)
    assert ("TensorRT" in text.split(".")[0]) == ("tensorrt" in rule.runtimes)
    assert rule.summary in text
    assert rule.explanation in text
    assert f"Remedy: {rule.remedy}." in re.sub(r"\\([`*_<\[\\])", r"\1", text)


def test_the_table_links_to_every_section():
    rows = [line for line in describe_rules().splitlines() if line.startswith("| [`")]
    assert re.findall(r"\(#([\w-]+)\)", "".join(rows)) == list(RULES)
    for row, rule in zip(rows, RULES.values(), strict=True):
        assert f"| {rule.severity} |" in row


def test_names_with_underscores_are_not_bold_in_a_remedy(sections):
    assert r"\_\_init\_\_" in sections["int64-arithmetic"]

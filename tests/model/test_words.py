"""Lists of names in messages are short, whatever their number."""

import pytest

from model.words import listed


@pytest.mark.parametrize(
    ("words", "most", "said"),
    [
        ([], 2, ""),
        (["a"], 2, "a"),
        (["a", "b"], 2, "a, b"),
        (["a", "b", "c"], 2, "a, b and 1 more"),
        (range(9), 3, "0, 1, 2 and 6 more"),
        ({"a": 1, "b": 2}, 1, "a and 1 more"),
        ((name for name in "abc"), 4, "a, b, c"),
    ],
)
def test_the_first_few_names_and_the_number_of_the_others(words, most, said):
    assert listed(words, most) == said

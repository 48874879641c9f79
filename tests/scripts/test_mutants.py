"""Test that every mutant can be applied: its text is in its file, and its tests are there."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_mutant_changes_a_text_that_is_there_and_names_its_tests(script):
    mutants = script("mutants").MUTANTS
    assert len({mutant.name for mutant in mutants}) == len(mutants) >= 40
    texts = {mutant.file: (ROOT / mutant.file).read_text(encoding="utf-8") for mutant in mutants}
    assert [one.name for one in mutants if texts[one.file].count(one.before) != 1] == []
    assert [one.tests for one in mutants if not (ROOT / one.tests).is_file()] == []

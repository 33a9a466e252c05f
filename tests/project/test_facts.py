"""The helper that compares facts: what it must not take for a fact that is there."""

from __future__ import annotations

import pytest

from tests.support.facts import assert_each, missing_facts, raises


@pytest.mark.parametrize("text", ["keep must be in (0, 1], got 1.5", "1.5 is outside of (0, 1]: keep"])
def test_facts_are_found_in_any_order(text: str) -> None:
    assert missing_facts(text, "keep | (0, 1] | 1.5") == []


@pytest.mark.parametrize("fact", ["5", "2", "1.5", "11", "keep", "(1, 5]", "Keeps"])
def test_parts_of_words_and_of_numbers_are_no_facts(fact: str) -> None:
    assert missing_facts("keeps 11.5 of (1, 52]", fact) == [fact]


def test_a_missing_fact_and_a_missing_error_fail() -> None:
    with pytest.raises(AssertionError, match="'two'"), raises(ValueError, "one | two"):
        raise ValueError("one")
    with pytest.raises(pytest.fail.Exception), raises(ValueError, "one"):
        pass
    with pytest.raises(AssertionError):
        assert_each(["one"], "one", "two")
    with pytest.raises(AssertionError):
        missing_facts("one", "one | ")

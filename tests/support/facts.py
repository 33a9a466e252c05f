"""What a message must state, however it is worded: names, numbers, paths, options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import pytest

E = TypeVar("E", bound=BaseException)


def missing_facts(text: str, facts: str) -> list[str]:
    """Return those of `facts`, separated by ` | `, that are not in `text` as whole words and numbers."""
    return [fact for fact in facts.split(" | ") if not re.search(_pattern(fact), text)]


def assert_facts(text: str, facts: str) -> None:
    """Assert that `text` holds each of `facts`, separated by ` | `, in any order."""
    missing = missing_facts(text, facts)
    assert not missing, f"{missing} not in {text!r}"


def assert_each(texts: Sequence[str], *facts: str) -> None:
    """Assert that there are as many `texts` as `facts`, and that each text holds its own."""
    assert len(texts) == len(facts), texts
    for text, expected in zip(texts, facts, strict=True):
        assert_facts(text, expected)


@contextmanager
def raises(kind: type[E] | tuple[type[E], ...], facts: str) -> Iterator[pytest.ExceptionInfo[E]]:
    """Assert that the block raises `kind` with each of `facts` in the text of the error."""
    with pytest.raises(kind) as caught:
        yield caught
    assert_facts(str(caught.value), facts)


def _pattern(fact: str) -> str:
    assert fact.strip(), "an empty fact is in every text"
    # '5' is neither in '15' nor in '0.5' nor in '5.1', and 'fp16' is not in 'fp16x'.
    before = r"(?<!\w)(?<!\d\.)" if fact[0].isdigit() else r"(?<!\w)" if fact[0].isalpha() else ""
    after = r"(?!\w)(?!\.\d)" if fact[-1].isdigit() else r"(?!\w)" if fact[-1].isalpha() else ""
    return f"{before}{re.escape(fact)}{after}"

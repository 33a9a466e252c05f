from __future__ import annotations

import inspect
import pickle
import re

import pytest

import defensemble
from defensemble import _exceptions

ERRORS = [error for _, error in inspect.getmembers(_exceptions, inspect.isclass) if issubclass(error, Exception)]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_pickles_and_keeps_its_text(error: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(error("what, got, expected")))
    assert type(copy) is error
    assert str(copy) == "what, got, expected"


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_public_and_in_one_tree(error: type[Exception]) -> None:
    assert issubclass(error, defensemble.DefensembleError)
    assert getattr(defensemble, error.__name__) is error


def test_the_documented_tree_matches_the_classes() -> None:
    drawn = re.findall(r"(\w+Error)(?: \((\w+)\))?", (_exceptions.__doc__ or "").split("`_transport")[0])
    assert {name for name, _ in drawn} == {error.__name__ for error in ERRORS}
    for name, builtin in drawn:
        if builtin:
            assert builtin in [base.__name__ for base in getattr(_exceptions, name).__mro__]

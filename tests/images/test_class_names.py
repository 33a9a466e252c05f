"""Matching class names of datasets and models."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from defensemble_images import ClassNamesError, match_classes
from defensemble_images.class_names import distinct_names
from tests.support.facts import raises

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), min_size=2, max_size=8)


@given(NAMES, st.randoms())
def test_classes_match_in_any_order_and_normal_form(names: list[str], random: object) -> None:
    import random as standard
    import unicodedata

    assert isinstance(random, standard.Random)
    model = list(dict.fromkeys(unicodedata.normalize("NFC", name) for name in names))
    if len(model) < 2 or model == [str(index) for index in range(len(model))]:
        return
    data = [unicodedata.normalize(random.choice(["NFC", "NFD"]), name) for name in random.sample(model, random.randint(1, len(model)))]
    indices = match_classes(data, model, "data/", "net")
    assert [model[index] for index in indices] == [unicodedata.normalize("NFC", name) for name in data]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["0", "1", "10", "11", *map(str, range(2, 10))], [0, 1, 10, 11, *range(2, 10)]), ([f"{n:02}" for n in range(12)], list(range(12)))],
)
def test_numbers_match_as_numbers_if_the_model_has_no_names(names: list[str], expected: list[int]) -> None:
    assert match_classes(names, [str(index) for index in range(12)], "levels/", "net").tolist() == expected


@pytest.mark.parametrize("names", ["1 2 3", "0 1", "0 1 2 3", "ant bee cow", "0 1 01", "0 1 ²"])
def test_other_names_are_rejected_if_the_model_has_none(names: str) -> None:
    data = names.split()
    with raises(ClassNamesError, f"'net' | 0 to 2 | levels/ | {', '.join(data)}"):
        match_classes(data, ["0", "1", "2"], "levels/", "net")


def test_number_that_python_does_not_parse_is_rejected() -> None:
    with raises(ClassNamesError, f"'net' | 0 to 1 | levels/ | {'1' * 60}"):
        match_classes(["0", "1" * 5000], ["0", "1"], "levels/", "net")


def test_unknown_class_error_shows_both_lists() -> None:
    with raises(ClassNamesError, "red, white | red, green, blue"):
        match_classes(["red", "white"], ["red", "green", "blue"], "colour/", "net")


def test_names_that_are_equal_in_nfc_are_rejected() -> None:
    with pytest.raises(ClassNamesError, match="caf\u00e9"):
        distinct_names(["caf\u00e9", "tea", "cafe\u0301"], "drinks/")
    assert distinct_names(["cafe\u0301", "tea"], "drinks/") == ("caf\u00e9", "tea")

"""How images are brought to size survives as JSON."""

from __future__ import annotations

import pytest

from defensemble_images import RESIZES, ImagesError, Preprocessing
from tests.support.facts import raises


@pytest.mark.parametrize("resize", RESIZES)
def test_json_is_read_back(resize: str) -> None:
    rule = Preprocessing(resize)
    assert Preprocessing.from_json(rule.to_json(), "net") == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "crop",
        '{"version": 2, "resize": "crop", "filter": "bicubic"}',
        '{"version": 1, "resize": "stretch", "filter": "bicubic"}',
        '{"version": 1, "resize": ["crop"], "filter": "bicubic"}',
        '{"version": 1, "resize": "crop", "filter": "bilinear"}',
        "[" * 100_000,
    ],
)
def test_other_rules_are_refused_by_name(text: str) -> None:
    with raises(ImagesError, "net | crop"):
        Preprocessing.from_json(text, "net")


def test_an_unknown_rule_is_refused() -> None:
    with raises(ImagesError, "crop, squash | 'pad'"):
        Preprocessing("pad")

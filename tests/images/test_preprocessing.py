"""JSON of the resize rule."""

from __future__ import annotations

import pytest

from defensemble_images import RESIZES, ImagesError, Preprocessing
from tests.support.facts import raises


@pytest.mark.parametrize("resize", RESIZES)
def test_json_round_trip(resize: str) -> None:
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
def test_unknown_json_is_rejected(text: str) -> None:
    with raises(ImagesError, "net | crop"):
        Preprocessing.from_json(text, "net")


def test_unknown_rule_is_rejected() -> None:
    with raises(ImagesError, "crop, squash | 'pad'"):
        Preprocessing("pad")

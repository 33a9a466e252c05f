"""Settings that differ, as text for messages."""

from __future__ import annotations

from typing import Any

import pytest

from defensemble.probes.setting_text import different_texts


@pytest.mark.parametrize(
    ("key", "value", "other", "texts"),
    [
        ("steps", 3000, 2000, ("3000", "2000")),
        ("shard", None, (1, 2), ("none", "1/2")),
        ("input", "float32", "8bit", ("float32", "8bit")),
        ("conditions", [{"name": "sigma 8", "value": 8}, {"name": "sigma 32"}], [{"name": "sigma 8"}], ("sigma 8, sigma 32", "sigma 8")),
        (
            "conditions",
            [{"name": "a", "value": 1}],
            [{"name": "a", "value": 2}],
            ('[{"name": "a", "value": 1}]', '[{"name": "a", "value": 2}]'),
        ),
        ("members", {"a": "1", "b": "2"}, {"a": "1", "b": None}, ("b: 2", "b: none")),
        ("members", [], ["a"], ("none", "a")),
    ],
)
def test_values_are_named(key: str, value: Any, other: Any, texts: tuple[str, str]) -> None:
    assert different_texts(key, value, other) == texts


def test_long_values_are_shortened() -> None:
    one, other = different_texts("class_names", ["cat"] * 1000, ["dog"] * 1000)
    assert len(one) == len(other) == 200
    assert one.endswith("...")

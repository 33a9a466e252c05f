"""Class names in training records."""

from __future__ import annotations

from typing import Any

import pytest

from defensemble_training import SpecError, TrainingRecord


def test_class_names_are_in_nfc() -> None:
    record = TrainingRecord.untrained(("cafe\u0301", "b"))
    assert record.class_names == ("caf\u00e9", "b")
    values = {**record.to_values(), "class_names": ["cafe\u0301", "b"]}
    assert TrainingRecord.from_values(values) == record


def test_error_truncates_a_long_value() -> None:
    names: Any = (0,) * 100_000
    with pytest.raises(SpecError, match="class_names") as caught:
        TrainingRecord.untrained(names)
    assert len(str(caught.value)) < 1000

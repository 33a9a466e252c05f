"""Warnings on the command line."""

from __future__ import annotations

import warnings

import pytest

from defensemble.cli.notes import warnings_as_notes
from defensemble_export import DatasetMismatchWarning


def test_a_warning_of_ours_is_a_line_and_comes_once(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with warnings_as_notes():
            for text in ("one", "two", "one"):
                warnings.warn(text, DatasetMismatchWarning, stacklevel=1)
            warnings.warn("three", DeprecationWarning, stacklevel=1)
        warnings.warn("four", DatasetMismatchWarning, stacklevel=1)
    assert capsys.readouterr().err.splitlines() == ["note: one", "note: two"]
    assert [str(one.message) for one in others] == ["three", "four"]

"""Progress, notes and log records on standard error."""

from __future__ import annotations

import logging
import warnings

import pytest

from defensemble.cli.notes import log_records_on_stderr, print_note, print_progress, shows_progress, warnings_as_notes
from defensemble_export import DatasetMismatchWarning


def test_a_warning_of_ours_is_one_note_and_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with log_records_on_stderr(logging.INFO), warnings_as_notes():
            for text in ("one", "two", "one"):
                warnings.warn(text, DatasetMismatchWarning, stacklevel=1)
            warnings.warn("three", DeprecationWarning, stacklevel=1)
        warnings.warn("four", DatasetMismatchWarning, stacklevel=1)
    assert capsys.readouterr().err.splitlines() == ["note: one", "note: two"]
    assert [str(warning.message) for warning in others] == ["three", "four"]


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        (
            logging.DEBUG,
            [
                "progress",
                "note: note",
                "debug: defensemble.x: a",
                "warning: defensemble_server.y: b",
                "info: defensemble: retry",
                "error: defensemble: c",
            ],
        ),
        (logging.INFO, ["progress", "note: note", "warning: defensemble_server.y: b", "error: defensemble: c"]),
        (logging.ERROR, ["error: defensemble: c"]),
    ],
)
def test_a_level_selects_what_is_printed(capsys: pytest.CaptureFixture[str], level: int, lines: list[str]) -> None:
    with log_records_on_stderr(level):
        print_progress("progress")
        print_note("note")
        logging.getLogger("defensemble.x").debug("%s", "a")
        logging.getLogger("defensemble_server.y").warning("b")
        logging.getLogger("defensemble").info("retry")
        logging.getLogger("defensemble").error("c")
        logging.getLogger("another").error("d")
        assert shows_progress() is (level <= logging.INFO)
    logging.getLogger("defensemble").error("after the block")
    assert capsys.readouterr().err.splitlines() == lines

"""Why Triton refused a model: parsed from lines of its log (core 2.51), and reported by a real start."""

from __future__ import annotations

from pathlib import Path

import pytest

from defensemble_server.process.refusals import read_refusals, refusals_from_log

HEAD = "E1129 12:24:53.400825 26511 model_repository_manager.cc:1460] "
PROTOBUF = "[libprotobuf ERROR /tmp/text_format.cc:337] Error parsing text-format inference.ModelConfig: 41:21: Expected identifier."


@pytest.mark.parametrize(
    ("line", "model", "reason"),
    [
        (
            "Poll failed for model directory '15_out1': dynamic batching preferred size must be <= max batch size for 15_out1",
            "15_out1",
            "dynamic batching preferred size must be <= max batch size for 15_out1",
        ),
        ("failed to load model 'a.b': at least one version must be available", "a.b", "at least one version must be available"),
        ("failed to poll model 'gone': model not found in any model repository.", "gone", "model not found in any model repository."),
        (
            "Invalid argument: ensemble few allows maximum batch size 64, but it contains model y which only allows 8",
            "few",
            "ensemble few allows maximum batch size 64, but it contains model y which only allows 8",
        ),
        (
            "Invalid argument: in ensemble e-1, ensemble tensor images is mapping to non-existing input pictures in model alpha",
            "e-1",
            "in ensemble e-1, ensemble tensor images is mapping to non-existing input pictures in model alpha",
        ),
        (
            "Invalid argument: ensemble 'e' depends on 'alpha' whose required version 7 is not loaded.",
            "e",
            "ensemble 'e' depends on 'alpha' whose required version 7 is not loaded.",
        ),
    ],
)
def test_each_line_names_a_model_and_why(line: str, model: str, reason: str) -> None:
    assert refusals_from_log(f'I1129 more\n{HEAD}"{line}"\n') == {model: reason}


def test_a_configuration_that_does_not_parse_is_reported_with_its_line() -> None:
    found = refusals_from_log(f"{PROTOBUF}\n{HEAD}\"Poll failed for model directory 'a': failed to read text proto from /r/a\"\n")
    assert "41:21: Expected identifier." in found["a"]
    assert "/r/a" in found["a"]


def test_other_lines_are_ignored() -> None:
    assert refusals_from_log(f'{HEAD}"CudaDriverHelper has not been initialized."\nW1129 ensemble x y\n\nensemble x is here\n') == {}


def test_only_what_this_process_wrote_is_read(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    lines = [f"{HEAD}\"Poll failed for model directory '{name}': x\"\n" for name in ("old", "new")]
    log.write_text(lines[0].replace(" 26511 ", " 1 ") + lines[1])
    assert set(read_refusals(log)) == {"old", "new"}
    assert set(read_refusals(log, 26511)) == {"new"}

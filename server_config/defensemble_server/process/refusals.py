"""Read from Triton's log why it refused models: the repository index only gives a reason if a backend refused the model."""

from __future__ import annotations

import re
from pathlib import Path

from defensemble_repository.filesystem.regular_files import open_regular

_LINE = re.compile(r"E\d{4} [\d:.]+ (\d+) [\w.]+:\d+\] (.*)")
# Messages of core 2.51 about polling a model's folder, loading it, and validating an ensemble's steps.
_MODEL_MESSAGES = (
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)"),
    re.compile(r"failed to load model '(?P<model>[^']+)': (?P<reason>.*)"),
    re.compile(r"failed to poll model '(?P<model>[^']+)': (?P<reason>.*)"),
    re.compile(r"(?:Invalid argument: )?(?P<reason>(?:in )?ensemble '?(?P<model>[A-Za-z0-9][\w.\-]*)'?,? .*)"),
)
# More than a start writes; the log of a long-running server may be large.
_TAIL_BYTES = 1 << 24
_PARSER = re.compile(r"\[libprotobuf ERROR [^\]]*\] (.*)")


def read_refusals(log: Path, pid: int | None = None) -> dict[str, str]:
    """Return the reasons in Triton's log by model, those that the process `pid` wrote (None: any process).

    Raises:
        OSError: The log cannot be read.
    """
    with open_regular(log) as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return refusals_from_log(file.read(_TAIL_BYTES).decode(errors="replace"), pid)


def refusals_from_log(text: str, pid: int | None = None) -> dict[str, str]:
    """Return the reasons in the text of a log by model; the last one for each."""
    refusals: dict[str, str] = {}
    parser = ""
    for line in text.splitlines():
        parser_error = _PARSER.match(line)
        if parser_error is not None:
            parser = parser_error[1]  # of the configuration that the next line is about
            continue
        error = _LINE.match(line)
        is_own = error is not None and pid in (None, int(error[1]))
        message = error[2].removeprefix('"').removesuffix('"') if error is not None and is_own else ""
        match = next((match for pattern in _MODEL_MESSAGES if (match := pattern.fullmatch(message))), None)
        if match is not None:
            reason = match["reason"]
            refusals[match["model"]] = f"{reason}: {parser}" if parser and "text proto" in reason else reason
        parser = ""
    return refusals

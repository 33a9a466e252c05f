"""Why Triton refused models, as its log says it: the repository index gives a reason only for those that a backend refused."""

from __future__ import annotations

import re
from pathlib import Path

from defensemble_repository.filesystem.regular_files import open_regular

_LINE = re.compile(r"E\d{4} [\d:.]+ (\d+) [\w.]+:\d+\] (.*)")
# Seen in core 2.51: what the poll of a model's folder, its load, and the validation of an ensemble's steps say.
_OF_A_MODEL = (
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)"),
    re.compile(r"failed to load model '(?P<model>[^']+)': (?P<reason>.*)"),
    re.compile(r"failed to poll model '(?P<model>[^']+)': (?P<reason>.*)"),
    re.compile(r"(?:Invalid argument: )?(?P<reason>(?:in )?ensemble '?(?P<model>[A-Za-z0-9][\w.\-]*)'?,? .*)"),
)
# More than a start writes: the log of a server that runs long may be large.
_TAIL_BYTES = 1 << 24
_PARSER = re.compile(r"\[libprotobuf ERROR [^\]]*\] (.*)")


def read_refusals(log: Path, pid: int | None = None) -> dict[str, str]:
    """The reasons in a log of Triton, by model: those that the process `pid` wrote, None for any.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(log) as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return refusals_from_log(file.read(_TAIL_BYTES).decode(errors="replace"), pid)


def refusals_from_log(text: str, pid: int | None = None) -> dict[str, str]:
    """The reasons in the text of a log, by model; the last one counts."""
    found: dict[str, str] = {}
    parser = ""
    for line in text.splitlines():
        said = _PARSER.match(line)
        if said is not None:
            parser = said[1]  # of the configuration that the next line is about
            continue
        error = _LINE.match(line)
        is_own = error is not None and pid in (None, int(error[1]))
        message = error[2].removeprefix('"').removesuffix('"') if error is not None and is_own else ""
        match = next((match for pattern in _OF_A_MODEL if (match := pattern.fullmatch(message))), None)
        if match is not None:
            reason = match["reason"]
            found[match["model"]] = f"{reason}: {parser}" if parser and "text proto" in reason else reason
        parser = ""
    return found

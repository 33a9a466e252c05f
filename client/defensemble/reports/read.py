"""Read result files for a report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from .._exceptions import InputError
from ..probes.outcome_reader import outcome_from_bytes, read_result_file
from .model import Result


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Read result files, in order.

    Raises:
        InputError: There is no file, one is no result of this version, or two have the same content.
        OSError: A file cannot be read. The error names it.
    """
    if not paths:
        raise InputError("a report needs at least one result; expected files that `defensemble probe` wrote, such as noise.json")
    results: dict[str, Result] = {}
    for path in paths:
        content = read_result_file(path)
        digest = hashlib.sha256(content).hexdigest()
        if digest in results:
            other = results[digest].path
            same = "it is named twice" if other == str(path) else f"{other} has the same content"
            raise InputError(f"{path} would be in the report twice: {same}. Name each result once.")
        outcome = outcome_from_bytes(content, path)
        results[digest] = Result(str(path), digest, outcome, outcome.json())
    return list(results.values())

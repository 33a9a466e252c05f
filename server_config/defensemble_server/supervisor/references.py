"""The correct answers of models, in a file in memory that outlives the supervisor."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class References:
    """The first answer of each model file, as lines of JSON.

    Args:
        file: Unbuffered. A supervisor that is started again reads what the previous one wrote: only the answers after the start of the
            server were verified.

    Example:
        >>> references = References(os.fdopen(descriptor, "r+b", buffering=0))
        >>> references.add("alpha", 1, digest, answer)
        >>> references.answer("alpha", digest)
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._answers: dict[tuple[str, str], Array] = {}
        self.loaded: dict[tuple[str, int], str] = {}
        file.seek(0)
        end = 0
        for line in file.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # the supervisor was killed while it wrote
            end += len(line)
            self._note(json.loads(line))
        file.truncate(end)
        file.seek(end)

    def answer(self, model: str, digest: str) -> Array | None:
        """Return the correct answer of a model file, or None if it is not known."""
        return self._answers.get((model, digest))

    def add(self, model: str, version: int | None, digest: str, answer: Array) -> None:
        """Note the correct answer of a model file, which is loaded as `version`."""
        facts = {"model": model, "version": version, "digest": digest, "answer": answer.tolist()}
        self._file.write(json.dumps(facts).encode() + b"\n")
        self._note(facts)

    def _note(self, facts: dict[str, Any]) -> None:
        self._answers[facts["model"], facts["digest"]] = np.array(facts["answer"], np.float32)
        if facts["version"] is not None:
            self.loaded[facts["model"], facts["version"]] = facts["digest"]

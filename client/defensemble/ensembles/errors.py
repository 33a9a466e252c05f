"""The errors of edits.

DefensembleError
├── EditRefusedError (ValueError)   the checks found what stands against it; nothing was written
├── EditOvertakenError              somebody else changed a file meanwhile: why an edit failed
└── EditFailedError                 a step failed; the old state was put back
"""

from __future__ import annotations

from collections.abc import Sequence

from .._exceptions import DefensembleError


class EditRefusedError(DefensembleError, ValueError):
    """An edit that the checks refuse; nothing was written, no server was told. `findings` are texts."""

    def __init__(self, what: str, findings: Sequence[str]) -> None:
        super().__init__(what, findings)
        self.findings = tuple(findings)
        self._what = what

    def __str__(self) -> str:
        return "\n".join([f"{self._what}, nothing was changed:", *(f"- {finding}" for finding in self.findings)])


class EditOvertakenError(DefensembleError):
    """Somebody else has changed a file that an edit was about to write."""


class EditFailedError(DefensembleError):
    """An edit whose step `step` failed because of `why`; `put_back` tells, target by target, what became of the old state."""

    def __init__(self, step: str, why: str, put_back: Sequence[str]) -> None:
        super().__init__(step, why, put_back)
        self.step = step
        self.why = why
        self.put_back = tuple(put_back)

    def __str__(self) -> str:
        return "\n".join([f"the edit failed at the step '{self.step}': {self.why}", *(f"- {line}" for line in self.put_back)])

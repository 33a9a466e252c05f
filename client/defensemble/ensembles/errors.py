"""The errors of edits.

DefensembleError
├── EditRefusedError (ValueError)   a check failed; nothing was written
├── EditOvertakenError              another program changed a file during the edit; the cause of an EditFailedError
└── EditFailedError                 a step failed; the old state was restored
"""

from __future__ import annotations

from collections.abc import Sequence

from .._exceptions import DefensembleError


class EditRefusedError(DefensembleError, ValueError):
    """The checks refuse an edit; nothing was written, and no server was changed.

    Attributes:
        findings: The findings of the checks, as texts.

    Example:
        >>> try:
        ...     ensembles.add("ensemble", ["keep0.1"])
        ... except EditRefusedError as error:
        ...     print(error.findings)
    """

    def __init__(self, what: str, findings: Sequence[str]) -> None:
        super().__init__(what, findings)
        self.findings = tuple(findings)
        self._what = what

    def __str__(self) -> str:
        return "\n".join([f"{self._what}, nothing was changed:", *(f"- {finding}" for finding in self.findings)])


class EditOvertakenError(DefensembleError):
    """Another program changed a file that an edit was about to write."""


class EditFailedError(DefensembleError):
    """A step of an edit failed, and the old state was restored where possible.

    Attributes:
        step: The step that failed.
        why: The reason.
        put_back: For each repository and server, whether its old state was restored.

    Example:
        >>> try:
        ...     ensembles.add("ensemble", ["keep0.1"])
        ... except EditFailedError as error:
        ...     print(error.step, error.why)
    """

    def __init__(self, step: str, why: str, put_back: Sequence[str]) -> None:
        super().__init__(step, why, put_back)
        self.step = step
        self.why = why
        self.put_back = tuple(put_back)

    def __str__(self) -> str:
        return "\n".join([f"the edit failed at the step '{self.step}': {self.why}", *(f"- {line}" for line in self.put_back)])

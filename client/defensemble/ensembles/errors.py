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

    def __init__(self, summary: str, findings: Sequence[str]) -> None:
        super().__init__(summary, findings)
        self.findings = tuple(findings)
        self._summary = summary

    def __str__(self) -> str:
        return "\n".join([f"{self._summary}, nothing was changed:", *(f"- {finding}" for finding in self.findings)])


class EditOvertakenError(DefensembleError):
    """Another program changed a file that an edit was about to write."""


class EditFailedError(DefensembleError):
    """A step of an edit failed, and the old state was restored where possible.

    Attributes:
        step: The step that failed.
        reason: The reason.
        restore_report: For each repository and server, whether its old state was restored.

    Example:
        >>> try:
        ...     ensembles.add("ensemble", ["keep0.1"])
        ... except EditFailedError as error:
        ...     print(error.step, error.reason)
    """

    def __init__(self, step: str, reason: str, restore_report: Sequence[str]) -> None:
        super().__init__(step, reason, restore_report)
        self.step = step
        self.reason = reason
        self.restore_report = tuple(restore_report)

    def __str__(self) -> str:
        return "\n".join([f"the edit failed at the step '{self.step}': {self.reason}", *(f"- {line}" for line in self.restore_report)])

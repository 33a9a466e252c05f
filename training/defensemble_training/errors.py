"""The errors of the training package.

TrainingError                     everything below, and a run that cannot begin, go on or be resumed
├── DivergedError                 the loss or a weight is no longer finite
├── Interrupted                   SIGINT; where the run has a folder, its state was saved
├── SpecError(ValueError)         a hyper-parameter that a network, a mask or a run cannot have
├── DataError                     a dataset that does not exist or cannot be read
└── CheckpointError               a checkpoint that is missing, damaged, of another kind, or whose masks are not its own

UncheckedContentWarning(UserWarning)    a file of an older version, which carries no digest of its content

What the operating system refuses (a full disk, a folder without permission) stays an `OSError` that names the file.
"""

from __future__ import annotations


class TrainingError(Exception):
    """A training run, or something it was given, is wrong; the message states what, what was expected and how to fix it."""


class DivergedError(TrainingError):
    """The loss or a weight is no longer finite."""


class Interrupted(TrainingError):  # noqa: N818 - it is no fault
    """A run was ended by SIGINT; where it has a folder, its state was saved there."""


class SpecError(TrainingError, ValueError):
    """A value is outside of what a network, a mask or a run can have."""


class DataError(TrainingError):
    """A dataset does not exist, does not fit, or cannot be read."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, of another kind, or does not hold what its metadata states."""


class UncheckedContentWarning(UserWarning):
    """A checkpoint or a state of an older version carries no digest, so damage of its content cannot be noticed."""

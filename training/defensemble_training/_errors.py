"""The errors of the training package.

TrainingError                     everything below, and a training run that failed (a loss that is not finite)
├── SpecError(ValueError)         a hyper-parameter that a network, a mask or a run cannot have
├── DataError                     a dataset that does not exist or cannot be read
└── CheckpointError               a checkpoint that is missing, damaged, of another kind, or whose masks are not its own

What the operating system refuses (a full disk, a folder without permission) stays an `OSError` that names the file.
"""


class TrainingError(Exception):
    """A training run, or something it was given, is wrong; the message says what, what was expected and how to mend it."""


class SpecError(TrainingError, ValueError):
    """A value is outside of what a network, a mask or a run can have."""


class DataError(TrainingError):
    """A dataset does not exist, does not fit, or cannot be read."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, of another kind, or does not hold what its metadata says."""

"""The errors of the training package.

TrainingError                     base class; also a run that cannot start, continue or be resumed
├── DivergedError                 the loss or a weight is not finite
├── Interrupted                   SIGINT stopped the run; its state was saved if it has a folder
├── SpecError(ValueError)         a hyper-parameter of a network, mask or run is invalid
├── DataError                     a dataset does not exist or cannot be read
├── ExamplesError                 a file of adversarial examples is incomplete, damaged, or of other images or networks
└── CheckpointError               a checkpoint is missing, damaged, of another format, or its masks do not match its spec

UncheckedContentWarning(UserWarning)    a file of an older version has no content digest

Errors of the operating system (a full disk, no permission) stay an `OSError` that names the file.
"""

from __future__ import annotations


class TrainingError(Exception):
    """A training run or one of its inputs is invalid. The message states what, what was expected and how to fix it."""


class DivergedError(TrainingError):
    """The loss or a weight is not finite."""


class Interrupted(TrainingError):  # noqa: N818 - an interruption is not an error
    """SIGINT stopped a run. If the run has a folder, its state was saved there."""


class SpecError(TrainingError, ValueError):
    """A value is invalid for a network, mask or run."""


class DataError(TrainingError):
    """A dataset does not exist, cannot be read, or does not match the network."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, of another format, or does not match its metadata."""


class ExamplesError(TrainingError):
    """A file of adversarial examples is incomplete, damaged, or of other images or networks."""


class UncheckedContentWarning(UserWarning):
    """A checkpoint or run state of an older version has no digest, so damage cannot be detected."""

"""The errors of this package.

RepositoryError
├── ConfigError          a config.pbtxt that cannot be read, or would not be read back as it was meant
├── EnsembleError        members that cannot be averaged, weights or names that are not allowed
├── LockedError          another program is changing the repository
└── ManifestError        the manifest of a TensorRT plan is damaged, or of another schema
"""

from __future__ import annotations


class RepositoryError(Exception):
    """Anything about a model repository that stops what was asked for; the text says what, got, expected and how to fix it."""


class ConfigError(RepositoryError):
    """A `config.pbtxt` cannot be read."""


class EnsembleError(RepositoryError, ValueError):
    """Members that cannot be averaged, or a name, weight or average that is not allowed."""


class LockedError(RepositoryError):
    """Another program is changing the repository, and did not end in time."""


class ManifestError(RepositoryError):
    """The manifest of a TensorRT plan is damaged, or of another schema."""

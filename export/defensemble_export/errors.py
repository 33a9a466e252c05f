"""The errors of this package. Errors about the content of a repository are in `defensemble_repository.errors`.

ExportError (a RepositoryError)
├── VerificationError    the outputs of an exported graph differ from those of its source
├── DeclarationError     a YAML file does not declare an ensemble
├── HistoryError         the edit history is damaged
├── ProfileError         a profile cannot be written or removed
├── EngineError          a TensorRT plan cannot be built on this machine, or its outputs differ from those of its graph
└── ExistsError          the repository already contains it
DatasetMismatchWarning (a UserWarning)   an export is verified on other data than the checkpoint was trained on
"""

from __future__ import annotations

from defensemble_repository.errors import RepositoryError


class ExportError(RepositoryError):
    """A problem that keeps this package from writing into a repository."""


class VerificationError(ExportError):
    """The outputs of an exported graph differ from those of its source by more than the tolerance."""


class DeclarationError(ExportError):
    """A YAML file does not declare an ensemble. The message contains the line."""


class HistoryError(ExportError):
    """The edit history of a repository is damaged or has a newer schema. The message contains the line."""


class ProfileError(ExportError):
    """A profile cannot be written or removed: unknown name, missing file, or a file edited by hand."""


class EngineError(ExportError):
    """A TensorRT plan cannot be built on this machine, or its outputs differ from those of its graph."""


class ExistsError(ExportError):
    """The repository already contains what was to be written."""


class DatasetMismatchWarning(UserWarning):
    """An export is verified on other data than the checkpoint was trained on."""

"""The errors of this package; those of what a repository holds are in `defensemble_repository.errors`.

ExportError (a RepositoryError)
├── VerificationError    an exported graph does not compute what the checkpoint does
├── DeclarationError     a YAML file that declares no ensemble
├── HistoryError         a history of edits that is damaged
├── ProfileError         a profile that cannot be written or removed as it was asked for
├── EngineError          a TensorRT plan cannot be built here, or does not answer as its graph does
└── ExistsError          the repository holds it already
OtherImagesWarning (a UserWarning)   an export is verified on other images than those that the checkpoint was trained with
"""

from __future__ import annotations

from defensemble_repository.errors import RepositoryError


class ExportError(RepositoryError):
    """Anything that stops this package from writing into a repository."""


class VerificationError(ExportError):
    """An exported graph does not compute what the checkpoint does."""


class DeclarationError(ExportError):
    """A YAML file that declares no ensemble; says in which line."""


class HistoryError(ExportError):
    """A repository's history of edits is damaged, or of a newer schema; says in which line."""


class ProfileError(ExportError):
    """A profile cannot be written or removed: an unknown name, a missing file, an edit by hand."""


class EngineError(ExportError):
    """A TensorRT plan cannot be built here, or does not answer as the graph that it was built from."""


class ExistsError(ExportError):
    """The repository already holds what was to be written."""


class DatasetMismatchWarning(UserWarning):
    """An export is verified on other images than those of the data that the checkpoint was trained on."""

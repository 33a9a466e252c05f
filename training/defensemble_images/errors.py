"""The errors of the image reader.

ImagesError(ValueError)           base class; also a folder with an unexpected layout
├── DamagedImageError             an image cannot be decoded or is too large
├── ImageSizeError                an image does not have the network's input size, and no resize rule is known
├── MemoryLimitError              data needs more memory than allowed
└── ClassNamesError               class names are repeated or do not match the model's

Errors of the operating system (no permission, a read error) stay an `OSError` that names the file.
"""

from __future__ import annotations


class ImagesError(ValueError):
    """Image data is invalid. The message states what was found, what was expected and how to fix it."""


class DamagedImageError(ImagesError):
    """An image cannot be decoded.

    Attributes:
        where: The image: a path, or a file and a row.
        reason: Why it cannot be decoded.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.where} cannot be decoded: {self.reason}. Repair or remove it, or skip damaged images with skip_damaged=True "
            "(--skip-damaged)."
        )


class ImageSizeError(ImagesError):
    """An image does not have the network's input size, and no resize rule is known."""


class MemoryLimitError(ImagesError):
    """Data needs more memory than allowed."""


class ClassNamesError(ImagesError):
    """Class names are repeated or do not match the model's."""

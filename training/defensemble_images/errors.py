"""The errors of the image reader.

ImagesError(ValueError)           everything below, and a folder that is not laid out as expected
├── DamagedImageError             an image that cannot be decoded, or is larger than is accepted
├── ImageSizeError                an image of another size than the network takes, and no rule to resize it by
├── MemoryLimitError              data that would take more memory than is allowed
└── ClassNamesError               class names that are repeated, or that do not match those of the model

What the operating system refuses (a file without permission, a read error) stays an `OSError` that names the file.
"""

from __future__ import annotations


class ImagesError(ValueError):
    """Image data is not what it must be; the message states what was found, what was expected and how to fix it."""


class DamagedImageError(ImagesError):
    """An image cannot be decoded: `where` it is (a path, or a file with a row), and the `reason`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.where} cannot be decoded: {self.reason}; repair or remove it, or leave out damaged images: skip_damaged=True, on the "
            "command line --skip-damaged"
        )


class ImageSizeError(ImagesError):
    """An image has another size than the network takes, and there is no rule to resize it by."""


class MemoryLimitError(ImagesError):
    """Data would take more memory than is allowed."""


class ClassNamesError(ImagesError):
    """Class names are repeated, or do not match those of the model."""

"""Image files, folders and class names: one rule for training, export, `predict` and the probes.

Names are loaded on first use, and Pillow where an image is decoded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arrays import StoredArray, npy_array, npz_arrays
    from .checks import image_fault, range_fault
    from .class_names import matched_classes, normalised
    from .decoding import decode_images, memory_to_decode
    from .errors import ClassNamesError, DamagedImageError, ImagesError, ImageSizeError, MemoryLimitError
    from .folders import labelled_files
    from .memory import check_memory
    from .notes import reading_notes
    from .preprocessing import RESIZES, Preprocessing
    from .reader import SUFFIXES, Encoded, decode_image

__all__ = [
    "RESIZES",
    "SUFFIXES",
    "ClassNamesError",
    "DamagedImageError",
    "Encoded",
    "ImageSizeError",
    "ImagesError",
    "MemoryLimitError",
    "Preprocessing",
    "StoredArray",
    "check_memory",
    "decode_image",
    "decode_images",
    "image_fault",
    "labelled_files",
    "matched_classes",
    "memory_to_decode",
    "normalised",
    "npy_array",
    "npz_arrays",
    "range_fault",
    "reading_notes",
]

_HOMES = {
    "arrays": ("StoredArray", "npy_array", "npz_arrays"),
    "checks": ("image_fault", "range_fault"),
    "class_names": ("matched_classes", "normalised"),
    "decoding": ("decode_images", "memory_to_decode"),
    "errors": ("ClassNamesError", "DamagedImageError", "ImageSizeError", "ImagesError", "MemoryLimitError"),
    "folders": ("labelled_files",),
    "memory": ("check_memory",),
    "notes": ("reading_notes",),
    "preprocessing": ("RESIZES", "Preprocessing"),
    "reader": ("SUFFIXES", "Encoded", "decode_image"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

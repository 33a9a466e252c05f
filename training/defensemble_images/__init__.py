"""Read image files, class folders and class names, the same way in training, export, `predict` and the probes.

Pillow is imported only when an image is decoded.
"""

from __future__ import annotations

from .arrays import StoredArray as StoredArray, npy_array as npy_array, npz_arrays as npz_arrays
from .checks import image_problem as image_problem, range_problem as range_problem
from .class_names import match_classes as match_classes, normalised as normalised
from .decoding import decode_images as decode_images, memory_to_decode as memory_to_decode
from .errors import (
    ClassNamesError as ClassNamesError,
    DamagedImageError as DamagedImageError,
    ImagesError as ImagesError,
    ImageSizeError as ImageSizeError,
    MemoryLimitError as MemoryLimitError,
)
from .folders import labelled_files as labelled_files
from .memory import check_memory as check_memory
from .notes import reading_notes as reading_notes
from .preprocessing import RESIZES as RESIZES, Preprocessing as Preprocessing
from .reader import (
    SUFFIXES as SUFFIXES,
    EncodedImage as EncodedImage,
    decode_image as decode_image,
    load_opened as load_opened,
)

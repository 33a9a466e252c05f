"""The handwritten digits that come with scikit-learn, enlarged. No network access is needed.

1,797 real images of 8x8 with one channel and 10 classes, from the UCI repository (Alpaydin and Kaynak, 1998).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import DataError

SMALLEST_SIZE, USUAL_SIZE, LARGEST_SIZE = 8, 16, 128

Images = npt.NDArray[np.float32]


def digits_of_size(size: int) -> tuple[Images, npt.NDArray[np.int64]]:
    """Return the images, float32 (1797, 1, size, size) in [0, 1], bilinearly enlarged, and their labels.

    Raises:
        DataError: The size is out of range, or scikit-learn is not installed.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise DataError(f"size must be an integer from {SMALLEST_SIZE} to {LARGEST_SIZE}, got {size!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the dataset 'digits' needs scikit-learn. Install it with: pip install 'defensemble[train]'") from error
    digits = load_digits()
    return enlarge_bilinear((digits.images / 16.0).astype(np.float32)[:, None], size), digits.target.astype(np.int64)


def enlarge_bilinear(images: Images, size: int) -> Images:
    """Enlarge square images (n, C, H, H) to (n, C, size, size) by bilinear interpolation, first the rows, then the columns.

    Pixel centres are at half-integer positions; edges are repeated. All arithmetic is elementwise float32, so the bits are equal on every
    platform (those of a matrix product are not).
    """
    old_size = images.shape[-1]
    position = np.clip((np.arange(size) + 0.5) * old_size / size - 0.5, 0, old_size - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, old_size - 1)
    weight = (position - low).astype(np.float32)
    rows = images[:, :, low] * (1 - weight)[:, None] + images[:, :, high] * weight[:, None]
    return np.ascontiguousarray(rows[..., low] * (1 - weight) + rows[..., high] * weight)

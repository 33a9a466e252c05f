"""Which images a network is trained and judged on: datasets that need no download, with a split that never changes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._errors import DataError
from .masks import uniform_keys

DATASETS = ("digits",)
SMALLEST_SIZE, LARGEST_SIZE = 8, 128

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, in a training part and a test part that share no image.

    Attributes:
        name: what `load_dataset` calls it.
        size: height and width of the images.
        class_names: label i is class_names[i].
        train_images: float32 (n, C, size, size) in [0, 1].
        train_labels: int64 (n,).
        test_images: as train_images.
        test_labels: as train_labels.
        mean: of the training images, one value a channel, rounded to 4 decimals.
        std: as mean.
    """

    name: str
    size: int
    class_names: tuple[str, ...]
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.train_images.shape[1], self.train_images.shape[2], self.train_images.shape[3]

    def __repr__(self) -> str:
        shape = "x".join(str(extent) for extent in self.input_shape)
        counts = f"{len(self.train_labels)} train, {len(self.test_labels)} test, {len(self.class_names)} classes"
        return f"Dataset({self.name!r}, {shape}, {counts})"


def load_dataset(name: str, size: int = 16) -> Dataset:
    """Load a dataset that comes with an installed package; no network is used.

    `digits` is scikit-learn's copy of the handwritten digits of the UCI repository (Alpaydin and Kaynak, 1998): 1,797 real images of 8x8
    with one channel and 10 classes. They are enlarged to size x size by bilinear interpolation (pixel centres at half positions, edges
    repeated), and split into 1,438 training and 359 test images, a fifth of every class for the test, the same ones at every size.

    Args:
        name: `digits`.
        size: height and width of the images, 8 to 128.

    Raises:
        DataError: no such dataset, a size that it cannot have, or scikit-learn is not installed.
    """
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}; there is {', '.join(DATASETS)}")
    if isinstance(size, bool) or not isinstance(size, int) or not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise DataError(f"size must be an integer from {SMALLEST_SIZE} to {LARGEST_SIZE}, got {size!r}")
    small, labels = _digits()
    images = bilinear_enlarged(small, size)
    test = stratified_test_part(labels, seed_text="defensemble-split-v1:digits")
    train_images = images[~test]
    return Dataset(
        name=name,
        size=size,
        class_names=tuple(str(digit) for digit in range(10)),
        train_images=train_images,
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        # Rounded, since the order of a sum, and with it the last bits, depends on the processor; the spec must not.
        mean=(round(float(train_images.mean(dtype=np.float64)), 4),),
        std=(round(float(train_images.std(dtype=np.float64)), 4),),
    )


def _digits() -> tuple[Images, Labels]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the dataset 'digits' needs scikit-learn; install it with: pip install 'defensemble[train]'") from error
    digits = load_digits()
    return (digits.images / 16.0).astype(np.float32)[:, None], digits.target.astype(np.int64)


def stratified_test_part(labels: Labels, seed_text: str, one_in: int = 5) -> npt.NDArray[np.bool_]:
    """Choose one in `one_in` images of every class (rounded) for the test, by keys that follow from a text alone.

    Returns:
        bool (n,), True for the test part.
    """
    keys = uniform_keys(seed_text, labels.size)
    test = np.zeros(labels.size, dtype=np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen = np.argsort(keys[members], kind="stable")[: round(members.size / one_in)]
        test[members[chosen]] = True
    return test


def bilinear_enlarged(images: Images, size: int) -> Images:
    """Enlarge square images (n, C, H, H) to (n, C, size, size), first the rows, then the columns.

    Only elementwise float32 arithmetic is used, so the bits are the same on every platform (a matrix product's are not).
    """
    before = images.shape[-1]
    position = np.clip((np.arange(size) + 0.5) * before / size - 0.5, 0, before - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, before - 1)
    share = (position - low).astype(np.float32)
    rows = images[:, :, low] * (1 - share)[:, None] + images[:, :, high] * share[:, None]
    return np.ascontiguousarray(rows[..., low] * (1 - share) + rows[..., high] * share)

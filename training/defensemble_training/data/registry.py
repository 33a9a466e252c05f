"""The named datasets: their size, channels, classes, and repository on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST_SIZE, LARGEST_SIZE = 8, 1024
_TEST_FIRST = ("test", "validation", "valid", "val")
_VALIDATION_FIRST = ("validation", "valid", "val", "test")  # for datasets whose test labels are not published


@dataclass(frozen=True)
class DatasetInfo:
    """Properties of a named dataset."""

    size: int | None  # default height and width; None: the images' own size, which all must have
    channels: int | None = 3  # 1 or 3; None: 1 if all images are grey, else 3
    classes: int | None = None  # number of classes; None: any number from 2
    repository: str | None = None  # on the hub; None if it is not there
    flip: bool = True  # whether a mirrored image keeps its class
    test_splits: tuple[str, ...] = _TEST_FIRST  # names of the test part, the preferred one first


DATASET_INFOS = {
    "mnist": DatasetInfo(28, channels=1, classes=10, repository="ylecun/mnist", flip=False),
    "cifar10": DatasetInfo(32, classes=10, repository="uoft-cs/cifar10"),
    "tiny-imagenet": DatasetInfo(64, classes=200, repository="zh-plus/tiny-imagenet", test_splits=_VALIDATION_FIRST),
    "imagenet": DatasetInfo(224, classes=1000, repository="ILSVRC/imagenet-1k", test_splits=_VALIDATION_FIRST),
    "stylized-imagenet": DatasetInfo(224, classes=1000, test_splits=_VALIDATION_FIRST),
    "folder": DatasetInfo(None, channels=None),
}

"""CIFAR-10, with the class indices of the zoo's networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from benchmarks.zoo.plan import FOLDER, ROOT
from defensemble_training import DataError, Dataset, load_dataset, read_metadata


def dataset_option(fallback: str = "or the hub") -> Callable[[click.decorators.FC], click.decorators.FC]:
    """Return the option for the folder of CIFAR-10; `fallback` names what is used without a folder."""
    return click.option(
        "--dataset",
        "data_dir",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help=f"Folder of CIFAR-10.  [default: $DEFENSEMBLE_DATA_DIR/cifar10, {fallback}]",
    )


def zoo_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add the options for the folders of the zoo and of CIFAR-10."""
    zoo = click.option(
        "--zoo",
        type=click.Path(path_type=Path),
        default=ROOT / FOLDER,
        metavar="FOLDER",
        help=f"Folder of the checkpoints.  [default: {FOLDER}]",
    )
    return zoo(dataset_option()(command))


def cifar10_for(checkpoints: Iterable[Path], data_dir: Path | None, on_progress: Callable[[str, int, int], None] | None = None) -> Dataset:
    """Load CIFAR-10 with the class indices of networks. Classes are matched by name.

    Args:
        checkpoints: The networks.
        data_dir: Folder of CIFAR-10; None for the usual places.
        on_progress: Called with the current step, the number of images done, and the number of all images.

    Raises:
        DataError: CIFAR-10 is not found, or the networks have other classes or differ in them.
        CheckpointError: A checkpoint is damaged.
    """
    names: dict[tuple[str, ...], Path] = {}
    for path in checkpoints:
        names.setdefault(read_metadata(path).record.class_names, path)
    if len(names) != 1:
        found = "; ".join(f"{path.name}: {', '.join(classes)}" for classes, path in names.items()) or "no network"
        raise DataError(f"the networks must have the same classes in the same order; got {found}")
    ((class_names, path),) = names.items()
    return load_dataset("cifar10", data_dir=data_dir, on_progress=on_progress).align_classes(class_names, path.name)


def describe_dataset(data: Dataset) -> dict[str, Any]:
    """Describe the test images for a result."""
    return {"name": data.name, "source": data.source, "digest": data.digest, "part": "test"}

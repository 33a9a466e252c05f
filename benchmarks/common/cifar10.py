"""CIFAR-10, with its classes numbered as the zoo's networks number them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from benchmarks.zoo.plan import FOLDER, ROOT
from defensemble_training import DataError, Dataset, load_dataset, read_metadata


def data_option(without: str = "or the hub") -> Callable[[click.decorators.FC], click.decorators.FC]:
    """The option that names CIFAR-10's folder; `without` says what is taken where there is none."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help=f"CIFAR-10.  [default: $DEFENSEMBLE_DATA_DIR/cifar10, {without}]",
    )


def zoo_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add the options that name the zoo and CIFAR-10."""
    zoo = click.option(
        "--zoo", type=click.Path(path_type=Path), default=ROOT / FOLDER, metavar="FOLDER", help=f"The checkpoints.  [default: {FOLDER}]"
    )
    return zoo(data_option()(command))


def cifar10_for(checkpoints: Iterable[Path], data_dir: Path | None, on_progress: Callable[[str, int, int], None] | None = None) -> Dataset:
    """CIFAR-10 with the class numbers of networks; classes are matched by name.

    Raises:
        DataError: It is not here, or the networks differ in their classes or have others.
        CheckpointError: A checkpoint is damaged.
    """
    names: dict[tuple[str, ...], Path] = {}
    for path in checkpoints:
        names.setdefault(read_metadata(path).record.class_names, path)
    if len(names) != 1:
        told = "; ".join(f"{path.name}: {', '.join(classes)}" for classes, path in names.items()) or "no network"
        raise DataError(f"the networks must have the same classes in the same order, got {told}")
    ((class_names, path),) = names.items()
    return load_dataset("cifar10", data_dir=data_dir, on_progress=on_progress).align_classes(class_names, path.name)


def described(data: Dataset) -> dict[str, Any]:
    """What a result says of its test images."""
    return {"name": data.name, "source": data.source, "digest": data.digest, "part": "test"}

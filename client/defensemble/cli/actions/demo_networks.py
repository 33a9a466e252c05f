"""The networks of the demonstration: trained on digits, or from the project's zoo."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import TextColumn

from ..._exceptions import InputError
from ..progress import progress_bar

if TYPE_CHECKING:
    from defensemble_training import Dataset, ModelSpec, TrainingProgress

# Several keep probabilities, to show their effect in the table; keep0.3 twice, with different masks and initial weights.
KEEPS: Mapping[str, float] = {"keep0.1": 0.1, "keep0.3": 0.3, "keep0.3-other": 0.3, "keep0.5": 0.5, "keep0.7": 0.7}
STANDARD = "standard"
_IMAGE_SIZE = 16
_WIDTH = 8
# The zoo of the checkout that this file may be in.
ZOO = Path(__file__).parents[4] / "zoo"


@dataclass(frozen=True)
class Networks:
    """The checkpoints of the ensemble's members and of the standard network, in one folder, and their dataset."""

    folder: Path
    members: tuple[str, ...]
    dataset: Dataset

    def checkpoints(self) -> list[Path]:
        """Return the members' files."""
        return [self.folder / f"{name}.safetensors" for name in self.members]

    @property
    def standard(self) -> Path:
        """The standard network's file."""
        return self.folder / f"{STANDARD}.safetensors"


def networks_from_zoo(folder: Path, zoo: Path, data_dir: Path | None, console: Console) -> Networks:
    """Copy the zoo's standard network and its defective ones on CIFAR-10 into a folder."""
    console.print("\n[bold]1. copy[/bold] the zoo's ResNet-18s for CIFAR-10; nothing is trained", highlight=False)
    paths = sorted((zoo / "cifar10").glob("*.safetensors"))
    members = tuple(path.stem for path in paths if path.stem.startswith("keep"))
    if not members or not (zoo / "cifar10" / f"{STANDARD}.safetensors").exists():
        actual = ", ".join(path.name for path in paths) or "nothing"
        raise InputError(
            f"{zoo / 'cifar10'} contains {actual}; expected {STANDARD}.safetensors and at least one keep*.safetensors. "
            "Pass the folder zoo of a checkout of the project (--zoo FOLDER), or train its networks there with `make zoo`."
        )
    from defensemble_training import load_dataset, read_metadata

    with console.status("reading CIFAR-10"):
        dataset = load_dataset("cifar10", data_dir=data_dir)
    console.print(f"  {dataset.source}", highlight=False)
    for name in (*members, STANDARD):
        source = zoo / "cifar10" / f"{name}.safetensors"
        record = read_metadata(source).record
        shutil.copyfile(source, folder / source.name)
        correct = round(record.accuracy * record.n_test)
        console.print(f"  {name:14} {correct} of {record.n_test} test images correct, {record.epochs} epochs", highlight=False)
    return Networks(folder, members, dataset)


def networks_trained_on_digits(folder: Path, epochs: int | None, seed: int, console: Console) -> Networks:
    """Train five defective networks and a standard one into a folder."""
    console.print("\n[bold]1. train[/bold] five defective ResNet-18s and a standard one on handwritten digits", highlight=False)
    from defensemble_training import Compute, load_dataset, recipe_from_preset, save_checkpoint, train

    dataset = load_dataset("digits", _IMAGE_SIZE)
    names = [*KEEPS, STANDARD]
    recipe = recipe_from_preset("fast", **({} if epochs is None else {"epochs": epochs}))
    with progress_bar(console, TextColumn("{task.fields[state]}")) as bar:
        task = bar.add_task("training", total=len(names), state="")
        for number, name in enumerate(names):
            spec = _spec(name, number, seed, dataset)

            def on_progress(progress: TrainingProgress, name: str = name, number: int = number) -> None:
                state = f"loss {progress.loss:.3f}, accuracy {progress.train_accuracy:.3f}"
                bar.update(task, completed=number + progress.step / progress.steps, description=name, state=state)

            module, record = train(spec, dataset, recipe=recipe, seed=seed + number, compute=Compute("cpu"), on_progress=on_progress)
            save_checkpoint(folder / f"{name}.safetensors", module, spec, record)
            correct = round(record.accuracy * record.n_test)
            console.print(f"  {name:14} {correct} of {record.n_test} test images correct, {record.seconds:.1f} s", highlight=False)
    return Networks(folder, tuple(KEEPS), dataset)


def _spec(name: str, number: int, seed: int, dataset: Dataset) -> ModelSpec:
    from defensemble_training import ModelSpec

    return ModelSpec(
        arch="resnet18",
        keep=KEEPS.get(name, 1.0),
        blocks=(0, 1, 2),
        mask_seed=seed + number,
        width=_WIDTH,
        mean=dataset.mean,
        std=dataset.std,
        num_classes=len(dataset.class_names),
        input_shape=dataset.input_shape,
    )

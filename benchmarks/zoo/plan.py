"""Which networks the zoo has, in the order in which they are trained, and the command that trains each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from defensemble_training import CheckpointError, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("zoo/cifar10")  # all paths are relative to the checkout: they go into the records
RUNS = Path("runs/zoo")
WIDTH = 16
BATCH_SIZE = 128
LARGEST_FILE = 2_000_000  # bytes


@dataclass(frozen=True)
class Network:
    """One network of the zoo; `mask_seed` is None where there are no masks."""

    name: str
    keep: float
    seed: int
    mask_seed: int | None
    epochs: int

    @property
    def path(self) -> Path:
        """Of its checkpoint."""
        return FOLDER / f"{self.name}.safetensors"

    def arguments(self, *more: str) -> list[str]:
        """The words after `defensemble` that train it, or go on where training stopped; `more` are options of the machine."""
        masks = [] if self.mask_seed is None else ["--mask-seed", str(self.mask_seed)]
        return [
            *("train", "--dataset", "cifar10", "--width", str(WIDTH), "--keep", str(self.keep), "--seed", str(self.seed), *masks),
            *("--epochs", str(self.epochs), "--batch-size", str(BATCH_SIZE), *more),
            *("--half", "--run", str(RUNS / self.name), "--resume", str(self.path)),
        ]


SOURCE = "standard-other"
PLAN = (
    Network("standard", keep=1.0, seed=0, mask_seed=None, epochs=12),
    Network(SOURCE, keep=1.0, seed=1, mask_seed=None, epochs=12),
    Network("keep0.1", keep=0.1, seed=2, mask_seed=0, epochs=8),
    Network("keep0.5", keep=0.5, seed=3, mask_seed=1, epochs=8),
    Network("keep0.1-other", keep=0.1, seed=4, mask_seed=2, epochs=8),
    Network("keep0.3", keep=0.3, seed=5, mask_seed=3, epochs=8),
    Network("keep0.7", keep=0.7, seed=6, mask_seed=4, epochs=8),
)


def check_is(network: Network, path: Path) -> None:
    """Read a checkpoint, and raise unless it is the plan's network and small enough to ship.

    Raises:
        CheckpointError: it cannot be read, is another network, or is too large.
        OSError: the file cannot be read.
    """
    _, spec, record = load_checkpoint(path)
    got = (record.data, spec.arch, spec.width, spec.keep, record.seed, spec.mask_seed, record.epochs)
    planned = ("cifar10", "resnet18", WIDTH, network.keep, network.seed, network.mask_seed or 0, network.epochs)
    if got != planned:
        raise CheckpointError(
            f"{path} is not the network that the plan calls {network.name}: (data, arch, width, keep, seed, mask seed, epochs) are {got}, "
            f"expected {planned}; move it away, and train it again with: make zoo ARGS='--only {network.name}'"
        )
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise CheckpointError(f"{path} has {size:,} bytes, expected at most {LARGEST_FILE:,}; was it written without --half?")

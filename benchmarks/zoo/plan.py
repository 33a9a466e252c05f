"""The networks of the zoo in training order, and the command that trains each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from defensemble_training import CheckpointError, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("zoo/cifar10")  # all paths are relative to the checkout: they go into the records
RUNS = Path("runs/zoo")
WIDTH = 16
BATCH_SIZE = 128
MAX_FILE_BYTES = 2_000_000


@dataclass(frozen=True)
class Network:
    """A network of the zoo; `mask_seed` is None without masks, `adversarial` names the attack of adversarial training."""

    name: str
    keep: float
    seed: int
    mask_seed: int | None
    epochs: int
    adversarial: str | None = None

    @property
    def path(self) -> Path:
        """Path of its checkpoint."""
        return FOLDER / f"{self.name}.safetensors"

    def arguments(self, *more: str) -> list[str]:
        """Return the arguments of `defensemble` that train it or resume training; `more` are options for the machine."""
        masks = [] if self.mask_seed is None else ["--mask-seed", str(self.mask_seed)]
        attack = [] if self.adversarial is None else ["--adversarial", self.adversarial]
        return [
            *("train", "--dataset", "cifar10", "--width", str(WIDTH), "--keep", str(self.keep), "--seed", str(self.seed), *masks, *attack),
            *("--epochs", str(self.epochs), "--batch-size", str(BATCH_SIZE), *more),
            *("--half", "--run", str(RUNS / self.name), "--resume", str(self.path)),
        ]


SOURCE = "standard-other"
TABLE = (
    Network("standard", keep=1.0, seed=0, mask_seed=None, epochs=12),
    Network(SOURCE, keep=1.0, seed=1, mask_seed=None, epochs=12),
    Network("keep0.1", keep=0.1, seed=2, mask_seed=0, epochs=8),
    Network("keep0.5", keep=0.5, seed=3, mask_seed=1, epochs=8),
    Network("keep0.1-other", keep=0.1, seed=4, mask_seed=2, epochs=8),
    Network("keep0.3", keep=0.3, seed=5, mask_seed=3, epochs=8),
    Network("keep0.7", keep=0.7, seed=6, mask_seed=4, epochs=8),
)
"""The networks of docs/results/zoo_cifar10.md."""
PLAN = (
    *TABLE,
    Network("keep0.5-b", keep=0.5, seed=7, mask_seed=5, epochs=12),
    Network("keep0.5-c", keep=0.5, seed=8, mask_seed=6, epochs=12),
    Network("surrogate-keep0.5-a", keep=0.5, seed=9, mask_seed=7, epochs=12),
    Network("surrogate-keep0.5-b", keep=0.5, seed=10, mask_seed=8, epochs=12),
    Network("adversarial", keep=1.0, seed=11, mask_seed=None, epochs=12, adversarial="adversarial-training-3"),
)
"""All networks of the zoo. The surrogates are members of no ensemble: attacks that are crafted on them are no white-box attacks."""


def check_network(network: Network, path: Path) -> None:
    """Check that a checkpoint is the network of the plan and small enough to ship.

    Args:
        network: The network of the plan.
        path: The checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged, another network, or too large.
        OSError: The file cannot be read.
    """
    _, spec, record = load_checkpoint(path)
    got = (record.data, spec.arch, spec.width, spec.keep, record.seed, spec.mask_seed, record.epochs)
    expected = ("cifar10", "resnet18", WIDTH, network.keep, network.seed, network.mask_seed or 0, network.epochs)
    if got != expected:
        raise CheckpointError(
            f"{path} is not the network {network.name} of the plan: (data, arch, width, keep, seed, mask seed, epochs) is {got}; "
            f"expected {expected}. Move it away, and train the network again with: make zoo ARGS='--only {network.name}'"
        )
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes; expected at most {MAX_FILE_BYTES:,}. Was it written without --half?")

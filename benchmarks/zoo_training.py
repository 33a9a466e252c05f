"""Train the zoo: ResNet-18s of width 16 on CIFAR-10, one after the other, with a model card for each."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import dataset_option
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.zoo.card import model_card
from benchmarks.zoo.plan import FOLDER, PLAN, ROOT, RUNS, Network, check_network
from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_training import DataError, RunFolder, TrainingError, load_dataset


def training_state(network: Network, root: Path = ROOT) -> str:
    """Return `finished`, `interrupted` (training can resume) or `to do`."""
    if (root / network.path).exists():
        return "finished"
    return "interrupted" if RunFolder(root / RUNS / network.name).is_interrupted else "to do"


def train_all(
    networks: Sequence[Network],
    options: Sequence[str],
    *,
    root: Path = ROOT,
    run: Callable[[list[str]], int] | None = None,
    on_progress: OnProgress = silent,
) -> None:
    """Train the unfinished networks in their order, and write the model cards of all.

    Args:
        networks: Networks of the plan.
        options: Options of `defensemble train` for the machine; they change no hyper-parameter.
        root: The folder with `zoo/` and `runs/`.
        run: Takes the arguments of `defensemble` and returns the exit status; by default, it runs `defensemble`.
        on_progress: Called with the current step.

    Raises:
        ClickException: A training failed; it has printed why.
        TrainingError: A checkpoint is damaged, too large, or another network than the plan's.
        OSError: A file cannot be read or written.
    """
    run = run or (lambda arguments: _defensemble(arguments, root))
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for number, network in enumerate(networks, 1):
        arguments, checkpoint = network.arguments(*options), root / network.path
        state = training_state(network, root)
        on_progress(f"{number} of {len(networks)}, {network.name}: {state}")
        if state != "finished":
            on_progress(f"  defensemble {shlex.join(arguments)}")
            if (status := run(arguments)) != 0 or not checkpoint.exists():
                raise click.ClickException(f"{network.name} is not finished (exit status {status}); resume with: make zoo")
        check_network(network, checkpoint)
        card, text = checkpoint.with_suffix(".md"), model_card(checkpoint)
        if not card.exists() or card.read_text() != text:
            write_atomic(card, text.encode())
            on_progress(f"  wrote {card.relative_to(root)}")


def _defensemble(arguments: list[str], root: Path) -> int:
    with _child_handles_sigint():
        return subprocess.Popen([sys.executable, "-m", "defensemble", *arguments], cwd=root).wait()


@contextmanager
def _child_handles_sigint() -> Iterator[None]:
    """Ignore Ctrl-C here, and wait for the child, which saves its state; `subprocess.run` would kill it after 0.25 s."""
    before = signal.signal(signal.SIGINT, lambda signum, frame: None)  # SIG_IGN would be inherited by the child
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@click.command(
    epilog="""\b
    Examples:
      python benchmarks/zoo_training.py --list
      python benchmarks/zoo_training.py --only standard --dataset data/cifar10
      python benchmarks/zoo_training.py --precision bf16 --compile --threads 1
    """
)
@click.option(
    "--only", multiple=True, type=click.Choice([network.name for network in PLAN]), help="Train only this network. Can be repeated."
)
@click.option("--list", "listed", is_flag=True, help="List the networks with their state and command, and train none.")
@dataset_option()
@click.option("--device", help="Device, as in `defensemble train`.")
@click.option("--precision", help="Precision, fp32 or bf16.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network with torch.compile.")
@click.option("--channels-last/--no-channels-last", default=None, help="Use the channels-last memory format.")
@click.option("--threads", type=click.IntRange(1), help="Number of threads.")
def main(
    only: tuple[str, ...],
    listed: bool,
    data_dir: Path | None,
    device: str | None,
    precision: str | None,
    compiled: bool,
    channels_last: bool | None,
    threads: int | None,
) -> None:
    """Train the unfinished networks of the zoo, in order, and write each with a model card to zoo/cifar10/.

    Training needs CIFAR-10 (163 MB), a gigabyte of memory, and 80 to 160 seconds per epoch on two cores, for 124 epochs in all; an epoch
    of adversarial training takes four times as long. After an interruption, it resumes where it stopped (state and logs are in runs/zoo/).
    Each card records how its network was trained.
    """
    networks = [network for network in PLAN if not only or network.name in only]
    options = _options(data_dir, device, precision, compiled, channels_last, threads)
    if listed:
        for network in networks:
            click.echo(f"{network.name}: {training_state(network)}\n  defensemble {shlex.join(network.arguments(*options))}")
        return
    try:
        if any(training_state(network) != "finished" for network in networks):
            _check_data(data_dir)
        train_all(networks, options, on_progress=click.echo)
    except (TrainingError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _options(
    data_dir: Path | None, device: str | None, precision: str | None, compiled: bool, channels_last: bool | None, threads: int | None
) -> list[str]:
    options = []
    if data_dir is not None:  # relative to the checkout, where training runs: the path is recorded
        options += ["--dataset", f"cifar10={os.path.relpath(data_dir, ROOT)}"]
    for name, value in (("--device", device), ("--precision", precision)):
        options += [] if value is None else [name, value]
    options += ["--compile"] if compiled else []
    options += [] if channels_last is None else ["--channels-last" if channels_last else "--no-channels-last"]
    return options + ([] if threads is None else ["--threads", str(threads)])


def _check_data(data_dir: Path | None) -> None:
    """Check once that CIFAR-10 can be loaded, before each training does."""
    try:
        load_dataset("cifar10", data_dir=data_dir)
    except DataError as error:
        raise click.ClickException(
            f"the zoo is trained on CIFAR-10, which was not found: {error}\n"
            "Set DEFENSEMBLE_DATA_DIR to the folder that contains cifar10/, pass the folder cifar10/ itself with --dataset, "
            "or run this where the hub can be reached, which downloads it once."
        ) from error


if __name__ == "__main__":
    main()

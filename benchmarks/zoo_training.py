"""Trains the zoo: seven ResNet-18s of width 16 on CIFAR-10, one after the other, and writes a model card for each."""

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

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import data_option
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.zoo.card import model_card
from benchmarks.zoo.plan import FOLDER, PLAN, ROOT, RUNS, Network, check_is
from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_training import DataError, RunFolder, TrainingError, load_dataset


def state_of(network: Network, root: Path = ROOT) -> str:
    """`finished`, `interrupted` (training goes on from there) or `to do`."""
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
    """Trains the networks that are not finished, in their order, and writes the cards of all.

    Args:
        networks: of the plan.
        options: for `defensemble train`, of the machine: they change no hyper-parameter.
        root: the folder that holds `zoo/` and `runs/`.
        run: takes the words after `defensemble` and returns the exit status; `defensemble` itself by default.
        on_progress: is told what happens.

    Raises:
        ClickException: a training did not end well, and has said why.
        TrainingError: a checkpoint is damaged, too large, or of another network than the plan's.
        OSError: a file cannot be read or written.
    """
    run = run or (lambda words: _defensemble(words, root))
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for number, network in enumerate(networks, 1):
        words, place = network.arguments(*options), root / network.path
        state = state_of(network, root)
        on_progress(f"{number} of {len(networks)}, {network.name}: {state}")
        if state != "finished":
            on_progress(f"  defensemble {shlex.join(words)}")
            if (status := run(words)) != 0 or not place.exists():
                raise click.ClickException(f"{network.name} is not finished (exit status {status}); go on with: make zoo")
        check_is(network, place)
        card, text = place.with_suffix(".md"), model_card(place)
        if not card.exists() or card.read_text() != text:
            write_atomic(card, text.encode())
            on_progress(f"  wrote {card.relative_to(root)}")


def _defensemble(words: list[str], root: Path) -> int:
    with _left_to_the_child():
        return subprocess.Popen([sys.executable, "-m", "defensemble", *words], cwd=root).wait()


@contextmanager
def _left_to_the_child() -> Iterator[None]:
    """Ctrl-C reaches both: the child saves its state and ends, which is waited for; `subprocess.run` would kill it after 0.25 s."""
    before = signal.signal(signal.SIGINT, lambda signum, frame: None)  # not SIG_IGN, which the child would inherit
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@click.command(
    epilog="""\b
    Examples:
      python benchmarks/zoo_training.py --list
      python benchmarks/zoo_training.py --only standard --data-dir data/cifar10
      python benchmarks/zoo_training.py --precision bf16 --compile --threads 1
    """
)
@click.option("--only", multiple=True, type=click.Choice([network.name for network in PLAN]), help="This network alone. Repeatable.")
@click.option("--list", "listed", is_flag=True, help="Say what is finished and what is to do, with the commands, and do nothing.")
@data_option()
@click.option("--device", help="As of `defensemble train`, like the four below.")
@click.option("--precision", help="fp32 or bf16.")
@click.option("--compile", "compiled", is_flag=True, help="Fuse the network by torch.compile.")
@click.option("--channels-last/--no-channels-last", default=None, help="Memory format.")
@click.option("--threads", type=click.IntRange(1), help="Of the processor.")
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
    """Train what is not finished of the zoo, in its order, into zoo/cifar10/, and write a model card beside each network.

    It needs CIFAR-10 (163 MB), a gigabyte of memory, and on two cores 80 to 160 seconds an epoch, 64 epochs in all. Interrupted, it goes on
    where it stopped (state and logs lie in runs/zoo/). The cards say how each network was really trained, by these options or others.
    """
    networks = [network for network in PLAN if not only or network.name in only]
    options = _options(data_dir, device, precision, compiled, channels_last, threads)
    if listed:
        for network in networks:
            click.echo(f"{network.name}: {state_of(network)}\n  defensemble {shlex.join(network.arguments(*options))}")
        return
    try:
        if any(state_of(network) != "finished" for network in networks):
            _check_data(data_dir)
        train_all(networks, options, on_progress=click.echo)
    except (TrainingError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _options(
    data_dir: Path | None, device: str | None, precision: str | None, compiled: bool, channels_last: bool | None, threads: int | None
) -> list[str]:
    options = []
    if data_dir is not None:  # training runs in the checkout; what is told relatively stays so, since it goes into the record
        options += ["--dataset", f"cifar10={data_dir if data_dir.is_absolute() else os.path.relpath(data_dir, ROOT)}"]
    for name, value in (("--device", device), ("--precision", precision)):
        options += [] if value is None else [name, value]
    options += ["--compile"] if compiled else []
    options += [] if channels_last is None else ["--channels-last" if channels_last else "--no-channels-last"]
    return options + ([] if threads is None else ["--threads", str(threads)])


def _check_data(data_dir: Path | None) -> None:
    """Decodes the images if need be, and says once how to get them, before seven trainings would."""
    try:
        load_dataset("cifar10", data_dir=data_dir)
    except DataError as error:
        raise click.ClickException(
            f"the zoo is trained on CIFAR-10, which is not here: {error}\n"
            "either let DEFENSEMBLE_DATA_DIR name the folder that holds cifar10/ (--data-dir: cifar10/ itself), "
            "or run this where the hub can be reached, from which it is downloaded once"
        ) from error


if __name__ == "__main__":
    main()

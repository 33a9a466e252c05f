"""The action of `defensemble demo`: five defective CNNs and a standard one, trained, exported, served, called and measured."""

from __future__ import annotations

import json
import shlex
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.console import Console
from rich.markup import escape

from ..._client.client import Client
from ..._exceptions import MissingExtraError, ServerFailedError
from ...probes.noise import Noise
from ..datasets import DatasetLocation
from ..interrupts import clean_up_on_sigint
from ..notes import shows_progress
from .demo_networks import ZOO, Networks, networks_from_zoo, networks_trained_on_digits
from .probe import ProbeArguments, run_probe
from .serve import print_server

if TYPE_CHECKING:
    from defensemble_export import ExportedMember
    from defensemble_server import Server
    from defensemble_training import Dataset

# Of 10,000 test images; 200 images, eleven noise levels and seven models take a minute on two cores.
_CIFAR10_LIMIT = 200


def run_demo(
    folder: Path,
    *,
    dataset: DatasetLocation,
    zoo: Path | None,
    limit: int | None,
    epochs: int | None,
    seed: int,
    keep_serving: bool,
) -> None:
    """Run the demonstration in a new folder, with checkpoints, a model repository and `noise.json`.

    Args:
        folder: Parent of the new folder.
        dataset: `digits`, on which the networks are trained, or `cifar10`, for which the zoo's are used.
        zoo: The project's folder `zoo`; None: that of this checkout.
        limit: Images to measure with; None: all of digits, 200 of CIFAR-10.
        epochs: Epochs to train; None: the recipe's.
        seed: Seed of initial weights, masks and noise.
        keep_serving: Whether the server outlives this call; how to call and stop it is printed.

    Raises:
        MissingExtraError: A package is not installed.
        InputError: The zoo lacks networks.
        ServerFailedError: A model failed, or HTTP and gRPC disagree.
    """
    console = Console()
    narrator = console if shows_progress() else Console(quiet=True)
    started = time.monotonic()
    _check_installed(narrator)
    run = _new_folder(folder)
    (run / "checkpoints").mkdir()
    narrator.print(f"[bold]defensemble demo[/bold] in {escape(str(run))}", highlight=False)
    if dataset.name == "digits":
        networks = networks_trained_on_digits(run / "checkpoints", epochs, seed, narrator)
    else:
        networks = networks_from_zoo(run / "checkpoints", zoo or ZOO, dataset.folder, narrator)
        limit = limit or _CIFAR10_LIMIT
    repository = run / "model_repository"
    _export_all(networks, repository, dataset.folder, narrator)
    clean_up_on_sigint()
    with ExitStack() as stack:
        server = _serve(repository, narrator, stack)
        _call(server, networks.dataset, narrator)
        narrator.print("\n[bold]4. measure[/bold] the robustness to noise, over the network", highlight=False)
        arguments = ProbeArguments(server.http_url, str(dataset.name), run / "noise.json", data_dir=dataset.folder, limit=limit, seed=seed)
        outcome = run_probe(Noise(seed=seed), arguments, console=console)
        if outcome.failures:
            raise ServerFailedError(f"models failed during the measurement: {outcome.failures}")
        elapsed_s = time.monotonic() - started
        narrator.print(f"\ndone in {elapsed_s:.0f} s; all files are in {run}", highlight=False, soft_wrap=True, markup=False)
        if keep_serving:
            _print_usage(server, run, networks.dataset)
            server.detach()


def _check_installed(console: Console) -> None:
    """Raise before the first step if a package is missing; build what the server needs."""
    missing = [name for name in ("torch", "safetensors", "sklearn", "onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"these packages are not installed: {', '.join(missing)}. Run pip install 'defensemble[all]'.")
    from defensemble_server import find_runtime

    find_runtime("embedded", on_progress=lambda text: console.print(text, highlight=False, markup=False))


def _new_folder(folder: Path) -> Path:
    """Create a folder named after the time; runs that start in the same second get different ones."""
    folder.mkdir(parents=True, exist_ok=True)
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        run = folder / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir()
        except FileExistsError:
            continue
        return run
    raise AssertionError("count does not end")


def _export_all(networks: Networks, repository: Path, data_dir: Path | None, console: Console) -> None:
    console.print("\n[bold]2. export[/bold] them to ONNX, with the masks as constants, and compare each with PyTorch", highlight=False)
    from defensemble_export import export_checkpoints

    def on_exported(checkpoint: Path, member: ExportedMember) -> None:
        console.print(f"  {checkpoint.stem}", highlight=False)

    with console.status("exporting"):
        export_checkpoints(networks.checkpoints(), repository, data_dir=data_dir, on_exported=on_exported)
        export_checkpoints([networks.standard], repository, ensemble=None, data_dir=data_dir, on_exported=on_exported)


def _serve(repository: Path, console: Console, stack: ExitStack) -> Server:
    console.print(
        "\n[bold]3. serve[/bold] the defective CNNs as an ensemble and the standard one as a single model, and call the ensemble",
        highlight=False,
    )
    from defensemble_server import ServeOptions, serve

    def on_progress(text: str) -> None:
        console.print(f"  {text}", highlight=False)

    # A short drain: no requests are running when the demonstration ends.
    options = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)
    with console.status("starting Triton"):
        server = stack.enter_context(serve(repository, options, on_progress=on_progress))
    on_progress(f"Triton is ready after {server.start_s:.1f} s: {server.http_url} and {server.grpc_url}")
    return server


def _call(server: Server, dataset: Dataset, console: Console) -> None:
    images, labels = dataset.test.images(slice(0, 8)), dataset.test.labels[:8]
    with Client(server.http_url) as http_client, Client(server.grpc_url) as grpc_client:
        http_prediction = http_client.predict(images)
        grpc_prediction = grpc_client.predict(images)
        difference = float(np.abs(http_prediction.probabilities - grpc_prediction.probabilities).max())
    classes = " ".join(dataset.class_names[label] for label in labels)
    console.print(f"  classes of 8 images    {classes}", highlight=False)
    console.print(f"  predictions over HTTP  {' '.join(http_prediction.labels)}", highlight=False)
    console.print(f"  predictions over gRPC  {' '.join(grpc_prediction.labels)}, largest difference {difference:g}", highlight=False)
    if difference > 0:
        raise ServerFailedError(f"HTTP and gRPC differ by {difference:g} on the same images; expected equal probabilities")


def _print_usage(server: Server, run: Path, dataset: Dataset) -> None:
    """Print how to call and stop the running server; every line works as printed."""
    image = np.round(dataset.test.images(slice(0, 1))[0], 3)
    run = run.resolve()
    request = run / "request.json"
    body = {
        "inputs": [{"name": "images", "shape": [1, *image.shape], "datatype": "FP32", "data": image.ravel().tolist()}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}],
    }
    request.write_text(json.dumps(body))
    np.save(run / "images.npy", dataset.test.images(slice(0, 8)))
    click.echo("\nThe server keeps running.\n")
    print_server(server)
    click.echo(f"\nCall it with curl (an image of class {dataset.class_names[dataset.test.labels[0]]}):\n")
    click.echo(f"curl --silent --data {shlex.quote(f'@{request}')} {server.http_url}/v2/models/ensemble/infer")
    click.echo(f"\nOr with Python ({sys.executable}):\n")
    click.echo("import numpy\nfrom defensemble import Client\n")
    click.echo(f'with Client("{server.http_url}") as client:')
    click.echo(f"    prediction = client.predict(numpy.load({json.dumps(str(run / 'images.npy'))}))")
    click.echo("print(prediction.labels, prediction.entropy)")

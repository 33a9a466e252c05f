"""All of it, small: five defective CNNs and a standard one, trained, exported, served, called and probed."""

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
from ..commands.serve import show
from .demo_networks import ZOO, Networks, networks_from_zoo, networks_trained_on_digits
from .probe import probe_noise_and_report

if TYPE_CHECKING:
    from defensemble_export import ExportedMember
    from defensemble_server import Server
    from defensemble_training import Dataset

# Of 10,000 test images: 200 with eleven settings and seven models take a minute on two cores.
_CIFAR10_LIMIT = 200


def run_demo(
    folder: Path,
    *,
    dataset: str,
    data_dir: Path | None,
    zoo: Path | None,
    limit: int | None,
    epochs: int | None,
    seed: int,
    keep_serving: bool,
) -> None:
    """Run the demonstration in a new folder under `folder`: checkpoints, repository and `noise.json`.

    On `digits` the networks are trained, for `epochs` (None takes the recipe's); on `cifar10` they are the zoo's. The probe takes `limit`
    images, by default all of digits and 200 of CIFAR-10. With `keep_serving` the server outlives this call, and what calls and stops it is
    printed.
    """
    console = Console()
    began = time.monotonic()
    _check_installed(console)
    run = _new_folder(folder)
    (run / "checkpoints").mkdir()
    console.print(f"[bold]defensemble demo[/bold] in {escape(str(run))}", highlight=False)
    if dataset == "digits":
        networks = networks_trained_on_digits(run / "checkpoints", epochs, seed, console)
    else:
        networks = networks_from_zoo(run / "checkpoints", zoo or ZOO, data_dir, console)
        limit = limit or _CIFAR10_LIMIT
    repository = run / "model_repository"
    _export_all(networks, repository, data_dir, console)
    with ExitStack() as stack:
        server = _serve(repository, console, stack)
        _call(server, networks.dataset, console)
        console.print("\n[bold]4. probe[/bold] it with noise, as any caller can", highlight=False)
        with Client(server.http_url) as client:
            failures = probe_noise_and_report(
                client, dataset, run / "noise.json", limit=limit, seed=seed, data_dir=data_dir, console=console
            )
        if failures:
            raise ServerFailedError(f"models failed during the probe: {failures}")
        console.print(f"\ndone in {time.monotonic() - began:.0f} s; everything is in {run}", highlight=False, soft_wrap=True, markup=False)
        if keep_serving:
            _explain(server, run, networks.dataset)
            server.detach()


def _check_installed(console: Console) -> None:
    """Find out before anything is written or trained whether all that the demonstration needs is there; what serving lacks is built."""
    missing = [name for name in ("torch", "safetensors", "sklearn", "onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"the demo trains, exports and serves, and {', '.join(missing)} is missing: pip install 'defensemble[all]'")
    from defensemble_server import find_runtime

    find_runtime("embedded", on_progress=lambda text: console.print(text, highlight=False, markup=False))


def _new_folder(folder: Path) -> Path:
    """A new folder for one run, named after the time; demonstrations that start in the same second get one each."""
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
    console.print("\n[bold]2. export[/bold] them to ONNX, masks as constants, each verified against torch", highlight=False)
    from defensemble_export import export_checkpoints

    def on_exported(checkpoint: Path, member: ExportedMember) -> None:
        console.print(f"  {checkpoint.stem}", highlight=False)

    with console.status("exporting"):
        export_checkpoints(networks.checkpoints(), repository, data_dir=data_dir, on_exported=on_exported)
        export_checkpoints([networks.standard], repository, ensemble=None, data_dir=data_dir, on_exported=on_exported)


def _serve(repository: Path, console: Console, stack: ExitStack) -> Server:
    console.print("\n[bold]3. serve[/bold] the defective ones as one ensemble, the standard one beside it, and call it", highlight=False)
    from defensemble_server import ServeOptions, serve

    def on_progress(text: str) -> None:
        console.print(f"  {text}", highlight=False)

    # Short: nothing of value is in flight when the demonstration ends.
    options = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)
    with console.status("starting Triton"):
        server = stack.enter_context(serve(repository, options, on_progress=on_progress))
    on_progress(f"Triton is ready after {server.start_s:.1f} s: {server.http_url} and {server.grpc_url}")
    return server


def _call(server: Server, dataset: Dataset, console: Console) -> None:
    images, labels = dataset.test.images(slice(0, 8)), dataset.test.labels[:8]
    with Client(server.http_url) as over_http, Client(server.grpc_url) as over_grpc:
        first = over_http.predict(images)
        second = over_grpc.predict(images)
        difference = float(np.abs(first.probabilities - second.probabilities).max())
    truth = " ".join(dataset.class_names[label] for label in labels)
    console.print(f"  eight images       {truth}", highlight=False)
    console.print(f"  answers over HTTP  {' '.join(first.labels)}", highlight=False)
    console.print(f"  answers over gRPC  {' '.join(second.labels)}, largest difference {difference:g}", highlight=False)
    if difference > 0:
        raise ServerFailedError(f"HTTP and gRPC differ by {difference:g} on the same images; expected the same bytes")


def _explain(server: Server, run: Path, dataset: Dataset) -> None:
    """Print how the server that is left is called and stopped; every line works as printed."""
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
    show(server)
    click.echo(f"\ncall it with curl (an image of: {dataset.class_names[dataset.test.labels[0]]}):\n")
    click.echo(f"curl --silent --data {shlex.quote(f'@{request}')} {server.http_url}/v2/models/ensemble/infer")
    click.echo(f"\nor with Python ({sys.executable}):\n")
    click.echo("import numpy\nfrom defensemble import Client\n")
    click.echo(f'with Client("{server.http_url}") as client:')
    click.echo(f"    prediction = client.predict(numpy.load({json.dumps(str(run / 'images.npy'))}))")
    click.echo("print(prediction.labels, prediction.entropy)")

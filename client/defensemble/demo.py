"""All of it, small: five defective CNNs and a standard one, trained, exported, served, called and probed."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from defensemble._client import Client
from defensemble._exceptions import MissingExtraError, ServerFailedError
from defensemble.cli._probing import probe_noise_and_report
from defensemble.cli.serve import show

if TYPE_CHECKING:
    from defensemble_server import Server
    from defensemble_training import Dataset, ModelSpec, TrainingProgress

# Several keeps, so that the table shows what the keep probability does; keep0.3 twice, with other masks and another initialisation.
KEEPS: Mapping[str, float] = {"keep0.1": 0.1, "keep0.3": 0.3, "keep0.3-other": 0.3, "keep0.5": 0.5, "keep0.7": 0.7}
STANDARD = "standard"
_IMAGE_SIZE = 16
_WIDTH = 8
# Between an answer over gRPC and the same over HTTP: the same float32 bytes.
_SAME = 0.0


def run_demo(folder: Path, *, epochs: int | None = None, seed: int = 0, keep_serving: bool = False, console: Console | None = None) -> Path:
    """Run the demonstration in a new folder under ``folder``, and return that folder: checkpoints, repository and ``noise.json``.

    ``epochs`` None takes the recipe's. With ``keep_serving`` the server outlives this call, and what calls and stops it is printed.

    Raises:
        DefensembleError, and the errors of the other packages: the text says what went wrong.
        OSError: the folder cannot be written.
    """
    console = console or Console()
    began = time.monotonic()
    _check_installed(console)
    run = _new_folder(folder)
    (run / "checkpoints").mkdir()
    console.print(f"[bold]defensemble demo[/bold] in {escape(str(run))}", highlight=False)
    dataset = _train_all(run / "checkpoints", epochs, seed, console)
    repository = run / "model_repository"
    _export_all(run / "checkpoints", repository, console)
    with ExitStack() as stack:
        server = stack.enter_context(_served(repository, console))
        _call(server, dataset, console)
        console.print("\n[bold]4. probe[/bold] it with noise, as any caller can", highlight=False)
        with Client(server.grpc_url) as client:
            failures = probe_noise_and_report(client, "digits", run / "noise.json", seed=seed, console=console)
        if failures:
            raise ServerFailedError(f"models failed during the probe: {failures}")
        console.print(f"\ndone in {time.monotonic() - began:.0f} s; everything is in {run}", highlight=False, soft_wrap=True, markup=False)
        if keep_serving:
            _explain(server, run, dataset)
            server.detach()
    return run


def _check_installed(console: Console) -> None:
    """Find out before anything is written or trained whether all that the demonstration needs is there; what serving lacks is built."""
    missing = [name for name in ("torch", "safetensors", "sklearn", "onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"the demo trains, exports and serves, and {', '.join(missing)} is missing: pip install 'defensemble[all]'")
    from defensemble_server.runtime import find_runtime

    find_runtime("embedded", say=lambda text: console.print(text, highlight=False, markup=False))


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


def _train_all(folder: Path, epochs: int | None, seed: int, console: Console) -> Dataset:
    console.print("\n[bold]1. train[/bold] five defective ResNet-18s and a standard one on handwritten digits", highlight=False)
    from defensemble_training import load_dataset, save_checkpoint, train

    dataset = load_dataset("digits", _IMAGE_SIZE)
    names = [*KEEPS, STANDARD]
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=len(names), state="")
        for number, name in enumerate(names):
            spec = _spec(name, number, seed, dataset)

            def on_progress(progress: TrainingProgress, name: str = name, number: int = number) -> None:
                state = f"loss {progress.loss:.3f}, accuracy {progress.train_accuracy:.3f}"
                bar.update(task, completed=number + progress.step / progress.steps, description=name, state=state)

            recipe = {} if epochs is None else {"epochs": epochs}
            module, record = train(spec, dataset, seed=seed + number, on_progress=on_progress, **recipe)
            save_checkpoint(folder / f"{name}.safetensors", module, spec, record)
            right = round(record.accuracy * record.n_test)
            console.print(f"  {name:14} {right} of {record.n_test} test images right, {record.seconds:.1f} s", highlight=False)
    return dataset


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


def _export_all(checkpoints: Path, repository: Path, console: Console) -> None:
    console.print("\n[bold]2. export[/bold] them to ONNX, masks as constants, each verified against torch", highlight=False)
    from defensemble_export import export_checkpoints

    def on_exported(checkpoint: Path) -> None:
        console.print(f"  {checkpoint.stem}", highlight=False)

    with console.status("exporting"):
        export_checkpoints([checkpoints / f"{name}.safetensors" for name in KEEPS], repository, on_exported=on_exported)
        export_checkpoints([checkpoints / f"{STANDARD}.safetensors"], repository, ensemble=None, on_exported=on_exported)


@contextmanager
def _served(repository: Path, console: Console) -> Iterator[Server]:
    console.print("\n[bold]3. serve[/bold] the five as one ensemble, the standard one beside it, and call it", highlight=False)
    from defensemble_server import ServeOptions, serve

    def say(text: str) -> None:
        console.print(f"  {text}", highlight=False)

    # Short: nothing of value is in flight when the demonstration ends.
    options = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)
    with console.status("starting Triton"):
        context = serve(repository, options, say=say)
        server = context.__enter__()
    try:
        say(f"Triton is ready after {server.start_s:.1f} s: {server.grpc_url} and {server.http_url}")
        yield server
    finally:
        context.__exit__(None, None, None)


def _call(server: Server, dataset: Dataset, console: Console) -> None:
    images, labels = dataset.test_images[:8], dataset.test_labels[:8]
    with Client(server.grpc_url) as over_grpc, Client(server.http_url) as over_http:
        first = over_grpc.predict(images)
        second = over_http.predict(images)
        difference = float(np.abs(first.probabilities - second.probabilities).max())
    truth = " ".join(dataset.class_names[label] for label in labels)
    console.print(f"  eight digits       {truth}", highlight=False)
    console.print(f"  answers over gRPC  {' '.join(first.labels)}", highlight=False)
    console.print(f"  answers over HTTP  {' '.join(second.labels)}, largest difference {difference:g}", highlight=False)
    if difference > _SAME:
        raise ServerFailedError(f"gRPC and HTTP differ by {difference:g} on the same images; expected the same bytes")


def _explain(server: Server, run: Path, dataset: Dataset) -> None:
    """Print how the server that is left is called and stopped; every line works as printed."""
    image = np.round(dataset.test_images[0], 3)
    run = run.resolve()
    request = run / "request.json"
    body = {
        "inputs": [{"name": "images", "shape": [1, *image.shape], "datatype": "FP32", "data": image.ravel().tolist()}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}],
    }
    request.write_text(json.dumps(body))
    np.save(run / "images.npy", dataset.test_images[:8])
    click.echo("\nThe server keeps running.\n")
    show(server)
    click.echo(f"\ncall it with curl (an image of a {dataset.class_names[dataset.test_labels[0]]}):\n")
    click.echo(f"curl --silent --data {shlex.quote(f'@{request}')} {server.http_url}/v2/models/ensemble/infer")
    click.echo(f"\nor with Python ({sys.executable}):\n")
    click.echo("import numpy\nfrom defensemble import Client\n")
    click.echo(f'with Client("{server.grpc_url}") as client:')
    click.echo(f"    prediction = client.predict(numpy.load({json.dumps(str(run / 'images.npy'))}))")
    click.echo("print(prediction.labels, prediction.entropy)")

"""What `defensemble export` does with its options."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from defensemble_repository.checks.outdated_graphs import outdated_graphs
from defensemble_repository.export_report import read_reports
from defensemble_repository.names import RESERVED
from defensemble_repository.reader import read_config, read_ensemble
from defensemble_repository.view import RepositoryView

from ..._image_files import read_npy_images
from ...ensembles.local_servers import servers_of
from ..notes import print_progress
from ..progress import progress_bar
from ..shell import this_command
from .reports import show_reports, summary

if TYPE_CHECKING:
    from defensemble_export import ExportedMember, FromCheckpoint, FromOnnx


# The fields of these options, where they have other names.
_FIELDS = {"weight": "weights", "images": "images_file", "calibration_images": "calibration_file", "labels": "labels_file"}


@dataclass(frozen=True)
class Request:
    """The options, as they were given; an error where they do not go together."""

    checkpoints: tuple[Path, ...]
    repository: Path
    name: str | None
    ensemble: str | None
    no_ensemble: bool
    average: str | None
    weights: Mapping[str, float]
    max_batch_size: int | None
    replace: bool
    data_dir: Path | None
    images_file: Path | None
    precision: str
    calibration_file: Path | None
    calibration_count: int | None
    calibration_seed: int | None
    fused_name: str | None
    engine: bool
    onnx_file: Path | None
    output: str | None
    labels_file: Path | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    input_shape: tuple[int, int, int] | None
    resize: str | None
    custom_operators: tuple[str, ...]
    import_timeout: float | None
    report: bool

    def __post_init__(self) -> None:
        networks = self.networks
        if not networks and not self.report and self.fused_name is None and self.name is None:
            raise click.UsageError("no network is given: name a CHECKPOINT, or an ONNX file by --from-onnx")
        if self.name is not None and networks != 1:
            raise click.UsageError(f"--as names one network, and {networks} are given")
        if self.onnx_file is not None and self.name is None:
            raise click.UsageError("--from-onnx needs --as NAME: what the member is to be called")
        if self.onnx_file is None:
            foreign = ("output", "labels", "mean", "std", "input_shape", "resize", "custom_operators", "import_timeout")
            self._refuse(foreign, "of use with --from-onnx alone")
        if (self.mean is None) != (self.std is None):
            raise click.UsageError("--mean and --std go together: give both, or neither")
        if self.precision != "int8":
            self._refuse(("calibration_images", "calibration_count", "calibration_seed"), "of use with --precision int8 alone")
        averaged = bool(self.weights) or self.average is not None
        if self.no_ensemble and self.ensemble is not None:
            raise click.UsageError("--ensemble names an ensemble, and --no-ensemble asks for none")
        if self.no_ensemble and self.fused_name is None and averaged:
            raise click.UsageError("--weight and --average are about an ensemble or a fused graph, and --no-ensemble asks for none")
        if self.engine and not networks and self.fused_name is None:
            raise click.UsageError("--engine builds engines of what is exported; of what is there: defensemble build-engine")
        if not networks:
            about = ("average", "weight", "precision", *(() if self.fused_name is not None else ("data_dir", "images")))
            self._refuse(about, "of use with networks to export, and none is given")
        if not networks and self.fused_name is not None and self.no_ensemble:
            raise click.UsageError("--fuse without networks fuses an ensemble that is in the repository: leave --no-ensemble out")

    def _refuse(self, options: Sequence[str], why: str) -> None:
        """Raise an error where one of these options has another value than its default."""
        given = [name for name in options if getattr(self, _FIELDS.get(name, name)) not in (None, (), {}, "fp32")]
        if given:
            raise click.UsageError(f"{', '.join('--' + name.replace('_', '-') for name in given)}: {why}")

    @cached_property
    def images(self) -> NDArray[np.float32] | None:
        """The real images that were given."""
        return None if self.images_file is None else read_npy_images(self.images_file)

    @property
    def networks(self) -> int:
        """How many are to be exported."""
        return len(self.checkpoints) + (self.onnx_file is not None)

    @property
    def ensemble_name(self) -> str | None:
        """The ensemble that is to be written, or fused."""
        return None if self.no_ensemble else "ensemble" if self.ensemble is None else self.ensemble


def run(request: Request) -> None:
    """Export, fuse, build engines and show reports, as asked for."""
    if request.engine:  # whether they can be built here at all, before anything is written
        from defensemble_export import check_target, find_target

        check_target(find_target(), request.precision, hardware_compatible=False)
    written: list[str] = []
    if request.networks:
        written = _export(request)
    elif request.fused_name is not None:
        written = _fuse(request)
    if request.engine:
        _build_engines(request, written)
    if request.report:
        show_reports(request.repository)


def _export(request: Request) -> list[str]:
    images = request.images
    calibration = None if request.calibration_file is None else read_npy_images(request.calibration_file)
    # After the cheap checks: this imports torch, onnx and ONNX Runtime.
    from defensemble_export import Form, export_networks

    _warn_of_pixel_statistics(request)
    drawn = {"calibration_count": request.calibration_count, "calibration_seed": request.calibration_seed}
    form = Form(request.precision, calibration, **{key: value for key, value in drawn.items() if value is not None})
    networks = _networks(request)
    console = Console(stderr=True)
    with progress_bar(console) as progress:
        task = progress.add_task("exporting", total=len(networks))

        show = partial(console.print, highlight=False, markup=False, soft_wrap=True)

        def on_exported(path: Path, member: ExportedMember) -> None:
            progress.advance(task)
            show(f"exported and verified {path}{summary(member)}")

        written = export_networks(
            networks,
            request.repository,
            ensemble=request.ensemble_name,
            average=request.average,
            weights=request.weights,
            max_batch_size=request.max_batch_size,
            replace=request.replace,
            form=form,
            images=images,
            data_dir=request.data_dir,
            fuse=request.fused_name,
            on_exported=on_exported,
            on_progress=show,
        )
    _tell(request, written)
    return written


def _warn_of_pixel_statistics(request: Request) -> None:
    """Warn of a mean or deviation above 1: images are in [0, 1] when it is applied."""
    if request.mean is None or request.std is None or max(*request.mean, *request.std) <= 1:
        return
    mean, std = (",".join(f"{value / 255:.6g}" for value in values) for values in (request.mean, request.std))
    click.echo(
        f"Warning: --mean and --std are for images in [0, 1], and {max(*request.mean, *request.std):g} is above 1. If these values are for "
        f"images of 0 to 255, divide all of them by 255: --mean {mean} --std {std}",
        err=True,
    )


def _fuse(request: Request) -> list[str]:
    images = request.images
    from defensemble_export import fuse_repository

    assert request.fused_name is not None
    assert request.ensemble_name is not None
    console = Console(stderr=True)
    with console.status(f"fusing the members of '{request.ensemble_name}' and comparing the graph with them"):
        written = fuse_repository(
            request.repository,
            request.ensemble_name,
            request.fused_name,
            images=images,
            data_dir=request.data_dir,
            max_batch_size=request.max_batch_size,
            replace=request.replace,
            on_progress=partial(console.print, highlight=False, markup=False, soft_wrap=True),
        )
    _tell(request, written)
    return written


def _tell(request: Request, written: Sequence[str]) -> None:
    """What was written, what of the goals was missed, and how it is served."""
    from defensemble_export import RANDOM_ONLY

    models = sorted({path.split("/")[0] for path in written})
    click.echo(f"{request.repository}: wrote {', '.join(models)}")
    if request.ensemble_name is not None and request.networks:
        click.echo(_described(request.repository, request.ensemble_name))
    new = {(path.split("/")[0], path.split("/")[1]) for path in written if path.endswith(".onnx")}
    for one in read_reports(request.repository, models):
        if (one.model, str(one.version)) in new and one.values is not None:
            verified = one.values["verification"] or {}
            for text in verified.get("goals_missed", []):
                click.echo(f"{one.model}@{one.version}: a goal is missed: {text}", err=True)
            if str(verified.get("images", "")).startswith(RANDOM_ONLY):
                click.echo(f"{one.model}@{one.version}: compared on {RANDOM_ONLY}; real ones tell more: --images FILE.npy", err=True)
    if request.ensemble_name is not None and (request.repository / request.ensemble_name).exists():
        for name in outdated_graphs(RepositoryView(request.repository), read_ensemble(request.repository, request.ensemble_name)):
            click.echo(
                f"{name} is a graph of other versions or weights than '{request.ensemble_name}' votes with now: {this_command()} export "
                f"--repository {request.repository} --ensemble {request.ensemble_name} --fuse {name} --replace",
                err=True,
            )
    for model, version in sorted(new) if request.ensemble_name is None else ():
        if version != "1":
            click.echo(
                f"{model}@{version} votes nowhere yet; let it: {this_command()} ensemble add NAME {model}@{version} "
                f"--in-place-of {model}@{int(version) - 1}"
            )
    running = servers_of(request.repository, print_progress)
    for url, _ in running if request.ensemble_name in models else ():
        where = f"--repository {shlex.quote(str(request.repository))}"
        click.echo(
            f"{url} serves what was there before; let it take this up: {this_command()} ensemble reload {request.ensemble_name} {where}"
        )
    if not running:
        click.echo(f"serve it: {this_command()} serve {request.repository}")


def _build_engines(request: Request, written: Sequence[str]) -> None:
    from defensemble_export import build_engines

    from ..commands.build_engine import shown_building

    new = dict.fromkeys(path.split("/")[0] for path in written if path.endswith(".onnx"))
    with shown_building() as (on_message, on_progress):
        build_engines(
            request.repository,
            models=[name for name in new if not name.startswith(RESERVED)],
            images=request.images,
            data_dir=request.data_dir,
            on_message=on_message,
            on_progress=on_progress,
        )
    click.echo(f"serve the engines: {this_command()} profile write gpu-tensorrt {request.repository}, then")
    click.echo(f"  {this_command()} serve {request.repository} --profile gpu-tensorrt")


def _networks(request: Request) -> list[FromCheckpoint | FromOnnx]:
    from defensemble_export import FromCheckpoint, FromOnnx, labels_from_file

    networks: list[FromCheckpoint | FromOnnx] = [FromCheckpoint(path, request.name) for path in request.checkpoints]
    if request.onnx_file is not None:
        assert request.name is not None
        limits = {} if request.import_timeout is None else {"timeout_s": request.import_timeout}
        networks.append(
            FromOnnx(
                request.onnx_file,
                request.name,
                output=request.output,
                mean=request.mean,
                std=request.std,
                input_shape=request.input_shape,
                resize=request.resize,
                class_names=None if request.labels_file is None else labels_from_file(request.labels_file),
                custom_domains=request.custom_operators,
                **limits,
            )
        )
    return networks


def _described(repository: Path, name: str) -> str:
    """What an ensemble consists of now, as its configurations say."""
    ensemble = read_ensemble(repository, name)
    votes = ", ".join(f"{vote.model}@{vote.version} (weight {vote.weight:g})" for vote in ensemble.members)
    batch = read_config(repository / name).max_batch_size
    return f"{name}: {votes}; average of {ensemble.average}, batches of up to {batch}"

"""What `defensemble export`, `import-onnx` and `fuse` do once their options are read."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from defensemble_repository.checks.outdated_graphs import outdated_graphs
from defensemble_repository.export_report import read_reports
from defensemble_repository.names import RESERVED_PREFIXES
from defensemble_repository.reader import read_config, read_ensemble
from defensemble_repository.view import RepositoryView

from ..._exceptions import InputError
from ..._image_files import read_npy_images
from ...ensembles.local_servers import find_local_servers
from ..notes import print_note
from ..progress import line_printer, progress_bar
from ..shell import this_command
from .export_settings import ExportSettings
from .reports import summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from defensemble_export import CheckpointSource, ExportedMember, OnnxSource


def export_checkpoints(checkpoints: Sequence[Path], name: str | None, settings: ExportSettings, *, dataset: str | None) -> None:
    """Export checkpoints as members.

    Args:
        checkpoints: The files.
        name: The member's name, for one checkpoint; None: the file's name.
        settings: Where and how they are exported.
        dataset: The dataset that all of them must be trained on; None: any.
    """
    _check_datasets(checkpoints, dataset)
    _check_engine_target(settings)
    images, calibration = _images(settings.images_file), _images(settings.calibration_file)
    # After the cheap checks: this imports torch, onnx and ONNX Runtime.
    from defensemble_export import CheckpointSource

    written = _export([CheckpointSource(path, name) for path in checkpoints], settings, images, calibration)
    _finish_members(written, settings, images)


def import_onnx(
    file: Path, name: str, settings: ExportSettings, *, labels_file: Path | None, timeout_s: float | None, **conversion: Any
) -> None:
    """Import an ONNX classifier as the member `name`; `conversion` are fields of `OnnxSource`."""
    _check_engine_target(settings)
    images, calibration = _images(settings.images_file), _images(settings.calibration_file)
    from defensemble_export import OnnxSource, labels_from_file

    _warn_of_pixel_statistics(conversion["mean"], conversion["std"])
    limits: dict[str, Any] = {} if timeout_s is None else {"timeout_s": timeout_s}
    class_names = None if labels_file is None else labels_from_file(labels_file)
    written = _export([OnnxSource(file, name, class_names=class_names, **conversion, **limits)], settings, images, calibration)
    _finish_members(written, settings, images)


def fuse_checkpoints(name: str, checkpoints: Sequence[Path], settings: ExportSettings, *, dataset: str | None) -> None:
    """Write checkpoints as one graph, the model `name`, without adding them as members; `dataset` as for `export_checkpoints`."""
    _check_datasets(checkpoints, dataset)
    images, calibration = _images(settings.images_file), _images(settings.calibration_file)
    from defensemble_export import CheckpointSource

    written = _export([CheckpointSource(path) for path in checkpoints], settings, images, calibration, fuse=name)
    _print_written(written, settings.repository)
    _print_how_to_serve(settings.repository)


def fuse_ensemble(name: str, ensemble: str, settings: ExportSettings) -> None:
    """Write an ensemble of the repository as one graph, the model `name`."""
    images = _images(settings.images_file)
    from defensemble_export import fuse_repository

    console = Console(stderr=True)
    with console.status(f"fusing the members of '{ensemble}' and comparing the graph with them"):
        written = fuse_repository(
            settings.repository,
            ensemble,
            name,
            images=images,
            data_dir=settings.data_dir,
            max_batch_size=settings.max_batch_size,
            replace=settings.replace,
            on_progress=line_printer(console),
        )
    _print_written(written, settings.repository)
    _print_outdated_graphs(settings.repository, ensemble)
    _print_how_to_serve(settings.repository)


def _check_datasets(checkpoints: Sequence[Path], dataset: str | None) -> None:
    """Refuse a checkpoint that was trained on another dataset than `--dataset` names."""
    if dataset is None:
        return
    from defensemble_training import read_metadata

    for path in checkpoints:
        trained_on = read_metadata(path).record.data
        if trained_on != dataset:
            raise InputError(
                f"{path} was trained on {trained_on!r}, but --dataset names {dataset!r}: name the dataset that it was trained on"
            )


def _images(path: Path | None) -> NDArray[np.float32] | None:
    return None if path is None else read_npy_images(path)


def _check_engine_target(settings: ExportSettings) -> None:
    """Check that this machine can build the engines, before anything is written."""
    if settings.engine:
        from defensemble_export import check_target, find_target

        check_target(find_target(), settings.precision, hardware_compatible=False)


def _warn_of_pixel_statistics(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Warn of a mean or standard deviation above 1: they apply to images in [0, 1]."""
    if mean is None or std is None or not max(*mean, *std) > 1:  # not with NaN, which is refused later
        return
    scaled_mean, scaled_std = (",".join(f"{value / 255:.6g}" for value in values) for values in (mean, std))
    print_note(
        f"--mean and --std apply to images in [0, 1], and {max(*mean, *std):g} is above 1. If these values are for images of 0 to "
        f"255, divide all of them by 255: --mean {scaled_mean} --std {scaled_std}"
    )


def _export(
    networks: Sequence[CheckpointSource | OnnxSource],
    settings: ExportSettings,
    images: NDArray[np.float32] | None,
    calibration: NDArray[np.float32] | None,
    *,
    fuse: str | None = None,
) -> list[str]:
    """Export and verify networks with a progress bar; return the paths written."""
    from defensemble_export import ExportOptions, export_networks

    draw = {"calibration_count": settings.calibration_count, "calibration_seed": settings.calibration_seed}
    given = {key: value for key, value in draw.items() if value is not None}
    export_options = ExportOptions(settings.precision, calibration, mask_aware=settings.mask_aware, **given)
    console = Console(stderr=True)
    with progress_bar(console) as progress:
        task = progress.add_task("exporting", total=len(networks))
        show = line_printer(console)

        def on_exported(path: Path, member: ExportedMember) -> None:
            progress.advance(task)
            show(f"exported and verified {path}{summary(member)}")

        return export_networks(
            networks,
            settings.repository,
            ensemble=settings.ensemble,
            average=settings.average,
            weights=settings.weights,
            max_batch_size=settings.max_batch_size,
            replace=settings.replace,
            options=export_options,
            images=images,
            data_dir=settings.data_dir,
            fuse=fuse,
            on_exported=on_exported,
            on_progress=show,
        )


def _finish_members(written: Sequence[str], settings: ExportSettings, images: NDArray[np.float32] | None) -> None:
    """Print what was written and what to do next; build the engines that `--engine` asks for."""
    repository, ensemble = settings.repository, settings.ensemble
    models = _print_written(written, repository, None if ensemble is None else _ensemble_line(repository, ensemble))
    where = f"--repository {shlex.quote(str(repository))}"
    if ensemble is None:
        for model, version in _versions_in(written):
            if version > 1:
                click.echo(
                    f"{model}@{version} is in no ensemble yet; add it: {this_command()} ensemble add NAME {model}@{version} "
                    f"--in-place-of {model}@{version - 1} {where}"
                )
    else:
        _print_outdated_graphs(repository, ensemble)
        for url, _ in find_local_servers(repository, print_note) if ensemble in models else ():
            click.echo(f"{url} serves the old files; load the new ones: {this_command()} ensemble reload {ensemble} {where}")
    _print_how_to_serve(repository)
    if settings.engine:
        _build_engines(settings, [model for model, _ in _versions_in(written) if not model.startswith(RESERVED_PREFIXES)], images)


def _versions_in(written: Sequence[str]) -> list[tuple[str, int]]:
    """Return model and version of each ONNX file among these paths."""
    parts = (path.split("/") for path in written if path.endswith(".onnx"))
    return sorted((model, int(version)) for model, version, _ in parts)


def _print_written(written: Sequence[str], repository: Path, ensemble_line: str | None = None) -> list[str]:
    """Print the models that were written, missed goals, and comparisons on random images only; return the models' names."""
    from defensemble_export import RANDOM_ONLY

    models = sorted({path.split("/")[0] for path in written})
    click.echo(f"{repository}: wrote {', '.join(models)}")
    if ensemble_line is not None:
        click.echo(ensemble_line)
    versions = _versions_in(written)
    for report in read_reports(repository, models):
        if (report.model, report.version) not in versions or report.values is None:
            continue
        verification = report.values["verification"] or {}
        for goal in verification.get("goals_missed", []):
            print_note(f"{report.model}@{report.version} misses a goal: {goal}")
        if str(verification.get("images", "")).startswith(RANDOM_ONLY):
            print_note(
                f"{report.model}@{report.version} was compared on {RANDOM_ONLY}; real images are a stronger check: --images FILE.npy"
            )
    return models


def _print_outdated_graphs(repository: Path, ensemble: str) -> None:
    """Print how to update the fused graphs that no longer equal their ensemble."""
    for name in outdated_graphs(RepositoryView(repository), read_ensemble(repository, ensemble)):
        command = f"{this_command()} fuse {name} --repository {shlex.quote(str(repository))} --ensemble {ensemble} --replace"
        print_note(f"the fused graph '{name}' has other versions or weights than '{ensemble}' now; fuse it again: {command}")


def _print_how_to_serve(repository: Path) -> None:
    """Print the command that serves the repository, unless a server runs on it here."""
    if not find_local_servers(repository, print_note):
        click.echo(f"serve it: {this_command()} serve --repository {shlex.quote(str(repository))}")


def _build_engines(settings: ExportSettings, models: list[str], images: NDArray[np.float32] | None) -> None:
    from defensemble_export import build_engines

    from .engines import building_progress, print_how_to_serve

    with building_progress() as (on_progress, on_phase):
        build_engines(
            settings.repository,
            models=models,
            images=images,
            data_dir=settings.data_dir,
            on_progress=on_progress,
            on_phase=on_phase,
        )
    print_how_to_serve(settings.repository)


def _ensemble_line(repository: Path, name: str) -> str:
    """Return the members, weights, average and largest batch of an ensemble in one line."""
    ensemble = read_ensemble(repository, name)
    members = ", ".join(f"{member.model}@{member.version} (weight {member.weight:g})" for member in ensemble.members)
    batch = read_config(repository / name).max_batch_size
    return f"{name}: {members}; average of {ensemble.average}, batches of up to {batch}"

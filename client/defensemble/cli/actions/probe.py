"""The action of `defensemble probe`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..._client.client import Client
from ..._client.model_info import ModelInfo
from ..._exceptions import InputError, ModelNotFoundError
from ..._image_files import ReadOptions, recorded_preprocessing
from ...probes.base import target_from_model
from ...probes.data import load_probe_data
from ...probes.noise import PAPER_SIGMAS, NoiseResult, check_sigmas, probe_noise
from ...results.intervals import Rate
from ...results.provenance import provenance
from ...results.result_file import check_writable, write_result
from ..notes import print_note, print_progress
from ..progress import progress_bar

_BATCH_SIZE = 64
_FEW_IMAGES = 30  # their Wilson 95 % interval can be 34 points wide
_LONGEST_LIST = 4  # models that a note names


def probe_noise_and_report(
    client: Client,
    source: str,
    out: Path,
    names: Sequence[str] = (),
    *,
    limit: int | None = None,
    seed: int = 0,
    sigmas: Sequence[float] | None = None,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    options: ReadOptions | None = None,
    console: Console | None = None,
    as_json: bool = False,
) -> dict[str, str]:
    """Measure served models under noise, print the table and write the result.

    Args:
        client: The server.
        source: Labelled images, as in `load_probe_data`: a dataset's name, a folder or a `.npz` file.
        out: File for the result, as JSON; an earlier one is kept under another name. It is checked before the first request.
        names: Models; none: the ensembles, their members, and all other image classifiers.
        limit: Number of images to draw; None: all.
        seed: Seed of the noise and of the sample.
        sigmas: Standard deviations of the noise, in 1/255; None: those of the paper.
        batch_size: Images per request; None: 64, or fewer if a model's max_batch_size is smaller.
        data_dir: Folder of the dataset that `source` names.
        options: How image files are read.
        console: Where to print.
        as_json: Whether to print the result as JSON instead of a table.

    Returns:
        Why models failed, by name.

    Raises:
        InputError: The images or the models do not fit together, or a value is out of range.
        ModelNotFoundError: The server has no such model.
        OSError: `out` cannot be written.
    """
    console = console or Console()
    options = options or ReadOptions()
    sigmas = PAPER_SIGMAS if sigmas is None else sigmas
    check_sigmas(sigmas)
    check_writable(out)
    server = client.server_metadata()
    targets = _targets(client, names, options.resize)
    infos = list(targets)
    model_for_images = _model_with_strictest_preprocessing(infos, options.resize)
    with progress_bar(console) as progress:
        reading = progress.add_task("reading images", total=None)

        def on_reading(name: str, done: int, total: int | None) -> None:
            progress.update(reading, description=name, completed=done, total=total)

        chosen = load_probe_data(source, model_for_images, limit, seed, data_dir, options=options, on_progress=on_reading)
    for note in chosen.notes:
        print_note(note)
    size = batch_size or min(_BATCH_SIZE, *(info.max_batch_size or _BATCH_SIZE for info in infos))
    n, rounds = len(chosen.data), 1 + len(sigmas)
    total = n * rounds * len(infos)
    settings = f"{rounds} settings (clean and {_counted(len(sigmas), 'sigma')})"
    show = print_progress if as_json else partial(console.print, highlight=False)
    show(f"{_counted(len(infos), 'model')} x {_counted(n, 'image')} x {settings} = {total} queries")
    with progress_bar(console) as progress:
        task = progress.add_task("noise", total=total)
        result = probe_noise(
            {info.name: target_from_model(client, info.name) for info in infos},
            chosen.data.images,
            chosen.data.labels,
            sigmas,
            seed,
            batch_size=size,
            on_batch=lambda count: progress.advance(task, count),
        )
    report = result.json()
    report["data"].update(chosen.source)
    report["url"], report["batch_size"], report["class_names"] = client.url, size, list(infos[0].class_names)
    for entry, (info, role) in zip(report["targets"], targets.items(), strict=True):
        entry["role"] = role
        entry["members"] = [step for step in info.steps if any(step == other.name for other in infos)]
    report.update(provenance(server))
    if as_json:
        click.echo(json.dumps(report, indent=2, allow_nan=False))
    else:
        console.print("accuracy under Gaussian noise, %", highlight=False)
        console.print(_table(result))
        console.print(_caption(result), highlight=False)
        if (warning := _warning_of_few_images(result)) is not None:
            console.print(warning, highlight=False, markup=False)
    # After the table: the user sees the measurement even if the disk is full by now.
    earlier = write_result(out, report, keep_earlier=True)
    suffix = "" if earlier is None else f" (the earlier result is kept as {earlier})"
    if as_json:
        print_progress(f"wrote {out}{suffix}")
    else:
        console.print(f"wrote {out}{suffix}", highlight=False, soft_wrap=True, markup=False)
    return result.failures


def _targets(client: Client, names: Sequence[str], resize: str | None) -> dict[ModelInfo, str]:
    """Return the models to measure, each with its role: the named ones, or ensembles, their members and the others."""
    if len(set(names)) != len(names):
        raise InputError(f"--target names a model twice, got {', '.join(names)}: name each model once")
    infos = client.classifiers() if not names else [client.describe(name) for name in names]
    if not infos:
        served_names = ", ".join(client.models()) or "none at all"
        raise ModelNotFoundError(f"{client.url} serves no image classifier; its models: {served_names}")
    first = infos[0]
    for info in infos[1:]:
        if (info.image_shape, info.class_names) != (first.image_shape, first.class_names):
            raise InputError(
                f"models {first.name!r} and {info.name!r} differ in image shape or classes ({first.image_shape} and "
                f"{info.image_shape}, {len(first.class_names)} and {len(info.class_names)} classes). Choose models with --target."
            )
    recorded = [info for info in infos if info.preprocessing is not None] if resize is None else []
    for info in recorded[1:]:
        if recorded_preprocessing(info) != recorded_preprocessing(recorded[0]):
            raise InputError(
                f"models {recorded[0].name!r} and {info.name!r} resize images differently ({recorded[0].preprocessing} and "
                f"{info.preprocessing}). Choose models with --target, or one rule for all with --resize."
            )
    members = {step for info in infos for step in info.steps}
    roles = {info: "ensemble" if info.is_ensemble else "member" if info.name in members else "other" for info in infos}
    if names:
        return roles
    rank = {"ensemble": 0, "member": 1, "other": 2}
    return dict(sorted(roles.items(), key=lambda item: rank[item[1]]))


def _model_with_strictest_preprocessing(infos: Sequence[ModelInfo], resize: str | None) -> ModelInfo:
    """Return the model by which images are resized for all: a model without `preprocessing` accepts images of its own size only.

    A member without `preprocessing` follows its ensemble, and all models follow `resize`.
    """
    recorded = [info for info in infos if info.preprocessing is not None]
    members = {step for info in recorded for step in info.steps}
    strict = [info for info in infos if info.preprocessing is None and info.name not in members] if resize is None else []
    return [*strict, *recorded, *infos][0]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _caption(result: NoiseResult) -> str:
    if result.n_common is None:
        caption = "a model failed: no rates on the images that all models classify correctly"
    else:
        caption = f"clean: all {result.n} images; sigma (1/255): the {result.n_common} images that all models classify correctly when clean"
        rates = [level.accuracy_on_common for target in result.targets for level in target.noise]
        halves = [half for rate in rates if (half := _half_width(rate)) is not None]
        if halves:
            caption += f"; half-widths of their Wilson 95 % intervals: up to {100 * max(halves):.1f} points"
    return caption


def _warning_of_few_images(result: NoiseResult) -> str | None:
    """Explain why all models classify few images correctly: fewer than 30, or fewer than half of all."""
    if result.n_common is None or result.n_common >= max(_FEW_IMAGES, result.n / 2):
        return None
    models = f"all {len(result.targets)} models" if len(result.targets) > 1 else result.targets[0].name
    verb = "is" if result.n_common == 1 else "are"
    text = f"only {result.n_common} of {_counted(result.n, 'image')} {verb} classified correctly by {models}"
    correct = {target.name: target.clean.successes for target in result.targets if target.clean is not None}
    weak = sorted((name for name, count in correct.items() if count < result.n / 2), key=lambda name: correct[name])
    strong = [name for name in correct if name not in weak]
    if weak and strong:
        counts = ", ".join(f"{name}: {correct[name]}" for name in weak[:_LONGEST_LIST]) + ", ..." * (len(weak) > _LONGEST_LIST)
        targets = " ".join(f"--target {name}" for name in strong[:_LONGEST_LIST]) + " ..." * (len(strong) > _LONGEST_LIST)
        return f"{text}; correct: {counts}. Leave {'it' if len(weak) == 1 else 'them'} out with {targets}."
    if weak:
        most = f"; none classifies more than {max(correct.values())}" if len(correct) > 1 else ""
        return f"{text}{most}. Check that the models were trained on such images, and that the labels are right."
    if result.n_common < result.n / 2:
        return f"{text}, because they fail on different images. Compare fewer models with --target."
    return f"only {_counted(result.n, 'image')}: the intervals are wide. Use more images."


def _table(result: NoiseResult) -> Table:
    """Return accuracies in percent, a row per model: clean on all images, then per sigma on those that all models classify correctly."""
    # Narrow enough for eleven numbers and a name of 20 letters in 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    table.add_column("model", overflow="fold", max_width=40)
    for header in ("clean", *(f"{sigma:g}" for sigma in result.sigmas)):
        table.add_column(header, justify="right", no_wrap=True, min_width=4)
    for target in result.targets:
        table.add_row(escape(target.name), _percent(target.clean), *(_percent(level.accuracy_on_common) for level in target.noise))
    return table


def _percent(value: Rate | None) -> str:
    return "-" if value is None or value.value is None else "100" if value.value == 1 else f"{100 * value.value:.1f}"


def _half_width(value: Rate | None) -> float | None:
    return None if value is None or value.low is None or value.high is None else (value.high - value.low) / 2

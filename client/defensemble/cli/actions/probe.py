"""The actions of `defensemble probe`: load images, measure served models, print a table and write the result."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress as Bars, TaskID

from ..._client.model_info import ModelInfo
from ..._exceptions import InputError
from ..._image_files import ReadOptions, recorded_preprocessing
from ..._printable import printable
from ..._transport.base import ConnectionOptions, Transport
from ...probes.base import InputType, PerturbationProbe, Probe
from ...probes.data import ProbeData, load_probe_data
from ...probes.folders import Folders
from ...probes.ledger import check_unused, is_ledger
from ...probes.limits import check_limits
from ...probes.measuring import measure
from ...probes.options import Preview, Progress, RunOptions
from ...probes.outcome import ProbeOutcome
from ...probes.targets import AnswerType, served_targets
from ...results.provenance import provenance
from ...results.result_file import check_writable, write_result
from ..notes import print_note, print_progress, shows_notes
from ..progress import RateColumn, progress_bar
from .probe_results import print_misses
from .probe_table import caption, folder_table, result_table, warning_of_few_images

_LINE_S = 10.0  # between two lines of progress without a terminal
LoadData = Callable[[ModelInfo, Callable[[str, int, int | None], None]], ProbeData]


@dataclass(frozen=True)
class ProbeArguments:
    """The options that all probes have.

    Attributes:
        url: The server's URL.
        source: Labelled images, as in `load_probe_data`.
        out: File of the result. The ledger is a folder next to it, until the result is complete.
        data_dir: Folder of the dataset that `source` names.
        targets: Models; none: the ensembles, their members, and all other image classifiers.
        limit: Number of images to draw; None for all.
        seed: Seed of the probe and of the sample.
        shard: (k, n) for the k-th of n parts of the images.
        resume: Whether to continue the run whose ledger is next to `out`.
        answers: What the targets respond with.
        input: What they receive.
        budget: Most queries of an attack for one image.
        batch_size: Images per request.
        timeout_s: Timeout of a request in seconds, with its retries.
        reading: How image files are read.
        connection: TLS.
        as_json: Whether to print the result as JSON instead of a table.
        fail_under: The lowest rates that are accepted, by name: see `limits_from_texts`.
        transport: Used in place of the network, and not closed.
    """

    url: str
    source: str
    out: Path
    data_dir: Path | None = None
    targets: Sequence[str] = ()
    limit: int | None = None
    seed: int = 0
    shard: tuple[int, int] | None = None
    resume: bool = False
    answers: AnswerType = "probabilities"
    input: InputType = "float32"
    budget: int | None = None
    batch_size: int | None = None
    timeout_s: float = 60.0
    reading: ReadOptions = field(default_factory=ReadOptions)
    connection: ConnectionOptions | None = None
    as_json: bool = False
    fail_under: Mapping[str, float] = field(default_factory=dict)
    transport: Transport | None = None

    @property
    def ledger(self) -> Path:
        """Folder of the ledger."""
        return self.out.with_suffix(".ledger")


def run_probe(
    probe: Probe,
    arguments: ProbeArguments,
    *,
    load: LoadData | None = None,
    console: Console | None = None,
    keeps_ledger: bool = False,
) -> ProbeOutcome:
    """Measure served models with a probe, print the table and write the result.

    Args:
        probe: The probe.
        arguments: The options that all probes have.
        load: Loads the images for a model; None for `load_probe_data` with the options.
        console: Where to print.
        keeps_ledger: Whether the ledger of a complete run stays.

    Raises:
        InputError: The images, the models or the options do not fit together.
        ServiceError: The server could not be reached, or has no such model.
        OSError: The result cannot be written.
    """
    console = console or Console()
    options = RunOptions(input=arguments.input, budget=arguments.budget, batch_size=arguments.batch_size, shard=arguments.shard)
    check_limits(probe, arguments.fail_under)
    check_writable(arguments.out)
    _check_ledger(arguments)
    targets = served_targets(
        arguments.url,
        arguments.targets,
        answers=arguments.answers,
        timeout_s=arguments.timeout_s,
        options=arguments.connection,
        transport=arguments.transport,
    )
    infos = [target.info for target in targets]
    show = _line_printer(arguments, console)
    closes = closing(targets[0]) if arguments.transport is None else nullcontext()
    with closes, _note_on_interrupt(arguments), progress_bar(console, MofNCompleteColumn(), RateColumn("images")) as drawn:
        bars = _RunBars(drawn, show)
        _check_alike(infos, arguments.reading.resize)
        chosen = _load(arguments, load, _model_with_strictest_preprocessing(infos, arguments.reading.resize), bars)
        for note in chosen.notes:
            print_note(note)
        if isinstance(probe, PerturbationProbe) and (cost := probe.cost_of_preparing(chosen.rows)) is not None:
            print_progress(cost)
        outcome = measure(
            probe,
            targets,
            chosen.data,
            rows=chosen.rows,
            options=options,
            ledger=arguments.ledger,
            resume=arguments.resume,
            class_names=infos[0].class_names,
            source=chosen.source,
            provenance={"url": arguments.url, **provenance(targets[0].server())},
            progress=bars,
        )
    show_and_write(outcome, arguments, console, [] if outcome.failures or keeps_ledger else [arguments.ledger])
    if outcome.failures:
        show(f"the ledger is kept in {arguments.ledger}: --resume asks the models that failed again")
    return outcome


def show_and_write(outcome: ProbeOutcome, arguments: ProbeArguments, console: Console, finished: Sequence[Path]) -> None:
    """Print the table of an outcome, or its JSON, and write the result, also if nothing can be printed.

    Args:
        outcome: The outcome.
        arguments: The options that all probes have.
        console: Where to print the table.
        finished: Ledgers to remove when the result is written.

    Raises:
        OSError: The result cannot be written.
    """
    report = outcome.json()
    try:
        if arguments.as_json:
            click.echo(json.dumps(report, indent=2, allow_nan=False))
        else:
            print_result(report, console)
    except OSError as error:
        if error.filename is None:
            error.filename = "standard output"
        raise
    finally:  # after the table: the user sees the measurement even if the disk is full by now
        earlier = write_result(arguments.out, report, keep_earlier=True)
        for ledger in finished:
            shutil.rmtree(ledger)
    suffix = "" if earlier is None else f" (the earlier result is kept as {earlier})"
    _line_printer(arguments, console)(f"wrote {arguments.out}{suffix}")


def _line_printer(arguments: ProbeArguments, console: Console) -> Callable[[str], object]:
    """Return the function that prints a line which is no part of the result."""
    return print_progress if arguments.as_json else partial(console.print, highlight=False, soft_wrap=True, markup=False)


def finish(outcome: ProbeOutcome, arguments: ProbeArguments) -> None:
    """Exit with status 1 if a model failed, or a rate is below its limit; call it after the result was written.

    Args:
        outcome: The outcome.
        arguments: The options that all probes have.

    Raises:
        click.ClickException: A model failed.
        click.exceptions.Exit: A rate is below its limit.
    """
    is_missed = print_misses(outcome, arguments.fail_under)
    if outcome.failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in outcome.failures.items())
        raise click.ClickException(f"{len(outcome.failures)} of the models failed; their rates are null: {reasons}")
    if is_missed:
        raise click.exceptions.Exit(1)


def print_result(report: Mapping[str, Any], console: Console) -> None:
    """Print the checks that did not pass, the table of a result and its notes.

    Args:
        report: The result, as JSON.
        console: Where to print.
    """

    def show(text: str) -> None:
        console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    for check in report["checks"]:
        if check["status"] != "PASS":
            show(f"{check['status']}: {check['name']}: {check['text']}")
    for target in report["targets"]:
        if "verdict" in target["details"]:
            show(f"{target['name']}: {target['details']['text']}")
    if report["probe"] == Folders.name:
        show(f"{report['title']}, %")
        console.print(folder_table(report))
        return
    show(f"{report['title']}: accuracy, %")
    console.print(result_table(report))
    show(caption(report))
    if shows_notes() and (warning := warning_of_few_images(report)) is not None:
        show(warning)


@contextmanager
def _note_on_interrupt(arguments: ProbeArguments) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if is_ledger(arguments.ledger):
            print_note(f"what was measured is in {arguments.ledger}: continue with the same command and --resume")
        raise


def _check_ledger(arguments: ProbeArguments) -> None:
    """Check before the first request whether there is a run to resume."""
    if arguments.ledger == arguments.out:
        raise InputError(f"--out {arguments.out} has the name of a ledger: choose another, such as {arguments.out.with_suffix('.json')}")
    if not arguments.resume:
        check_unused(arguments.ledger)
    elif not is_ledger(arguments.ledger):
        finished = f"; {arguments.out} is complete" if arguments.out.exists() else ""
        raise InputError(
            f"there is no unfinished run in {arguments.ledger}{finished}: omit --resume, or pass the --out of the interrupted run"
        )


def _load(arguments: ProbeArguments, load: LoadData | None, info: ModelInfo, bars: _RunBars) -> ProbeData:
    if load is not None:
        return load(info, bars.on_step)
    return folder_loader(arguments, info, bars.on_step, arguments.data_dir)(arguments.source)


def folder_loader(
    arguments: ProbeArguments, info: ModelInfo, on_progress: Callable[[str, int, int | None], None], data_dir: Path | None = None
) -> Callable[[str], ProbeData]:
    """Return the function that loads images for a model with the options that all probes have.

    Args:
        arguments: The options.
        info: The model.
        on_progress: Called with the current step, the number of images done, and the number of all images.
        data_dir: Folder of the dataset, if the function loads a dataset by name.
    """
    return partial(
        load_probe_data,
        info=info,
        limit=arguments.limit,
        seed=arguments.seed,
        data_dir=data_dir,
        shard=arguments.shard,
        options=arguments.reading,
        on_progress=on_progress,
    )


class _RunBars(Progress):
    """Draws a bar for each step and each target or, without a terminal, prints a line at times; prints the cost before the first query."""

    def __init__(self, bars: Bars, show: Callable[[str], object]) -> None:
        self._bars, self._show = bars, show
        self._tasks: dict[str, TaskID] = {}
        self._printed = time.monotonic()

    def on_step(self, name: str, done: int, total: int | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(printable(name), total=total, completed=done)  # the speed is that of later ones
        self._bars.update(self._tasks[name], completed=done, total=total)
        if self._bars.disable and time.monotonic() - self._printed >= _LINE_S:
            self._printed = time.monotonic()
            print_progress(f"{name}: {done:,}" + ("" if total is None else f" of {total:,}"))

    def on_images(self, target: str, done: int, total: int) -> None:
        self.on_step(target, done, total)

    def on_preview(self, preview: Preview) -> None:
        if not shows_notes():
            return
        queries, speeds = sum(preview.queries.values()), list(preview.images_per_s.values())
        count, names = len(preview.queries), "model" if len(preview.queries) == 1 else "models"
        if not queries or not speeds:
            self._show(f"{count} {names}, nothing left to ask")
            return
        speed = f"{min(speeds):,.0f}" if max(speeds) < 1.1 * min(speeds) else f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        if preview.is_limit:  # how long the attack itself computes is not known
            self._show(
                f"{count} {names}, at most {queries:,} queries at {speed} images/s (measured): the models' responses take at most "
                f"{_duration(preview.seconds)}, and the attack's own computation adds to that"
            )
            return
        self._show(f"{count} {names}, {queries:,} queries at {speed} images/s (measured): {_duration(preview.seconds)}")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _check_alike(infos: Sequence[ModelInfo], resize: str | None) -> None:
    """Check that all models take the same images and have the same classes."""
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


def _model_with_strictest_preprocessing(infos: Sequence[ModelInfo], resize: str | None) -> ModelInfo:
    """Return the model by which images are resized for all: a model without `preprocessing` accepts images of its own size only.

    A member without `preprocessing` follows its ensemble, and all models follow `resize`.
    """
    recorded = [info for info in infos if info.preprocessing is not None]
    members = {step for info in recorded for step in info.steps}
    strict = [info for info in infos if info.preprocessing is None and info.name not in members] if resize is None else []
    return [*strict, *recorded, *infos][0]

"""What `defensemble probe` does once its arguments are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from ..notes import print_note
from ..progress import progress_bar

_BATCH_SIZE = 64
_FEW = 30  # images, of which a Wilson 95 % interval can be 34 points wide
_NAMED = 4


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
) -> dict[str, str]:
    """Probe served models with noise, print the table, write the JSON to `out`; returns why models failed, by name.

    `source`, `limit` and `data_dir` are as in `load_probe_data`, `sigmas` in 1/255 (None: the paper's). Without `names` these are the
    ensembles, their members, and every other model that classifies images. A call has `batch_size` images; None: 64, or fewer where a
    model takes fewer. An earlier result at `out` is kept under another name; whether it can be written is found out before the first query.
    """
    console = console or Console()
    options = options or ReadOptions()
    sigmas = PAPER_SIGMAS if sigmas is None else sigmas
    check_sigmas(sigmas)
    check_writable(out)
    server = client.server_metadata()
    targets = _targets(client, names, options.resize)
    infos = list(targets)
    rule = _rule_giver(infos, options.resize)
    with progress_bar(console) as progress:
        reading = progress.add_task("reading images", total=None)

        def on_reading(what: str, done: int, total: int | None) -> None:
            progress.update(reading, description=what, completed=done, total=total)

        chosen = load_probe_data(source, rule, limit, seed, data_dir, options=options, on_progress=on_reading)
    for note in chosen.notes:
        print_note(note)
    size = batch_size or min(_BATCH_SIZE, *(info.max_batch_size or _BATCH_SIZE for info in infos))
    n, rounds = len(chosen.data), 1 + len(sigmas)
    total = n * rounds * len(infos)
    settings = f"{rounds} settings (clean and {_counted(len(sigmas), 'sigma')})"
    console.print(f"{_counted(len(infos), 'model')} x {_counted(n, 'image')} x {settings} = {total} queries", highlight=False)
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
    console.print("accuracy under Gaussian noise, %", highlight=False)
    console.print(_table(result))
    console.print(_caption(result), highlight=False)
    if (few := _few_common(result)) is not None:
        console.print(few, highlight=False, markup=False)
    # After the table: what was measured is seen even where the disk has filled up meanwhile.
    earlier = write_result(out, report, keep=True)
    kept = "" if earlier is None else f" (the earlier result is kept as {earlier})"
    console.print(f"{out}{kept}", highlight=False, soft_wrap=True, markup=False)
    return result.failures


def _targets(client: Client, names: Sequence[str], resize: str | None) -> dict[ModelInfo, str]:
    """The models to probe, each with its role: ensembles, their members, and the others; or those that were named."""
    if len(set(names)) != len(names):
        raise InputError(f"a target was named twice: {', '.join(names)}")
    found = client.classifiers() if not names else [client.describe(name) for name in names]
    if not found:
        raise ModelNotFoundError(f"{client.url} serves no model that classifies images, only {', '.join(client.models()) or 'none at all'}")
    for info in found[1:]:
        if (info.image_shape, info.class_names) != (found[0].image_shape, found[0].class_names):
            raise InputError(
                f"models {found[0].name!r} and {info.name!r} differ in image shape or classes ({found[0].image_shape} and "
                f"{info.image_shape}, {len(found[0].class_names)} and {len(info.class_names)} classes): choose some by --target"
            )
    stated = [info for info in found if info.preprocessing is not None] if resize is None else []
    for info in stated[1:]:
        if recorded_preprocessing(info) != recorded_preprocessing(stated[0]):
            raise InputError(
                f"models {stated[0].name!r} and {info.name!r} differ in how images are brought to their size "
                f"({stated[0].preprocessing} and {info.preprocessing}): choose some by --target, or one rule for all by --resize"
            )
    members = {step for info in found for step in info.steps}
    roles = {info: "ensemble" if info.is_ensemble else "member" if info.name in members else "other" for info in found}
    if names:
        return roles
    rank = {"ensemble": 0, "member": 1, "other": 2}
    return dict(sorted(roles.items(), key=lambda item: rank[item[1]]))


def _rule_giver(infos: Sequence[ModelInfo], resize: str | None) -> ModelInfo:
    """Return the model whose rule all targets follow: one without a rule, which takes only images of its own size, comes first.

    A member without a rule follows that of its ensemble, and all follow the user's.
    """
    stated = [info for info in infos if info.preprocessing is not None]
    members = {step for info in stated for step in info.steps}
    alone = [info for info in infos if info.preprocessing is None and info.name not in members] if resize is None else []
    return next(iter([*alone, *stated, *infos]))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _caption(result: NoiseResult) -> str:
    if result.n_common is None:
        caption = "a model failed: no rates on the images that all get right"
    else:
        caption = f"clean: all {result.n} images; sigma (1/255): the {result.n_common} images that all models get right when clean"
        halves = [half for target in result.targets for one in target.noise if (half := _half_width(one.accuracy_on_common)) is not None]
        if halves:
            caption += f"; half-widths of their Wilson 95 % intervals: up to {100 * max(halves):.1f} points"
    return caption


def _few_common(result: NoiseResult) -> str | None:
    """Explain why few images are classified correctly by all models, where they are fewer than 30 or than half of all."""
    if result.n_common is None or result.n_common >= max(_FEW, result.n / 2):
        return None
    every = f"all {len(result.targets)} models" if len(result.targets) > 1 else result.targets[0].name
    text = (
        f"only {result.n_common} of {_counted(result.n, 'image')} {'is' if result.n_common == 1 else 'are'} classified correctly by {every}"
    )
    right = {target.name: target.clean.successes for target in result.targets if target.clean is not None}
    weak = sorted((name for name, count in right.items() if count < result.n / 2), key=lambda name: right[name])
    strong = [name for name in right if name not in weak]
    if weak and strong:
        alone = ", ".join(f"{name} alone gets {right[name]}" for name in weak[:_NAMED]) + ", ..." * (len(weak) > _NAMED)
        rest = " ".join(f"--target {name}" for name in strong[:_NAMED]) + " ..." * (len(strong) > _NAMED)
        return f"{text}; {alone}: leave {'it' if len(weak) == 1 else 'them'} out with {rest}"
    if weak:
        most = f"; none gets more than {max(right.values())}" if len(right) > 1 else ""
        return f"{text}{most}: are these images of the kind that was trained on, and their classes the right ones?"
    if result.n_common < result.n / 2:
        return f"{text}, since they are wrong about different images: compare fewer models with --target"
    return f"only {_counted(result.n, 'image')}: the intervals are wide, take more"


def _table(result: NoiseResult) -> Table:
    """Accuracy in percent, one row a model: clean on all images, then by sigma on the images that all models get right when clean."""
    # Narrow enough for eleven numbers and a name of 20 letters in 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    table.add_column("model", overflow="fold", max_width=40)
    for header in ("clean", *(f"{sigma:g}" for sigma in result.sigmas)):
        table.add_column(header, justify="right", no_wrap=True, min_width=4)
    for target in result.targets:
        table.add_row(escape(target.name), _percent(target.clean), *(_percent(one.accuracy_on_common) for one in target.noise))
    return table


def _percent(value: Rate | None) -> str:
    return "-" if value is None or value.value is None else "100" if value.value == 1 else f"{100 * value.value:.1f}"


def _half_width(value: Rate | None) -> float | None:
    return None if value is None or value.low is None or value.high is None else (value.high - value.low) / 2

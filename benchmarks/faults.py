"""Inject faults into a served ensemble under load, and count what callers notice: wrong answers, failed calls, seconds to recover."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
from numpy.typing import NDArray

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import member_logits
from benchmarks.common.callers import CallersDiedError
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, refuse_nan, run, silent
from benchmarks.common.nginx import NginxError
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import write_ensemble_repository
from benchmarks.faulting import overload_page, soak_page
from benchmarks.faulting.fault import FULL, QUICK, Effort, Fault
from benchmarks.faulting.figures import build_row, compute_figures
from benchmarks.faulting.overload import Overload, run_rounds
from benchmarks.faulting.overload_figures import overload_figures
from benchmarks.faulting.page import page
from benchmarks.faulting.running import Cast, FaultRunError, NotRunError, run_fault
from benchmarks.faulting.soak_result import build_soak_result
from benchmarks.faulting.soaking import run_soak
from benchmarks.faulting.stage import CALLERS
from benchmarks.faulting.table import FAULTS, fault_by_name
from benchmarks.faulting.trap import NotFoundError, trapped
from defensemble import DefensembleError, ServerMetadata
from defensemble_export import ExportedMember
from defensemble_repository.averaging import TOLERANCE
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.faults/1"
OVERLOAD_SCHEMA = "defensemble.benchmark.overload/1"
SOAK_SCHEMA = "defensemble.benchmark.soak/1"
SOAK_MINUTES, QUICK_SOAK_S = 20, 45.0
OVERLOAD_ROUNDS, QUICK_OVERLOAD = 3, Overload(factors=(1.0, 3.0), step_s=2.0)
POOL = 64
WIDTH = 8  # calls are short: the number of answers matters
OVERLOAD_WIDTH = 24  # calls are long: callers, which share the cores with the server, take little of them at three times its capacity
_ERRORS = (CallersDiedError, DefensembleError, FaultRunError, NginxError, NotFoundError, RepositoryError, ServerError)


def measure(cast: Cast, faults: Sequence[Fault], effort: Effort, *, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Inject faults one after another, each into a server of its own, and return the result as JSON.

    Args:
        cast: Members, whose first is trapped, and the callers' images.
        faults: The faults.
        effort: How long and how much.
        on_progress: Called with the current step.

    Raises:
        CallersDiedError, FaultRunError: A process of callers, or of a fault, ended.
        DefensembleError, ServerError, RepositoryError, OSError: The service failed before a fault.
    """
    rows: list[dict[str, Any]] = []
    not_run: dict[str, str] = {}
    server: ServerMetadata | None = None
    for fault in faults:
        on_progress(f"{fault.name}: {fault.action}")
        try:
            fault_run = run_fault(fault, cast, effort)
        except NotRunError as error:
            not_run[fault.name] = str(error)
            on_progress(f"  not run: {error}")
            continue
        row = build_row(fault, fault_run)
        rows.append(row)
        server = fault_run.server
        counts = ", ".join(f"{row[key]:,} {key}" for key in ("calls", "wrong", "rejected", "failed"))
        seconds = row["recovered_s"]
        recovered = "never right again" if seconds is None else f"right again {seconds:.2f} s after {row['counts_from']}"
        on_progress(f"  {counts}; {recovered}")
    return {
        "schema": SCHEMA,
        "seed": cast.seed,
        "members": len(cast.members),
        "image_shape": list(cast.pool.shape[1:]),
        "callers": 2 * CALLERS,
        "effort": dataclasses.asdict(effort),
        "tolerance": TOLERANCE,
        "rows": rows,
        "not_run": not_run,
        **machine_info(server),
        "figures": compute_figures(rows, {fault.name: fault for fault in faults}),
    }


def list_faults(context: click.Context, _option: click.Parameter, value: bool) -> None:
    """Print the faults and exit, if `--list` is given. A callback of the option."""
    if value and not context.resilient_parsing:
        for fault in FAULTS:
            click.echo(f"{fault.name:<18}{fault.action}")
        context.exit()


@benchmark_command(
    "faults", quick="a second or two of each fault", seed="weights, masks, images, batches and random bytes", example="--only killed"
)
@click.option(
    "--only",
    type=click.Choice([fault.name for fault in FAULTS]),
    multiple=True,
    metavar="NAME",
    help="Inject only this fault; may be repeated. See --list.",
)
@click.option(
    "--soak",
    type=click.FloatRange(0, 24 * 60, min_open=True),
    callback=refuse_nan,
    is_flag=False,
    flag_value=SOAK_MINUTES,
    metavar="[MINUTES]",
    help=f"In place of faults: load, edits, probes and aborted calls at once, for {SOAK_MINUTES} minutes or MINUTES.",
)
@click.option("--overload", is_flag=True, help="In place of faults: up to three times the capacity, through the proxy (nginx) and directly")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=list_faults, help="List the faults and exit.")
def main(options: Options, only: tuple[str, ...], soak: float | None, overload: bool) -> NoReturn:
    """Inject faults into a served ensemble under load, and compare every answer with numpy's.

    Takes at most 15 minutes on two cores, without a soak; an overload about 10. Some faults make mounts, in a namespace of
    their own: only root may. The exit status is 1 if a goal is missed.
    """
    if (soak is not None) + overload + bool(only) > 1:
        raise click.UsageError("--soak and --overload inject no faults: give only one of --only, --soak and --overload")
    if overload:
        run(lambda on_progress: _overload_networks(options, on_progress), overload_page.page, options, errors=_ERRORS)
    if soak is not None:
        seconds = QUICK_SOAK_S if options.quick else 60 * soak
        run(lambda on_progress: _soak_networks(seconds, options.seed, on_progress), soak_page.page, options, errors=_ERRORS)
    faults = [fault_by_name(name) for name in only] or list(FAULTS)
    effort = QUICK if options.quick else FULL
    run(lambda on_progress: _measure_networks(faults, effort, options.seed, on_progress), page, options, errors=_ERRORS)


def _measure_networks(faults: Sequence[Fault], effort: Effort, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    pool = random_images(POOL, seed)
    members = untrained_networks(pool, seed, width=WIDTH, on_progress=on_progress).members
    members[0] = trapped(members[0])
    result = measure(Cast(members, member_logits(members, pool), pool, seed), faults, effort, on_progress=on_progress)
    return {**result, "member_spec": spec_values(WIDTH)}


def soak_members(
    members: Sequence[ExportedMember],
    later: Sequence[ExportedMember],
    pool: NDArray[np.float32],
    seconds: float,
    *,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Run a soak of an ensemble of `members`, and return the result as JSON. The arguments and errors are those of `run_soak`."""
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        soaked = run_soak(members, later, pool, seconds, Path(folder), seed=seed, on_progress=on_progress)
    return {
        "schema": SOAK_SCHEMA,
        "seed": seed,
        "members": len(members),
        "image_shape": list(pool.shape[1:]),
        "tolerance": TOLERANCE,
        **soaked.machine_info,
        **build_soak_result(soaked),
    }


def _soak_networks(seconds: float, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import COUNT, random_images, spec_values, untrained_networks

    pool = random_images(POOL, seed)
    members = untrained_networks(pool, seed, count=COUNT + 2, width=WIDTH, on_progress=on_progress).members
    # The last one is exported under the first one's name, as its second version.
    later = [members[COUNT], dataclasses.replace(members[COUNT + 1], name=members[0].name)]
    result = soak_members(members[:COUNT], later, pool, seconds, seed=seed, on_progress=on_progress)
    return {**result, "member_spec": spec_values(WIDTH)}


def overload_members(
    members: Sequence[ExportedMember], overload: Overload, rounds: int, *, on_progress: OnProgress = silent
) -> dict[str, Any]:
    """Overload servers of an ensemble of `members`, and return the result as JSON. The arguments and errors are those of `run_rounds`."""
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as name:
        folder = Path(name)
        repository = write_ensemble_repository(folder / "repository", members)
        records, machine = run_rounds(repository, folder, overload, rounds, on_progress=on_progress)
    return {
        "schema": OVERLOAD_SCHEMA,
        "seed": overload.seed,
        "members": len(members),
        "image_shape": list(members[0].input_shape),
        "rounds": rounds,
        **{name: getattr(overload, name) for name in ("objective_ms", "batch_size", "step_s")},
        "records": records,
        **machine,
        "figures": overload_figures(records),
    }


def _overload_networks(options: Options, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    members = untrained_networks(random_images(POOL, options.seed), options.seed, width=OVERLOAD_WIDTH, on_progress=on_progress).members
    load, rounds = (QUICK_OVERLOAD, 1) if options.quick else (Overload(), OVERLOAD_ROUNDS)
    result = overload_members(members, dataclasses.replace(load, seed=options.seed), rounds, on_progress=on_progress)
    return {**result, "member_spec": spec_values(OVERLOAD_WIDTH)}


if __name__ == "__main__":
    main()

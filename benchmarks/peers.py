"""Compare an ensemble behind Triton with other servers of Python models, and with the same networks in the caller's process.

Five defective ResNet-18s of width 16 at 3x32x32, averaged, served one at a time by Triton (as a pipeline and as one fused graph), FastAPI,
LitServe, BentoML, MLServer, Ray Serve and KServe's ModelServer, each configured as its documents advise.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
from numpy.typing import NDArray

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import expected_outputs
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.forms import WrongAnswerError
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import start_server, write_ensemble_repository
from benchmarks.fused.in_process import equal_weight_ensemble
from benchmarks.fused.served import MAX_BATCH
from benchmarks.peering.catalogue import CONTENDERS, FUSED, PEERS, PIPELINE
from benchmarks.peering.environments import PeerEnvironmentError, create_environments
from benchmarks.peering.figures import IN_PROCESS, OPEN_FRACTION, SETTINGS, compare, compute_figures, summarize_forms, summarize_servers
from benchmarks.peering.measuring import Effort, Pythons, Records, ResumeError, measure_rounds, run_description
from benchmarks.peering.page import page
from benchmarks.peering.running import Served
from defensemble import Client, DefensembleError
from defensemble.results import provenance
from defensemble_export import ExportedMember, fused_member, planned_fused_files, write_files
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServerError

SCHEMA = "defensemble.benchmark.peers/1"
FULL = Effort(rounds=3, seconds=5.0, warm_s=0.5)
QUICK = Effort(rounds=1, seconds=0.5, warm_s=0.2)


def measure(
    members: Sequence[ExportedMember],
    images: NDArray[np.float32],
    expected: NDArray[np.float64],
    effort: Effort,
    *,
    peers: Sequence[str] = PEERS,
    seed: int = 0,
    kept: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Serve members by every server in turn, time all forms in all settings, and return the result as JSON.

    Args:
        members: The members.
        images: (N, C, H, W), with N at least 128, the largest number that all callers of a setting use together.
        expected: The correct probabilities (N, K) for `images`.
        effort: Rounds and durations.
        peers: Keys of the peers.
        seed: Seed of the order in a round and of the arrivals.
        kept: File for the records of a run that has not ended; None for none.
        resume: Whether to continue with the records in that file.
        on_progress: Called with the current step.

    Raises:
        PeerEnvironmentError: A peer has no environment.
        WrongAnswerError: The outputs of a form are wrong.
        ResumeError: The records are of another run.
        DefensembleError, ServerError, RepositoryError: Our server failed before the first round; later failures are in the result.
    """
    contenders = [contender for contender in CONTENDERS if contender.ours or contender.key in peers]
    pythons: Pythons = {contender.key: contender.python for contender in contenders}
    records = Records(kept, run_description(effort, seed, list(pythons), provenance(None)["git_commit"]), resume=resume)
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as name:
        folder = Path(name)
        repositories = {PIPELINE: write_ensemble_repository(folder / PIPELINE, members, max_batch_size=MAX_BATCH), FUSED: folder / FUSED}
        ensemble = equal_weight_ensemble(members)
        graph = fused_member(FUSED, ensemble, members, images[:MAX_BATCH], max_batch_size=MAX_BATCH)
        write_files(folder / FUSED, planned_fused_files(folder / FUSED, graph, ensemble, max_batch_size=MAX_BATCH))
        paths = [folder / f"{member.name}.onnx" for member in members]
        for path, member in zip(paths, members, strict=True):
            path.write_bytes(member.onnx)
        with start_server(repositories[PIPELINE]) as (server, _), Client(server.grpc_url) as client:  # also builds the backend if needed
            machine = machine_info(client.server_metadata())
        served = Served(members, images, expected, repositories, {"MEMBERS": ":".join(map(str, paths))})
        measure_rounds(served, pythons, effort, seed, records, on_progress)
    order = [*pythons, IN_PROCESS]
    ordered = sorted(records.records, key=lambda record: (order.index(record["key"]), record["round"]))
    forms = summarize_forms(ordered)
    comparisons = {setting.key: compare(forms[setting.key]) for setting in SETTINGS}
    result = {
        "schema": SCHEMA,
        "seed": seed,
        "members": [member.name for member in members],
        "image_shape": list(images.shape[1:]),
        "rounds": effort.rounds,
        "seconds": effort.seconds,
        "warm_s": effort.warm_s,
        "largest_difference": records.largest_difference,
        "open_loop_per_s": records.open_loop_per_s,
        "open_loop_fraction": OPEN_FRACTION,
        "setting_titles": {setting.key: setting.title for setting in SETTINGS},
        "titles": {contender.key: contender.title for contender in contenders},
        "configurations": {contender.key: contender.configuration for contender in contenders},
        "peer_versions": {contender.key: contender.version for contender in contenders if not contender.ours},
        "forms": forms,
        "comparisons": comparisons,
        "servers": summarize_servers(ordered),
        "failures": {name: text for record in ordered for name, text in record["failures"].items()},
        **machine,
        "figures": compute_figures(comparisons),
    }
    records.delete()
    return result


def _peers_from_text(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    """Return the keys of a comma-separated list. A callback of an option."""
    if value is None:
        return list(PEERS)
    keys = [key.strip() for key in value.split(",")]
    unknown = [key for key in keys if key not in PEERS]
    if unknown:
        raise click.BadParameter(f"expected names among {', '.join(PEERS)}, separated by commas; got {', '.join(map(repr, unknown))}")
    return keys


@benchmark_command(
    "peers",
    quick="one short round",
    seed="weights, masks, images, the order in a round and the arrivals",
    example="--prepare                               # installs the peers, each in an environment of its own",
)
@click.option("--prepare", is_flag=True, help="Only create the environments of the peers, in the user's cache.")
@click.option("--peers", callback=_peers_from_text, metavar="NAMES", help=f"Peers to compare.  [default: {','.join(PEERS)}]")
@click.option("--resume", is_flag=True, help="Continue an interrupted run with the same options; needs --json.")
def main(options: Options, prepare: bool, peers: list[str], resume: bool) -> NoReturn:
    """Compare an ensemble behind Triton with other servers, and with the same networks in the caller's process.

    Takes about 25 minutes on two cores, on an otherwise idle machine. The exit status is 1 if a figure misses its goal.
    """
    if resume and options.out is None:
        raise click.UsageError("--resume needs the --json FILE of the interrupted run")
    if prepare:
        _prepare(peers)
    errors = (PeerEnvironmentError, ResumeError, WrongAnswerError, DefensembleError, RepositoryError, ServerError)
    run(lambda on_progress: _measure_networks(options, peers, resume, on_progress), page, options, errors=errors)


def _prepare(peers: Sequence[str]) -> NoReturn:
    names = [contender.environment for contender in CONTENDERS if contender.key in peers and contender.environment is not None]
    try:
        create_environments(names, click.echo)
    except (OSError, PeerEnvironmentError) as error:
        raise click.ClickException(str(error)) from error
    raise SystemExit(0)


def _measure_networks(options: Options, peers: Sequence[str], resume: bool, on_progress: OnProgress) -> Mapping[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    for contender in CONTENDERS:
        if contender.key in peers:
            _ = contender.python  # refuses at once
    images = random_images(max(setting.callers * setting.batch for setting in SETTINGS), options.seed)
    networks = untrained_networks(images, options.seed, on_progress=on_progress)
    result = measure(
        networks.members,
        images,
        expected_outputs(networks.logits)["probabilities"],
        QUICK if options.quick else FULL,
        peers=peers,
        seed=options.seed,
        kept=None if options.out is None else options.out.with_suffix(".partial.json"),
        resume=resume,
        on_progress=on_progress,
    )
    return {**result, "member_spec": spec_values()}


if __name__ == "__main__":
    main()

"""How long is an ensemble away when its server dies?

Five defective ResNet-18s of width 16 at 3x32x32. Triton is killed again and again, and one caller asks for one image every few
milliseconds: the time of a restart is that from the signal to the first right answer.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import urllib3
from numpy.typing import NDArray

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.answers import right_answers
from benchmarks.common.command_line import OnProgress, Options, benchmark_command, run, silent
from benchmarks.common.markdown import look
from benchmarks.common.processes import start_s
from benchmarks.common.provenance import surroundings
from benchmarks.common.servers import ENSEMBLE, started, written
from defensemble_export import ExportedMember
from defensemble_repository.averaging import TOLERANCE, largest_difference
from defensemble_repository.errors import RepositoryError
from defensemble_server import Server, ServerError, server_status

SCHEMA = "defensemble.benchmark.restart_time/1"
GOAL_S = 1.0
ROUNDS, QUICK_ROUNDS = 20, 3
_POLL_S = 0.005
_TIMEOUT_S = 60.0


class NotBackError(Exception):
    """The server gave no right answer in time."""


def measure(
    members: Sequence[ExportedMember],
    image: NDArray[np.float32],
    expected: NDArray[np.float64],
    rounds: int,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Kill the server of an ensemble of `members` `rounds` times; the result as JSON.

    Args:
        members: The members.
        image: What the caller asks about (1, C, H, W).
        expected: The probabilities of the ensemble for it (1, K).
        rounds: How often the server is killed.
        on_progress: Is called with the progress.

    Raises:
        NotBackError: The server did not come back.
        ServerError, RepositoryError, OSError: It could not be started.
    """
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        with started(written(Path(folder) / "repository", members)) as (server, start):
            away, checked = [], []
            for number in range(rounds):
                away.append(_killed(server, image, expected))
                checked.append(_checked(server, number + 1))
                on_progress(f"{number + 1} of {rounds}: right answers after {away[-1]:.2f} s")
    return {
        "schema": SCHEMA,
        **surroundings(),
        "members": len(members),
        "image_shape": list(image.shape[1:]),
        "rounds": rounds,
        "first_start_s": round(start.start_s, 3),
        "first_right_answer_s": [round(one, 3) for one in away],
        "all_answers_checked_s": [round(one, 3) for one in checked],
        "figures": figures_of(away),
    }


def figures_of(away: Sequence[float]) -> dict[str, Any]:
    """What must hold of the times from a death to the first right answer, in seconds."""
    median_s = statistics.median(away)
    return {"first_right_answer_median_s": {"value": round(median_s, 3), "goal": GOAL_S, "holds": median_s <= GOAL_S}}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Markdown; the same result gives the same text."""
    away, checked = result["first_right_answer_s"], result["all_answers_checked_s"]
    hardware, versions = result["hardware"], result["versions"]
    figure = result["figures"]["first_right_answer_median_s"]
    note = f"\n{result['note']}\n" if result["note"] else ""
    return f"""# The restart of a server that was killed
{look(result)}{note}
Made by `benchmarks/restart_time.py` from `{json_name}`. {result["members"]} members, {result["rounds"]} times SIGKILL to Triton; the first
start took {result["first_start_s"]} s. Measured on {result["measured_at"][:10]} on {hardware["cores"]} cores of {hardware["cpu"]},
Python {versions["python"]}, commit {str(result["git_commit"])[:12]}.

| seconds from the death | median | least | most |
|---|---|---|---|
| to the first right answer | {statistics.median(away):.2f} | {min(away):.2f} | {max(away):.2f} |
| until all answers were checked | {statistics.median(checked):.2f} | {min(checked):.2f} | {max(checked):.2f} |

Goal: the median of the first right answer within {figure["goal"]:g} s; it {"holds" if figure["holds"] else "**does not hold**"}.
"""


def _killed(server: Server, image: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    """Kill the server, and ask until the answer is right: the seconds that this took."""
    body = {
        "inputs": [{"name": "images", "shape": list(image.shape), "datatype": "FP32", "data": image.ravel().tolist()}],
        "outputs": [{"name": "probabilities"}],
    }
    pid = server.triton_pid
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while start_s(pid) is not None:  # what it still answers is no answer of the next one
        time.sleep(_POLL_S)
    while time.monotonic() - begin < _TIMEOUT_S:
        try:
            answer = urllib3.request("POST", f"{server.http_url}/v2/models/{ENSEMBLE}/infer", json=body, retries=False, timeout=5.0)
        except urllib3.exceptions.HTTPError:
            time.sleep(_POLL_S)
            continue
        if answer.status == 200 and largest_difference(np.array(answer.json()["outputs"][0]["data"]), expected[0]) <= TOLERANCE:
            return time.monotonic() - begin
        time.sleep(_POLL_S)
    raise NotBackError(f"no right answer within {_TIMEOUT_S:g} s of a kill; see {server.state.log}")


def _checked(server: Server, restarts: int) -> float:
    """Wait until all answers were checked: the seconds since the death, as the guard counted them."""
    deadline = time.monotonic() + _TIMEOUT_S
    while server_status(server.state).restarts < restarts:
        if time.monotonic() > deadline:
            raise NotBackError(f"the answers were not checked within {_TIMEOUT_S:g} s; see {server.state.log}")
        time.sleep(_POLL_S)
    return float(server.events()[-1].facts["outage_s"])


@benchmark_command("restart_time", quick=f"{QUICK_ROUNDS} kills instead of {ROUNDS}", seed="weights, masks and images")
def main(options: Options) -> NoReturn:
    """Kill a server of five members again and again, and time how long the ensemble is away.

    About a minute on two cores, which nothing else should use meanwhile. Exit status 1 where the figure does not hold.
    """
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    run(
        lambda on_progress: _measured(rounds, options.seed, on_progress), page, options, errors=(NotBackError, RepositoryError, ServerError)
    )


def _measured(rounds: int, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    from benchmarks.common.networks import random_images, spec_values, untrained_networks

    images = random_images(64, seed)
    networks = untrained_networks(images, seed, on_progress=on_progress)
    result = measure(networks.members, images[:1], right_answers(networks.logits[:, :1])["probabilities"], rounds, on_progress)
    return {**result, "member_spec": spec_values()}


if __name__ == "__main__":
    main()

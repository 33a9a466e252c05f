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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import urllib3
from numpy.typing import NDArray

# Run as a file, Python looks for modules beside it alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.running import run_and_tell
from defensemble.results.provenance import provenance
from defensemble_export import Member, repository_plan, write_plan
from defensemble_repository.errors import RepositoryError
from defensemble_server import ServeOptions, Server, ServerError, serve, server_status
from defensemble_server.process.state import process_start

SCHEMA = "defensemble.benchmark.restart_time/1"
GOAL_S = 1.0
ROUNDS, QUICK_ROUNDS = 20, 3
TOLERANCE = 1e-5
_POLL_S = 0.005
_TIMEOUT_S = 60.0


class NotBackError(Exception):
    """The server gave no right answer in time."""


def measure(
    members: Sequence[Member],
    image: NDArray[np.float32],
    expected: NDArray[np.float64],
    rounds: int,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Kill the server of an ensemble of `members` `rounds` times; the result as JSON.

    Args:
        members: The members.
        image: What the caller asks about (1, C, H, W).
        expected: The probabilities of the ensemble for it (1, K).
        rounds: How often the server is killed.
        say: Is called with the progress.

    Raises:
        NotBackError: The server did not come back.
        ServerError, RepositoryError, OSError: It could not be started.
    """
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        repository = Path(folder) / "repository"
        write_plan(repository, repository_plan(repository, members, ensemble="ensemble"))
        with serve(repository, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
            start_s = server.start_s
            away, checked = [], []
            for number in range(rounds):
                away.append(_killed(server, image, expected))
                checked.append(_checked(server, number + 1))
                say(f"{number + 1} of {rounds}: right answers after {away[-1]:.2f} s")
    return {
        "schema": SCHEMA,
        **provenance(),
        "members": len(members),
        "image_shape": list(image.shape[1:]),
        "rounds": rounds,
        "first_start_s": round(start_s, 3),
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
    quick = "\n**A look, which proves nothing.**\n" if result["quick"] else ""
    note = f"\n{result['note']}\n" if result["note"] else ""
    return f"""# The restart of a server that was killed
{quick}{note}
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
    while process_start(pid) is not None:  # what it still answers is no answer of the next one
        time.sleep(_POLL_S)
    while time.monotonic() - begin < _TIMEOUT_S:
        try:
            answer = urllib3.request("POST", f"{server.http_url}/v2/models/ensemble/infer", json=body, retries=False, timeout=5.0)
        except urllib3.exceptions.HTTPError:
            time.sleep(_POLL_S)
            continue
        if answer.status == 200 and np.abs(np.array(answer.json()["outputs"][0]["data"]) - expected[0]).max() <= TOLERANCE:
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


@click.command(
    epilog="""\b
    Examples:
      python benchmarks/restart_time.py --json docs/results/restart_time.json    # and restart_time.md beside it
      python benchmarks/restart_time.py --quick
    """
)
@click.option(
    "--json", "out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the result here, and the page beside it."
)
@click.option("--quick", is_flag=True, help=f"A look: {QUICK_ROUNDS} kills in place of {ROUNDS}; it proves nothing.")
@click.option("--note", help="A sentence for the page, such as what else the machine did meanwhile.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, masks and images.")
def main(out: Path | None, quick: bool, note: str | None, seed: int) -> None:
    """Kill a server of five members again and again, and time how long the ensemble is away.

    About a minute on two cores, which nothing else should use meanwhile. Exit status 1 where the figure does not hold.
    """
    errors = (NotBackError, RepositoryError, ServerError, OSError)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    run_and_tell(lambda say: _measured(rounds, seed, say), page, out=out, quick=quick, note=note, errors=errors)


def _measured(rounds: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    from benchmarks.serving.members import COUNT, SPEC, random_images, untrained_members

    say(f"{COUNT} networks are made and exported")
    images = random_images(64, seed)
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        members, logits = untrained_members(Path(folder), images, seed)
    powers = np.exp(logits[:, :1].astype(np.float64) - logits[:, :1].max(axis=-1, keepdims=True))
    expected: NDArray[np.float64] = (powers / powers.sum(axis=-1, keepdims=True)).mean(axis=0)
    result = measure(members, images[:1], expected, rounds, say)
    return {**result, "member_spec": {**SPEC, "blocks": list(SPEC["blocks"]), "trained": False}}


if __name__ == "__main__":
    main()

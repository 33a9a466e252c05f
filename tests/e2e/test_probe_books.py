"""What a probe counts as sent is what Triton counts: over retries, restarts, edits, kills and interrupts."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import Client, RetryPolicy
from defensemble.ensembles import Ensembles
from defensemble.probes import LabelledImages, Noise, ProbeOutcome, Progress, measure, read_outcome, served_targets
from defensemble_server import ServeOptions, Server, serve
from tests.support.command_line import finish, start, succeed
from tests.support.probing import FEW, assert_balanced, result
from tests.support.tcp_proxy import TcpProxy, cut, proxied, reset, stall, until
from tests.support.tiny import images, logits, write_repository

PROBE = Noise((8, 64), seed=3)
FAST_RETRIES = RetryPolicy(max_retries=8, initial_backoff_s=0.01, max_backoff_s=0.3, reserve=1000)
MODELS = ("ensemble", "alpha", "beta")


def url_of(server: Server, scheme: str) -> str:
    return server.http_url if scheme == "http" else server.grpc_url


def counted_by_triton(url: str) -> Counter[str]:
    """Return the images of each model, by Triton's statistics."""
    with Client(url) as client:
        entries = client.statistics()
    return Counter({name: sum(entry.images for entry in entries if entry.name == name) for name in MODELS})


def expected(outcome: ProbeOutcome) -> Counter[str]:
    """Return what Triton counts for the images that a probe sent: an ensemble passes its own to its members."""
    sent = {target.name: target.queries.sent for target in outcome.targets}
    through = sent.get("ensemble", 0)
    return Counter({name: sent.get(name, 0) + (through if name != "ensemble" else 0) for name in MODELS})


def run(url: str, *, answers: Any = "probabilities", progress: Progress | None = None, data: LabelledImages = FEW) -> ProbeOutcome:
    """Measure all models of a server, one request at a time."""
    targets = served_targets(url, answers=answers, max_parallel=1, retry=FAST_RETRIES)
    try:
        outcome = measure(PROBE, targets, data, progress=progress)
    finally:
        targets[0].close()
    assert_balanced(outcome)
    assert outcome.failures == {}
    assert {target.queries.counted for target in outcome.targets} == {3 * len(data)}
    return outcome


class At(Progress):
    """Calls a function after some of the batches of a target."""

    def __init__(self, target: str, act: Callable[[], object], *, at: tuple[int, ...]) -> None:
        self._target, self._act, self._at = target, act, at
        self._calls = 0

    def on_images(self, target: str, done: int, total: int) -> None:
        if target == self._target:
            if self._calls in self._at:
                self._act()
            self._calls += 1


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("answers", ["probabilities", "labels", "top-1"])
def test_sent_is_what_triton_counts(triton: Server, scheme: str, answers: str) -> None:
    url = url_of(triton, scheme)
    before = counted_by_triton(url)
    outcome = run(url, answers=answers)
    assert counted_by_triton(url) - before == expected(outcome)
    assert {target.queries.retried + target.queries.repeated for target in outcome.targets} == {0}
    assert {check.status for check in outcome.checks} <= {"PASS", "WARN"}
    assert outcome.answers == answers
    for target in outcome.targets:
        assert set(target.entropy) == (set(target.predicted) if answers == "probabilities" else set())
        if target.name != "ensemble":
            seed = {"alpha": 1, "beta": 2}[target.name]
            assert target.predicted["clean"].tolist() == logits(seed, FEW.images).argmax(axis=1).tolist()


def test_both_protocols_have_one_result(triton: Server) -> None:
    one, other = (result(run(url)) for url in (triton.http_url, triton.grpc_url))
    for report in (one, other):  # the last digits of probabilities differ with the size of joined batches
        for target in report["targets"]:
            del target["uncertainty"], target["per_image"]["entropy"], target["per_image"]["mutual_information"]
        for entry in report["gallery"]:
            del entry["entropy_clean"], entry["entropy_adversarial"]
        for check in report["checks"]:
            del check["text"]
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_responses_that_are_lost_are_sent_again_and_counted_twice(triton: Server, scheme: str) -> None:
    url = url_of(triton, scheme)
    with proxied(url) as proxy:
        faults = iter([cut(), reset(), cut(20), reset(20)])
        progress = At("alpha", lambda: proxy.inject(next(faults)), at=(0, 1, 2, 3))
        before = counted_by_triton(url)
        outcome = run(f"{scheme}://127.0.0.1:{proxy.port}", progress=progress)
        taken = len(proxy.taken)
    assert taken == 4
    until(lambda: counted_by_triton(url) - before == expected(outcome))
    retried = {target.name: target.queries.retried for target in outcome.targets}
    assert retried == {"ensemble": 0, "alpha": 8 + 4 + 8 + 4, "beta": 0}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_connections_that_are_refused_count_nothing(triton: Server, scheme: str) -> None:
    url = url_of(triton, scheme)
    with proxied(url) as proxy:
        before = counted_by_triton(url)
        progress = At("alpha", lambda: _refuse_for(proxy, 0.3), at=(1, 3))
        outcome = run(f"{scheme}://127.0.0.1:{proxy.port}", progress=progress)
    assert counted_by_triton(url) - before == expected(outcome)
    assert {target.queries.retried for target in outcome.targets} == {0}


def _refuse_for(proxy: TcpProxy, seconds: float) -> None:
    """Refuse connections from now on for some time."""
    import threading

    begun = threading.Event()

    def refuse() -> None:
        with proxy.refusing():
            begun.set()
            time.sleep(seconds)

    threading.Thread(target=refuse).start()
    assert begun.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_sent_is_what_both_servers_counted_over_a_restart(tmp_path: Path, scheme: str) -> None:
    folder = write_repository(tmp_path / "repository")
    options = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)
    servers: list[Any] = [serve(folder, options)]
    first: Server = servers[0].__enter__()
    same_ports = ServeOptions(
        http_port=first.state.http_port, grpc_port=first.state.grpc_port, metrics_port=first.state.metrics_port, drain_s=1
    )
    url = url_of(first, scheme)
    counts: list[Counter[str]] = []

    def restart() -> None:
        counts.append(counted_by_triton(url))
        servers[-1].__exit__(None, None, None)
        servers.append(serve(folder, same_ports))
        servers[-1].__enter__()
        counts.append(counted_by_triton(url))  # of the checks of `serve`

    try:
        begun = counted_by_triton(url)
        outcome = run(url, progress=At("alpha", restart, at=(2,)))
        end = counted_by_triton(url)
    finally:
        servers[-1].__exit__(None, None, None)
    before, after = counts
    assert before - begun + (end - after) == expected(outcome)
    assert {check.status for check in outcome.checks if check.name == "target did not change"} == {"PASS"}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_sent_is_what_triton_counts_over_an_edit_which_fails_a_check(tmp_path: Path, scheme: str) -> None:
    folder = write_repository(tmp_path / "repository")
    counts: list[Counter[str]] = []
    with serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        url = url_of(server, scheme)

        def edit() -> None:
            counts.append(counted_by_triton(url))
            with Client(url, admin_key=server.state.admin_key) as client:
                Ensembles(folder, client).weight("ensemble", {"beta": 5.0})
            counts.append(counted_by_triton(url))

        begun = counted_by_triton(url)
        outcome = run(url, progress=At("ensemble", edit, at=(2,)))
        end = counted_by_triton(url)
    before, after = counts
    assert before - begun + (end - after) == expected(outcome)
    failed = [check.text for check in outcome.checks if check.status == "FAIL"]
    assert [text.partition(":")[0] for text in failed] == ["ensemble"]
    assert "config_sha256" in failed[0]


def write_data(folder: Path, count: int = 1000) -> Path:
    batch = images(count)
    np.savez(folder / "data.npz", images=batch, labels=logits(1, batch).argmax(axis=1))
    return folder / "data.npz"


def recorded(ledger: Path) -> int:
    """Return the number of batches whose responses a ledger has."""
    path = ledger / "records.jsonl"
    return sum(b'"responses"' in line for line in path.read_bytes().split(b"\n")[:-1]) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("records", [1, 40, 500])
def test_a_killed_command_is_resumed(triton: Server, tmp_path: Path, records: int) -> None:
    options = ("noise", triton.http_url, "--dataset", write_data(tmp_path), "--sigmas", "8,64", "--batch-size", "2", "--target", "alpha")
    succeed("probe", *options, "--out", "whole.json", cwd=tmp_path)
    before = counted_by_triton(triton.http_url)
    killed = start("probe", *options, "--out", "killed.json", cwd=tmp_path)
    try:
        until(lambda: recorded(tmp_path / "killed.ledger") >= records or killed.poll() is not None, 60)
    finally:
        killed.send_signal(signal.SIGKILL)
        assert finish(killed).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.json").exists()
    left = 3000 - 2 * recorded(tmp_path / "killed.ledger")
    printed = succeed("probe", *options, "--out", "killed.json", "--resume", cwd=tmp_path)
    assert f" {left:,} queries" in printed
    whole, resumed = (read_outcome(tmp_path / name) for name in ("whole.json", "killed.json"))
    assert_balanced(resumed)
    assert result(resumed)["targets"] == result(whole)["targets"]
    arrived = (counted_by_triton(triton.http_url) - before)["alpha"]
    assert arrived <= resumed.targets[0].queries.sent <= arrived + 4 * 2, "those that were counted, and did not leave"
    assert not (tmp_path / "killed.ledger").exists()


@pytest.mark.parametrize("attack", [("square", "--epsilon", "0.5"), ("boundary", "--steps", "400"), ("hopskipjump", "--steps", "2")])
@pytest.mark.slow
def test_a_killed_attack_is_resumed_at_the_query_that_it_had_reached(triton: Server, tmp_path: Path, attack: tuple[str, ...]) -> None:
    options: tuple[str | Path, ...] = (attack[0], triton.http_url, "--dataset", write_data(tmp_path, 12), *attack[1:], "--target", "alpha")
    succeed("probe", *options, "--out", "whole.json", cwd=tmp_path)
    before = counted_by_triton(triton.http_url)
    killed = start("probe", *options, "--out", "killed.json", cwd=tmp_path)
    answers = tmp_path / "killed.ledger/answers-0.bin"
    try:
        until(lambda: (answers.exists() and answers.stat().st_size >= 16 * 200) or killed.poll() is not None, 60)
    finally:
        killed.send_signal(signal.SIGKILL)
        assert finish(killed).returncode == -signal.SIGKILL
    stored = answers.stat().st_size // 16
    succeed("probe", *options, "--out", "killed.json", "--resume", cwd=tmp_path)
    whole, resumed = (read_outcome(tmp_path / name) for name in ("whole.json", "killed.json"))
    assert_balanced(resumed)
    assert result(resumed)["targets"] == result(whole)["targets"]
    queries = resumed.targets[0].queries
    assert queries.counted == whole.targets[0].queries.counted > stored >= 200
    arrived = (counted_by_triton(triton.http_url) - before)["alpha"]
    assert arrived <= queries.sent <= arrived + 2 * 64, "those that were counted, and did not leave"
    assert queries.repeated <= 2 * 64


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.slow
def test_ctrl_c_waits_for_no_response_and_leaves_a_run_to_resume(triton: Server, tmp_path: Path, scheme: str) -> None:
    data = write_data(tmp_path)
    with proxied(url_of(triton, scheme)) as proxy:
        url = f"{scheme}://127.0.0.1:{proxy.port}"
        options = ("noise", url, "--dataset", data, "--sigmas", "8,64", "--batch-size", "2", "--target", "alpha", "--out", "n.json")
        process = start("probe", *options, cwd=tmp_path)
        until(lambda: recorded(tmp_path / "n.ledger") >= 20, 60)
        proxy.always = stall()
        until(lambda: len(proxy.taken) >= 1)
        reached = recorded(tmp_path / "n.ledger")
        process.send_signal(signal.SIGINT)
        interrupted = time.monotonic()
        done = finish(process)
        assert time.monotonic() - interrupted < 10, "the default timeout of a request is 60 s"
        assert done.returncode == 130
        assert "Traceback" not in done.stderr
        proxy.always = None
        assert recorded(tmp_path / "n.ledger") >= reached
        succeed("probe", *options, "--resume", cwd=tmp_path)
    queries = json.loads((tmp_path / "n.json").read_text())["targets"][0]["queries"]
    assert queries["counted"] == 3000
    assert 0 < queries["repeated"] <= 4 * 2

"""`defensemble status`: what servers serve, and their rates between two looks."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from defensemble import Client, ConnectionFailedError, FakeTransport, ModelState, ModelStatistics, RequestRefusedError, ServerHealth
from defensemble.cli import cli
from defensemble.cli.actions.status import ServerSample, WatchedServer, tables_from_samples, take_samples, values_from_samples
from tests.support.command_line import TIMEOUT_S, start
from tests.support.facts import assert_facts
from tests.support.fakes import ensemble, fused, member
from tests.support.scripted import free_port
from tests.support.tiny import images

AVERAGE = "average_0123456789abcdef"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["status", *arguments])


def sample(transport: FakeTransport) -> dict[str, Any]:
    """Look at a server once; return its values."""
    with Client("fake", transport=transport) as client:
        server: dict[str, Any] = values_from_samples(take_samples([WatchedServer(client)]), [None])["servers"][0]
    return server


def of_time(taken: float, *counters: ModelStatistics, unavailable: Sequence[ModelState] = ()) -> ServerSample:
    health = ServerHealth("http://a:1", True, True, "triton", "2.51.0", None, 0, False)
    return ServerSample(taken, health, 0.001, {entry.name: "model" for entry in counters}, counters, unavailable)


def test_the_kinds_of_models_and_their_counters() -> None:
    models = {
        "ensemble": ensemble(steps=("alpha", "beta", AVERAGE)),
        "alpha": member(1),
        "beta": member(2),
        AVERAGE: member(3),
        "fused": fused(),
        "standard": member(3),
    }
    transport = FakeTransport(models)
    with Client("fake", "alpha", transport=FakeTransport(models)) as client:
        client.predict(images(3))
    shown = sample(transport)
    assert {model["name"]: model["kind"] for model in shown["models"]} == {
        "ensemble": "ensemble",
        "fused": "ensemble",
        "alpha": "member",
        "beta": "member",
        "standard": "model",
        AVERAGE: "average",
    }
    assert [model["requests"] for model in shown["models"]] == [0] * 6, "no model runs for it"
    assert transport.requests == []


def test_rates_and_means_are_of_the_last_interval() -> None:
    def counters(requests: int, failures: int, batch: int, success_ms: int, queue_ms: int) -> ModelStatistics:
        return ModelStatistics("m", 1, requests, requests, 0, failures, batch, success_ms * 10**6, queue_ms * 10**6)

    first, second = of_time(100.0, counters(10, 2, 64, 80, 16)), of_time(104.0, counters(30, 2, 128, 180, 36))
    (model,) = values_from_samples([first], [None])["servers"][0]["models"]
    assert (model["latency_ms"], model["queue_ms"], model["requests_per_s"], model["images_per_s"]) == (10, 2, None, None)
    (model,) = values_from_samples([second], [first])["servers"][0]["models"]
    assert (model["latency_ms"], model["queue_ms"], model["requests_per_s"], model["images_per_s"]) == (5, 1, 5, 16)
    assert (model["requests"], model["failures"], model["images"]) == (30, 2, 128)
    (idle,) = values_from_samples([of_time(108.0, *second.counters or ())], [second])["servers"][0]["models"]
    assert (idle["requests_per_s"], idle["latency_ms"]) == (0, None)
    (reloaded,) = values_from_samples([of_time(112.0, counters(4, 0, 4, 4, 0))], [second])["servers"][0]["models"]
    assert (reloaded["requests_per_s"], reloaded["latency_ms"]) == (None, 1)


def test_models_that_are_not_loaded_are_shown_with_the_reason() -> None:
    states = [ModelState("broken", 1, "UNAVAILABLE", "no such file")]
    first, second = values_from_samples([of_time(1.0, ModelStatistics("m", 2, 0, 0, 0), unavailable=states)], [None])["servers"][0][
        "models"
    ]
    assert {first["name"], second["name"]} == {"m", "broken"}
    broken = first if first["name"] == "broken" else second
    assert (broken["state"], broken["reason"], broken["requests"]) == ("UNAVAILABLE", "no such file", None)


class WithoutStatistics(FakeTransport):
    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        raise RequestRefusedError(f"{self.url} has no statistics")

    def models(self, timeout_s: float) -> list[str]:
        return ["alpha"]


def test_a_server_without_statistics_still_shows_its_models() -> None:
    shown = sample(WithoutStatistics({"alpha": member(1)}))
    assert (shown["ready"], shown["has_statistics"]) == (True, False)
    assert [(model["name"], model["state"], model["requests"]) for model in shown["models"]] == [("alpha", "READY", None)]


def test_the_tables_name_servers_models_and_what_is_missing(triton: Any) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run(url, triton.http_url, triton.grpc_url)
    assert done.exit_code == 1
    assert_facts(done.output, f"{url} | refused | {triton.http_url} | {triton.grpc_url} | triton 2. | ensemble | member | average | READY")
    done = run(url, "--json")
    assert done.exit_code == 1
    (server,) = json.loads(done.stdout)["servers"]
    assert (server["live"], server["models"]) == (False, [])
    assert_facts(server["error"], f"{url} | refused")


def test_a_server_that_is_down_leaves_room_for_the_models_of_another_one_on_a_small_terminal() -> None:
    def of_requests(requests: int) -> ServerSample:
        return of_time(requests / 10, *(ModelStatistics(f"model{number}", 1, requests, requests, 0) for number in range(5)))

    down = ServerHealth("http://127.0.0.1:12345", False, False, "", "", ConnectionFailedError("no route | " * 10), 0, True)
    output = io.StringIO()
    console = Console(file=output, width=80)
    samples, before = ([of_requests(requests), ServerSample(requests / 10, down)] for requests in (30, 10))
    console.print(tables_from_samples(samples, before))
    lines = output.getvalue().splitlines()
    assert len(lines) < 24
    assert_facts(" ".join(lines), f"{down.url} | {down.url}: no route | error")
    (row,) = (line.split() for line in lines if "model4" in line)
    assert row == ["model4", "1", "model", "READY", "10.0", "0.0", "0.00", "0.00", "0"], "nothing is cut off"


def test_the_counters_of_a_real_server(triton: Any) -> None:
    def models(url: str) -> dict[str, dict[str, Any]]:
        done = run(url, "--json")
        assert done.exit_code == 0, done.output
        (server,) = json.loads(done.stdout)["servers"]
        assert (server["name"], server["live"], server["ready"]) == ("triton", True, True)
        assert 0 < server["round_trip_ms"] < 5000
        return {model["name"]: model for model in server["models"]}

    before = models(triton.http_url)
    assert {name: model["requests"] for name, model in models(triton.grpc_url).items()} == {
        name: model["requests"] for name, model in before.items()
    }
    with Client(triton.http_url, "ensemble") as client:
        client.describe()  # classifies one black image
        client.predict(images(5))
    after = models(triton.http_url)
    assert after["ensemble"]["requests"] - before["ensemble"]["requests"] == 2
    assert after["ensemble"]["images"] - before["ensemble"]["images"] == 6
    assert after["ensemble"]["latency_ms"] > 0
    assert (after["ensemble"]["kind"], after["alpha"]["kind"]) == ("ensemble", "member")


@pytest.mark.slow
def test_watch_prints_rates_until_ctrl_c(triton: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(200))
    with start("status", triton.http_url, "--watch", "--interval", "0.2", "--json", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        with Client(triton.http_url, "ensemble") as client:
            looks: list[dict[str, Any]] = []
            while not looks or not looks[-1].get("images_per_s"):
                client.predict(images(8))
                looks.append(json.loads(process.stdout.readline())["servers"][0]["models"][0])
        assert looks[0]["images_per_s"] is None
        assert looks[-1]["latency_ms"] > 0
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().split() == ["interrupted"]
        assert process.wait(TIMEOUT_S) == 130

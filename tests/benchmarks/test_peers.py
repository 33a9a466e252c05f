"""The benchmark of other servers: figures and page of a result, errors, and a short run with real servers."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.common.command_line import CORES
from benchmarks.common.figures import exit_status
from benchmarks.common.forms import WrongAnswerError
from benchmarks.common.processes import descendants, process_start_s
from benchmarks.common.server_processes import ServerProcesses
from benchmarks.common.timing import time_open_loop
from benchmarks.peering.catalogue import CONTENDERS, PEERS, Launch
from benchmarks.peering.environments import REQUIREMENTS, PeerEnvironmentError, create_environments, peer_folder
from benchmarks.peering.figures import IN_PROCESS, OPEN_LOOP, SETTINGS, compare, compute_figures, summarize_forms, summarize_servers
from benchmarks.peering.measuring import Effort, Records, ResumeError
from benchmarks.peering.page import page
from benchmarks.peers import SCHEMA, main, measure
from tests.support import tiny

OURS, PEER, OTHER, LIMIT = "Triton, pipeline, HTTP", "LitServe, HTTP", "Ray Serve, HTTP", "fused graph, 1 thread"


def record(number: int, key: str, name: str, rates: tuple[float, float, float], failure: str | None = None) -> dict[str, Any]:
    settings = {
        setting.key: {"images_per_s": rate, "n": 10, "p50": 5.0, "p99": 9.0, "max": 10.0}
        for setting, rate in zip(SETTINGS, rates, strict=True)
    }
    settings[OPEN_LOOP] = {"images_per_s": 50.0, "n": 10, "p50": 7.0 + number, "p99": 9.0, "max": 10.0, "late_share": 0.004}
    return {
        "round": number,
        "key": key,
        "ours": key == "pipeline",
        "start_s": None if key == IN_PROCESS else 1.5,
        "idle_bytes": None if key == IN_PROCESS else 80_000_000,
        "loaded_bytes": None if key == IN_PROCESS else 90_000_000,
        "processes": None if key == IN_PROCESS else 3,
        "forms": {name: settings if failure is None else {}},
        "failures": {} if failure is None else {name: failure},
    }


def records(ours: tuple[float, float, float], ray_failure: str | None = None) -> list[dict[str, Any]]:
    """Two rounds; in the second all is twice as fast, and Ray Serve fails if there is a failure."""
    made = []
    for number, speed in enumerate((1.0, 2.0)):
        for key, name, rates in (
            ("pipeline", OURS, ours),
            ("litserve", PEER, (100.0, 50.0, 40.0)),
            ("ray", OTHER, (50.0, 60.0, 10.0)),
            (IN_PROCESS, LIMIT, (200.0, 100.0, 80.0)),
        ):
            fast = tuple(speed * rate for rate in rates)
            made.append(record(number, key, name, (fast[0], fast[1], fast[2]), ray_failure if key == "ray" and number else None))
    return made


def figures_of(made: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    forms = summarize_forms(made)
    return compute_figures({setting.key: compare(forms[setting.key]) for setting in SETTINGS})


def test_the_best_of_ours_is_compared_with_the_best_peer_of_each_setting() -> None:
    figures = figures_of(records((150.0, 90.0, 40.0)))
    assert {name: (figure["value"], figure["best_peer"], figure["holds"]) for name, figure in figures.items()} == {
        "8_callers_batch_16_to_best_peer": (1.5, PEER, True),
        "8_callers_batch_1_to_best_peer": (1.5, OTHER, True),
        "1_caller_batch_1_to_best_peer": (1.0, PEER, True),
    }
    assert exit_status(figures) == 0


@pytest.mark.parametrize("ours", [(100.0, 90.0, 40.0), (150.0, 60.0, 40.0), (150.0, 90.0, 39.0)])
def test_level_is_enough_only_for_one_caller(ours: tuple[float, float, float]) -> None:
    figures = figures_of(records(ours))
    assert [figure["holds"] for figure in figures.values()].count(False) == 1
    assert exit_status(figures) == 1


def test_a_peer_that_failed_in_a_round_does_not_count() -> None:
    made = records((150.0, 55.0, 40.0), ray_failure="it ended")
    assert summarize_forms(made)["8_callers_batch_1"][OTHER]["images_per_s"] is None
    assert figures_of(made)["8_callers_batch_1_to_best_peer"]["best_peer"] == PEER
    assert exit_status(figures_of(made)) == 0


def test_a_figure_without_a_server_of_ours_is_missed() -> None:
    figures = figures_of([made for made in records((150.0, 90.0, 40.0)) if not made["ours"]])
    assert [(figure["value"], figure["holds"]) for figure in figures.values()] == [(None, False)] * 3


def result_of(made: list[dict[str, Any]]) -> dict[str, Any]:
    forms = summarize_forms(made)
    comparisons = {setting.key: compare(forms[setting.key]) for setting in SETTINGS}
    keys = ("pipeline", "litserve", "ray")
    return {
        "schema": SCHEMA,
        "seed": 0,
        "members": ["a", "b"],
        "member_spec": {"arch": "resnet18", "keep": 0.3, "width": 16},
        "image_shape": [3, 32, 32],
        "rounds": 2,
        "seconds": 5.0,
        "largest_difference": 1e-7,
        "open_loop_per_s": 60.0,
        "open_loop_fraction": 0.6,
        "setting_titles": {setting.key: setting.title for setting in SETTINGS},
        "titles": {key: key.title() for key in keys},
        "configurations": {key: f"how {key} is configured" for key in keys},
        "peer_versions": {"litserve": "0.2.19", "ray": "2.60.0"},
        "forms": forms,
        "comparisons": comparisons,
        "servers": summarize_servers(made),
        "failures": {name: text for one in made for name, text in one["failures"].items()},
        "figures": compute_figures(comparisons),
        "server": {"version": "2.51.0"},
        "versions": {"python": "3.11", "onnxruntime": "1.32.0"},
        "hardware": {"cores": 2, "cpu": "a processor"},
        "git_commit": "0" * 40,
        "measured_at": "2026-12-01T00:00:00",
        "duration_s": 1500.0,
        "quick": False,
        "note": "A note.",
    }


def test_the_page_shows_every_form() -> None:
    text = page(result_of(records((150.0, 90.0, 40.0), ray_failure="it ended")), "peers.json")
    for fact in (
        "A note.",
        "[peers.json](peers.json)",
        "| 8 x 16: best of ours / best peer (LitServe, HTTP) | 1.5 | > 1 | holds |",
        f"| {OURS} | 225 (150 to 300) | 135 (90 to 180) | 60 (40 to 80) |",
        f"| {LIMIT} | **300 (200 to 400)** |",
        f"| {PEER} | 50 (50 to 50) | 7.5 (7.0 to 8.0) | 9.0 (9.0 to 9.0) | 0.40% (0.40% to 0.40%) |",
        f"| {OTHER} | failed |",
        "| Litserve | 3 | 80 MB | 90 MB | 1.50 (1.50 to 1.50) |",
        "| Ray | 2.60.0 | how ray is configured |",
        f"{OTHER} failed: it ended",
    ):
        assert fact in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 200


# Errors


def test_an_unknown_peer_is_refused() -> None:
    done = CliRunner().invoke(main, ["--peers", "litserve,torchserve"])
    assert done.exit_code == 2
    assert "'torchserve'" in done.stderr
    assert all(peer in done.stderr for peer in PEERS)


def test_a_missing_environment_is_an_error_that_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEMBLE_TEST_ENVS", str(tmp_path))
    done = CliRunner().invoke(main, ["--peers", "fastapi,litserve", "--quick"])
    assert done.exit_code == 1
    assert "python benchmarks/peers.py --prepare --peers litserve" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_environment_that_cannot_be_created_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEMBLE_TEST_ENVS", str(tmp_path / "environments"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("benchmarks.peering.environments.REQUIREMENTS", tmp_path)
    (tmp_path / "bad.txt").write_text("no-such-package==1\n")
    with pytest.raises(PeerEnvironmentError, match="no-such-package"):
        create_environments(["bad"])
    assert list((tmp_path / "environments").iterdir()) == []


def test_each_peer_has_pinned_requirements_with_one_onnx_runtime() -> None:
    names = {contender.environment: contender.package for contender in CONTENDERS if contender.environment is not None}
    assert sorted(names) == sorted(path.stem for path in REQUIREMENTS.iterdir())
    pins = {}
    for name, package in names.items():
        lines = [line for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
        assert all("==" in line for line in lines)
        pins[name] = dict(line.split("==") for line in lines)
        assert package in pins[name]
        assert "torch" not in pins[name]
    assert len({(pin["onnxruntime"], pin["numpy"]) for pin in pins.values()}) == 1


def test_the_pools_of_all_workers_have_one_thread_for_each_core(tmp_path: Path) -> None:
    launch = Launch(Path(sys.executable), tmp_path, 1, 2, {"pipeline": tmp_path, "fused": tmp_path})
    threads = {contender.key: contender.workers * int(contender.environment_variables(launch)["POOL_THREADS"]) for contender in CONTENDERS}
    assert threads == dict.fromkeys(threads, CORES)
    assert {contender.key for contender in CONTENDERS if contender.workers > 1} == {"litserve", "bentoml", "mlserver", "ray"}


# Running


def test_a_server_ends_with_all_of_its_processes(tmp_path: Path) -> None:
    script = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)"
    server = ServerProcesses([sys.executable, "-c", f"{script}; time.sleep(60)"], tmp_path, {})
    deadline = time.monotonic() + 20
    while len(found := server.find()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(found) == 2
    assert server.memory_bytes() > 1_000_000
    server.stop()
    assert server.find() == []
    assert not server.running
    assert not set(found) & set(descendants(os.getpid()))
    assert all(process_start_s(pid) is None for pid in found)


def test_the_open_loop_counts_from_the_arrival() -> None:
    arrivals = np.array([0.0, 0.0, 0.01, 0.02])
    images = np.zeros((1, 1, 1, 2, 2), np.float32)

    def predict(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        time.sleep(0.05)
        return batch

    timing = time_open_loop(predict, images, arrivals, warm_s=0.005)
    # The third call starts when the second one has ended, and the fourth after that.
    assert len(timing.calls_ms) == 2
    assert timing.calls_ms[0] >= 140
    assert timing.calls_ms[1] >= 180
    assert timing.calls_per_s <= 2 / 0.19
    assert 0 <= timing.late_share <= 1


def test_a_call_that_the_callers_send_late_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds + 0.005 if seconds else 0))
    arrivals = np.array([0.0, 0.05, 0.051])

    def predict(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        sleep(0.03)
        return batch

    timing = time_open_loop(predict, np.zeros((1, 1, 1, 2, 2), np.float32), arrivals, warm_s=0.01)
    assert timing.late_share >= 0.5, "the second of three; the third one had to wait for it"


def test_a_failed_call_ends_the_open_loop() -> None:
    def fail(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        raise OSError("no server")

    with pytest.raises(OSError, match="no server"):
        time_open_loop(fail, np.zeros((2, 1, 1, 2, 2), np.float32), np.array([0.0, 0.01, 60.0]), warm_s=0.0)


def test_an_interrupted_run_continues_only_with_the_same_options(tmp_path: Path) -> None:
    path = tmp_path / "peers.partial.json"
    first = Records(path, {"seed": 1}, resume=False)
    first.set_rate(30.0)
    first.add(record(0, "ray", OTHER, (1.0, 2.0, 3.0)), 1e-7)
    second = Records(path, {"seed": 1}, resume=True)
    assert (second.open_loop_per_s, second.largest_difference, second.records) == (30.0, 1e-7, first.records)
    assert second.has(0, "ray")
    assert not second.has(1, "ray")
    with pytest.raises(ResumeError, match="seed"):
        Records(path, {"seed": 2}, resume=True)
    assert Records(path, {"seed": 2}, resume=False).records == []
    second.delete()
    assert not path.exists()


@pytest.mark.slow
def test_a_short_run_compares_real_servers(tmp_path: Path) -> None:
    peers = ["fastapi", "litserve"]
    done = CliRunner().invoke(main, ["--prepare", "--peers", ",".join(peers)])
    assert done.exit_code == 0, done.output
    assert peer_folder("litserve").is_dir()
    images = tiny.images(128)
    expected = np.mean([tiny.softmax(tiny.logits(seed, images)) for seed in range(2)], axis=0)
    members = [tiny.member(f"member{seed}", seed) for seed in range(2)]
    kept = tmp_path / "kept.json"
    result = measure(members, images, expected, Effort(rounds=1, seconds=0.2, warm_s=0.1), peers=peers, kept=kept)
    assert not kept.exists()
    assert result["failures"] == {}
    assert list(result["servers"]) == ["pipeline", "fused", *peers]
    for key in (*(setting.key for setting in SETTINGS), OPEN_LOOP):
        forms = result["forms"][key]
        assert {"Triton, pipeline, gRPC", "Triton, fused, HTTP", "FastAPI, HTTP", "LitServe, HTTP", LIMIT} < set(forms)
        assert all(form["images_per_s"]["median"] > 0 for form in forms.values())
    for server in result["servers"].values():
        assert server["start_s"]["median"] > 0
        assert server["loaded_bytes"]["median"] > 20_000_000
    complete = {**result_of(records((1.0, 1.0, 1.0))), **result}
    assert "| LitServe | 0.2.19 |" in page(json.loads(json.dumps(complete)), "peers.json")


@pytest.mark.slow
def test_wrong_outputs_are_reported_before_timing(tmp_path: Path) -> None:
    images = tiny.images(128)
    members = [tiny.member("member0", 0)]
    with pytest.raises(WrongAnswerError, match=r"FastAPI|Triton|graph|sessions"):
        measure(members, images, tiny.softmax(tiny.logits(0, images))[::-1], Effort(1, 0.1, 0.0), peers=["fastapi"])

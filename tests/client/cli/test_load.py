"""`defensemble load`: arguments, output, exit status, interruption."""

from __future__ import annotations

import io
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from defensemble.cli import cli
from defensemble.cli.actions.load import exit_status
from defensemble.cli.actions.load_view import LoadView, sparkline, tables_from_result
from defensemble.cli.notes import log_records_on_stderr
from defensemble.load import LoadSettings, Progress, Slo, TimelineSecond, read_load_result
from defensemble_server import Server
from tests.support import load_results
from tests.support.command_line import finish, start
from tests.support.facts import assert_facts
from tests.support.scripted import free_port
from tests.support.slow_server import slow_server
from tests.support.tiny import images


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["load", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ((), "URL"),
        (("--rate", "0"), "0.001 | 0.0"),
        (("--rate", "nan"), "nan"),
        (("--rate", "fast"), "fast | 50,100,200"),
        (("--rate", ""), "50,100,200"),
        (("--callers", "0"), "callers | 0"),
        (("--callers", "2", "--rate", "5"), "--callers | --rate"),
        (("--slo", "50ms"), "p99=50ms | 50ms"),
        (("--batch", "1,2"), "1:0.8,16:0.2 | 1,2"),
        (("--find-capacity",), "slo"),
        (("--find-capacity", "--slo", "p99=5ms", "--rate", "1,2"), "one --rate"),
        (("--step", "0"), "--step"),
        (("--outputs", "logits"), "logits | probabilities"),
        (("--images", "nothing.png"), "nothing.png"),
        (("--dataset", "/nowhere"), "/nowhere"),
        (("--dataset", "digits", "--images", "."), "--images | --dataset"),
        (("--processes", "9999"), "9999"),
        (("--json", "/proc/nothing/load.json"), "/proc/nothing/load.json"),
        (("--json", "same.html", "--html", "same.html"), "--json | --html | same.html"),
    ],
)
def test_invalid_arguments(arguments: tuple[str, ...], facts: str) -> None:
    done = run(*(["http://127.0.0.1:1"] if arguments else []), *arguments)
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit)
    assert_facts(done.output, facts)


def test_a_server_that_cannot_be_reached_and_one_that_is_named_twice() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for arguments in ((url,), (url, url)):
        done = run(*arguments)
        assert done.exit_code == 1
        assert_facts(done.output, url)


def test_a_report_without_its_extra_is_refused_before_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    done = run(f"http://127.0.0.1:{free_port()}", "--html", tmp_path / "load.html")
    assert done.exit_code == 1
    assert_facts(done.output, "defensemble[load]")  # and not that there is no server


def test_what_the_model_does_not_accept(triton: Server) -> None:
    for arguments, facts in ((("--batch", "9"), "ensemble | 8 | 9"), (("--model", "gamma"), "gamma")):
        done = run(triton.http_url, *arguments)
        assert done.exit_code == 1
        assert_facts(done.output, facts)


def test_a_step_that_misses_the_objective_is_named() -> None:
    sample = load_results.open_loop()
    target = msgspec.structs.replace(sample.targets[0], capacity=None)
    lines = [str(line) for line in tables_from_result(msgspec.structs.replace(sample, targets=(target,)))]
    slo = sample.settings.slo
    assert slo is not None
    missing = [f"{step.rate_per_s:g}/s does not hold {slo}" for step in target.steps if (step.attainment or 1.0) < slo.quantile]
    assert missing
    assert [line.partition(":")[0] for line in lines if "does not hold" in line] == missing


@pytest.mark.slow
def test_the_result_is_written_if_it_cannot_be_printed(triton: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "defensemble", "load", triton.http_url, "--callers", "1", "--step", "0.3", "--warm-up", "0"]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "--json", tmp_path / "load.json"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert read_load_result(tmp_path / "load.json").targets[0].steps[0].answered > 0


@pytest.mark.slow
def test_the_table_the_json_and_the_report(triton: Server, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images(5))
    file, page = tmp_path / "new" / "load.json", tmp_path / "load.html"
    options: list[str | Path] = [
        "--callers",
        "1,2",
        "--step",
        "0.5",
        "--warm-up",
        "0.1",
        "--batch",
        "2",
        "--images",
        tmp_path / "images.npy",
    ]
    file.parent.mkdir()
    file.write_text("earlier")
    done = run(triton.http_url, triton.grpc_url, *options, "--slo", "p50=10s", "--json", file, "--html", page)
    assert done.exit_code == 0, done.output
    assert (file.parent / "load.1.json").read_text() == "earlier"
    result = read_load_result(file)
    assert [target.url for target in result.targets] == [triton.http_url, triton.grpc_url]
    assert (result.settings.image_count, result.settings.images) == (5, str(tmp_path / "images.npy"))
    for target in result.targets:
        assert_facts(done.output, f"{target.url} | ensemble | 1 caller | 2 callers | 100.0%")
        for step in target.steps:
            assert step.images == 2 * step.answered
            assert f"{step.requests_per_s:,.1f}" in done.output
    assert "<html" in page.read_text()


@pytest.mark.slow
def test_image_files_are_brought_to_the_size_of_the_model(triton: Server, tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(np.full((4, 4), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
    done = run(triton.http_url, "--callers", "1", "--step", "0.3", "--warm-up", "0", "--images", tmp_path, "--json", tmp_path / "load.json")
    assert done.exit_code == 0, done.output
    assert read_load_result(tmp_path / "load.json").settings.image_count == 3


@pytest.mark.slow
def test_the_exit_status_is_that_of_the_last_step(triton: Server, tmp_path: Path) -> None:
    options: list[str | Path] = ["--callers", "1", "--step", "0.3", "--warm-up", "0", "--json", tmp_path / "load.json"]
    assert run(triton.http_url, *options, "--slo", "p99=1ms", "--batch", "8").exit_code in (0, 1)
    values: dict[str, Any] = json.loads((tmp_path / "load.json").read_text())
    step = values["targets"][0]["steps"][0]
    for changes, expected in (
        ({"attainment": 0.995}, 0),
        ({"attainment": 0.98}, 1),
        ({"attainment": 0.995, "valid": False}, 1),
        ({"attainment": 0.995, "answered": 0, "failed": step["sent"], "failures": {"timeout": step["sent"]}}, 1),
    ):
        values["targets"][0]["steps"] = [{**step, **changes}]
        (tmp_path / "changed.json").write_text(json.dumps(values))
        assert exit_status(read_load_result(tmp_path / "changed.json"), searches_capacity=False) == expected


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    with slow_server(0.005) as server:
        process = start(
            *("load", server.url, "--model", "slow", "--rate", "20,20", "--step", "60", "--warm-up", "0.1", "--json", "load.json"),
            cwd=tmp_path,
        )
        deadline = time.monotonic() + 60
        while len(server.rows) < 30:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        done = finish(process)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    result = read_load_result(tmp_path / "load.json")
    assert result.interrupted
    (step,) = result.targets[0].steps
    assert 10 < step.answered <= len(server.rows)
    assert step.seconds < 30
    assert step.problem is not None


def test_the_live_view_shows_the_step_and_its_seconds() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    settings = LoadSettings(rates=(10, 20), slo=Slo(0.99, 50))
    with log_records_on_stderr(logging.INFO), LoadView(console, settings, 1, searches_capacity=False) as view:
        for second in range(3):
            seen = TimelineSecond(second, 10, 10, 0, 5.0, 10.0 * (second + 1), 40.0)
            view.show(Progress("http://a:1", "10/s", "step", second + 1.0, 5.0, seen))
    assert_facts(screen.getvalue(), "10/s | 3 of 5 s | p99 30.0 ms")
    assert sparkline([1.0, None, 4.0, 8.0]) == "▂ ▅█"
    assert sparkline([]) == ""

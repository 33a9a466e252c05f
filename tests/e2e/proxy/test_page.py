"""docs/how-to/proxy.md against the shipped configuration, and its commands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.common.nginx import CONFIGURATION
from tests.support import tiny
from tests.support.checkout import ROOT
from tests.support.command_line import error_message, run
from tests.support.facts import assert_facts
from tests.support.pages import blocks_to_run

PAGE = ROOT / "docs/how-to/proxy.md"


@pytest.mark.slow
def test_queue_limits_of_the_page_are_accepted_for_new_cores_only(tmp_path: Path) -> None:
    (block,) = blocks_to_run(PAGE)
    tiny.write_repository(tmp_path / "model_repository", {"keep0.3": 1, "keep0.5": 2})
    edit, _, check = block.commands.partition("done\n")
    assert check.split() == ["defensemble", "ensemble", "check", "--runtime", "docker"]
    subprocess.run(["bash", "-euc", f"{edit}done"], cwd=tmp_path, check=True)
    assert (tmp_path / "model_repository/keep0.3/config.pbtxt").read_text().count("max_queue_size: 16") == 1
    done = run("ensemble", "check", "--runtime", "docker", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = run("ensemble", "check", "--runtime", "embedded", cwd=tmp_path)
    assert refused.returncode == 1
    assert_facts(refused.stdout + refused.stderr, "keep0.3 | max_queue_size: 16 | 2.51.0")
    served = run("serve", "--free-ports", cwd=tmp_path)
    assert_facts(error_message(served), "ensemble")
    assert_facts(served.stderr, "keep0.3 | max_queue_size: 16")


def test_the_limits_of_the_page_are_those_of_the_file() -> None:
    page, configuration = PAGE.read_text(), CONFIGURATION.read_text()
    rows = dict(re.findall(r"^\| (.*?) \| (.*?) \|", page.partition("## Choose")[2].partition("\n## ")[0], re.MULTILINE))

    def shown(key: str) -> str:
        (value,) = [str(value) for text, value in rows.items() if key in text]
        return value

    def set_to(pattern: str) -> set[str]:
        return set(re.findall(pattern, configuration))

    assert {shown("max_conns")} == set_to(r":800[01] max_conns=(\d+) fail_timeout=1s; # edit\n    keepalive 16")
    assert shown("http_client").split(", ") == re.findall(r"limit_conn defensemble_\w+_client (\d+);", configuration)
    assert {shown("defensemble_total")} == set_to(r"limit_conn defensemble_total (\d+);")
    for zone in ("rate", "grpc_rate"):
        rate, burst = set_to(rf"zone=defensemble_{zone}:\d+m rate=(\d+)r/s"), set_to(rf"zone=defensemble_{zone} burst=(\d+)")
        assert re.findall(r"\d+", shown(f"defensemble_{zone}")) == [*rate, *burst]
    assert {shown("client_max_body_size").replace(" MB", "m"), shown("without binary").replace(" kB", "k"), "1k"} == set_to(
        r"client_max_body_size (\w+);"
    )
    assert {shown("read_timeout").replace(" ", "")} == set_to(r"_read_timeout (\w+);")
    assert {"5s"} == set_to(r"client_(?:header|body)_timeout (\w+);") | set_to(r"[^_]send_timeout (\w+);")

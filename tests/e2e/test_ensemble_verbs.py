"""Every verb of `defensemble ensemble`, on a server that `serve --detach` runs and that the verbs find without --url."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from defensemble.cli import cli
from defensemble_server import read_states
from tests.support.command_line import run, succeed
from tests.support.facts import assert_facts
from tests.support.tiny import content, leftovers
from tests.support.world import ABC, KEY, World, times_of_change, write_world

PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--supervisor-port", "0", "--drain", "1")


@dataclass(frozen=True)
class Address:
    """The URLs of a server."""

    grpc_url: str
    http_url: str


@pytest.fixture(scope="module")
def detached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server that `serve --detach` left running, with its own admin key."""
    place = tmp_path_factory.mktemp("verbs")
    folder = write_world(place / "repository")
    (place / "admin.key").write_text(KEY + "\n")
    succeed("serve", "--repository", "repository", "--detach", *PORTS, "--admin-key-file", "admin.key", cwd=place)
    (state,) = [state for state in read_states() if Path(state.repository) == folder]
    address = Address(f"grpc://127.0.0.1:{state.grpc_port}", f"http://127.0.0.1:{state.http_port}")
    yield World(folder, address, content(folder))
    succeed("serve", "--stop", "--grpc-port", str(state.grpc_port), cwd=place)
    assert leftovers(folder) == []


@pytest.fixture
def world(detached: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The current folder is that of the repository; its state is restored afterwards."""
    monkeypatch.chdir(detached.folder.parent)
    handler = signal.getsignal(signal.SIGTERM)
    yield detached
    signal.signal(signal.SIGTERM, handler)
    detached.restore()


def ensemble(*words: str, repository: str = "repository", status: int = 0) -> Result:
    """Run a verb in this process."""
    done = CliRunner().invoke(cli, ["ensemble", *words, *(["--repository", repository] if repository else [])])
    assert done.exit_code == status, done.output
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def refused(*words: str, repository: str = "repository", status: int = 1) -> str:
    """Return the error message of a verb that must fail."""
    done = ensemble(*words, repository=repository, status=status)
    parts = re.split(r"^Error: ", done.stderr, flags=re.MULTILINE)
    assert len(parts) == 2, done.output
    return parts[1].strip()


def test_edits_find_the_local_server_and_print_changes_and_undo_command(world: World) -> None:
    url = world.server.http_url
    output = ensemble("weight", "ensemble", "a=2", "c=0.5", "-m", "does best").stdout
    assert_facts(output, "ensemble | weight | a@1 | 1 -> 2 | 33.3 % -> 57.1 % | c@1 | 1 -> 0.5 | 33.3 % -> 14.3 %")
    assert f"serving on {url}, after " in output
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 0.5})
    undo = re.search(r"undo it: \S*defensemble (.*?)    \(edit ([0-9a-f]{12})\)", output)
    assert undo is not None
    assert undo[1] == "ensemble rollback ensemble --repository repository"
    output = ensemble(*shlex.split(undo[1])[1:], repository="").stdout
    world.check(ABC)
    redo = re.search(r"redo it: \S*defensemble (.*?)    \(edit", output)
    assert redo is not None
    ensemble(*shlex.split(redo[1])[1:], repository="")
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 0.5})
    ensemble("add", "ensemble", "d", "--weight", "3")
    ensemble("add", "ensemble", "b@2", "--in-place-of", "b@1")
    ensemble("average", "ensemble", "logits")
    ensemble("remove", "ensemble", "a", "c")
    world.check({"b@2": 1.0, "d@1": 3.0}, "logits")
    ensemble("rollback", "ensemble", "--count", "2")
    world.check({"a@1": 2.0, "b@2": 1.0, "c@1": 0.5, "d@1": 3.0})
    ensemble("create", "canary", "b", "a", "--weight", "b=2", "--average", "logits")
    world.check({"b@2": 2.0, "a@1": 1.0}, "logits", "canary")
    assert ensemble("list").stdout.split() == ["canary", "ensemble"]
    assert json.loads(ensemble("list", "--json").stdout) == ["canary", "ensemble"]
    output = ensemble("delete", "canary").stdout
    assert_facts(output, "deletes | canary")
    assert "canary" not in world.loaded()
    assert ensemble("list").stdout.split() == ["ensemble"]


def test_apply_reads_what_show_prints_and_then_changes_nothing(world: World) -> None:
    Path("ensemble.yaml").write_text(ensemble("show", "--format", "yaml").stdout)
    before, times = content(world.folder), times_of_change(world.folder)
    output = ensemble("apply", "ensemble.yaml")
    assert_facts(output.stdout, "ensemble | no differences")
    assert ensemble("diff", "ensemble.yaml", "--exit-code").stderr == "no differences\n"
    assert (content(world.folder), times_of_change(world.folder)) == (before, times)
    values = yaml.safe_load(Path("ensemble.yaml").read_text())
    values["average"] = "logits"
    values["members"][1] |= {"version": 2, "weight": 0.5}
    Path("ensemble.yaml").write_text(yaml.safe_dump(values))
    differs = ensemble("diff", "ensemble.yaml", "--exit-code", status=1).stdout
    assert_facts(differs, "logits | probabilities")
    assert_facts(differs, "b | version | 1 -> 2 | weight | 1 -> 0.5 | 33.3 % -> 20.0 %")
    assert ensemble("diff", "ensemble.yaml").stdout == differs
    assert json.loads(ensemble("diff", "ensemble.yaml", "--json").stdout) == differs.splitlines()
    dry = ensemble("apply", "ensemble.yaml", "--dry-run").stdout
    assert dry.startswith("ensemble: would change:\n")
    assert (content(world.folder), times_of_change(world.folder)) == (before, times)
    ensemble("apply", "ensemble.yaml", "-m", "as agreed")
    world.check({"a@1": 1.0, "b@2": 0.5, "c@1": 1.0}, "logits")
    Path("ensemble.yaml").write_text("name: second\nmembers:\n  - model: d\n")
    ensemble("apply", "ensemble.yaml")
    world.check({"d@1": 1.0}, name="second")
    assert_facts(refused("show", "--format", "yaml"), "2 ensembles | ensemble, second")


def test_json_output_has_all_values(world: World) -> None:
    url = world.server.http_url
    applied = json.loads(ensemble("weight", "ensemble", "a=2", "--json", "-m", "why").stdout)
    assert (applied["schema"], applied["ensemble"], applied["servers"], applied["dry_run"]) == (
        "defensemble.applied/1",
        "ensemble",
        [url],
        False,
    )
    assert {"checks", "writes", "loads", "inferences", "drain", "total"} <= set(applied["seconds"])
    assert set(applied["loaded"]) == set(applied["unloaded"]) == {url}
    assert json.loads(ensemble("average", "ensemble", "logits", "--json", "--dry-run").stdout)["dry_run"] is True
    assert [applied["ensemble"] for applied in json.loads(ensemble("reload", "--json").stdout)] == ["ensemble"]
    (state,) = json.loads(ensemble("show", "--json").stdout)
    assert ensemble("show", "--format", "json").stdout == ensemble("show", "--json").stdout
    assert (state["name"], state["average"], state["served"]) == ("ensemble", "probabilities", {url: "yes"})
    assert [(member["model"], member["weight"], member["served"]) for member in state["members"]] == [
        ("a", 2.0, {url: "yes"}),
        ("b", 1.0, {url: "yes"}),
        ("c", 1.0, {url: "yes"}),
    ]
    lines = ensemble("history", "--json").stdout.splitlines()
    (edit,) = [json.loads(line) for line in lines]
    assert (edit["id"], edit["action"], edit["message"]) == (applied["id"], "weight", "why")


def test_show_and_history_print_text(world: World) -> None:
    assert ensemble("history").stderr == "no edit yet\n"
    ensemble("weight", "ensemble", "a=2", "-m", "it rains\n\x1b[31mcats")
    ensemble("rollback")
    table = ensemble("show", "ensemble").stdout
    assert_facts(table, "ensemble | probabilities | 1x4x4 | 3 classes | 8 images per call")
    assert re.search(r"a@1 +│ +1 │ +33.3 % │ fp32 +│ masks-1 +│ unknown +│ yes", table)
    assert f"served by {world.server.http_url}: yes" in table
    output = ensemble("history").stdout
    first, second = re.findall(r"^([0-9a-f]{12})  \S+\+00:00  \S+@\S+  (.*)$", output, re.MULTILINE)
    assert first[1] == "weight 'ensemble' (undone)"
    assert second[1] == f"rollback 'ensemble' (undoes {first[0]})"
    assert output.count("    it rains\n    ?[31mcats\n") == 1
    assert ensemble("history", "ensemble", "--last", "1").stdout.startswith(second[0])


def test_servers_load_edits_of_files_only_on_reload(world: World) -> None:
    url = world.server.http_url
    output = ensemble("weight", "ensemble", "a=2", "--files-only").stdout
    assert "files" in output
    assert "--files-only" in output.partition("undo it:")[2]
    assert_facts(ensemble("diff", "--exit-code", status=1).stdout, f"'ensemble' | {url} | outdated | config.pbtxt | reload")
    assert "outdated" in ensemble("show").stdout
    assert "folder" in ensemble("reload").stdout
    assert ensemble("diff", "--exit-code").stdout == ""
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    output = ensemble("reload").stdout
    assert_facts(output, "ensemble | no differences")


def test_a_hand_edit_is_checked_and_reloaded(world: World) -> None:
    assert_facts(ensemble("check").stdout, "embedded runtime | core 2.51.0")
    path = world.folder / "ensemble/config.pbtxt"
    good = path.read_text()
    path.write_text(good.replace("model_version: 1", "model_version: 9", 1))
    line = good[: good.index("model_version: 1")].count("\n") + 1
    done = ensemble("check", status=1)
    assert f"ensemble/config.pbtxt:{line}: " in done.stdout
    (finding,) = json.loads(ensemble("check", "--json", status=1).stdout)
    assert (finding["model"], finding["line"], finding["error"]) == ("a", line, True)
    assert "Error: 1 finding to fix" in done.stderr
    assert f"ensemble/config.pbtxt:{line}: " in refused("reload")
    path.write_text(good + "nonsense: 1\n")
    done = ensemble("check", status=1)
    assert (done.output.count("nonsense"), "Error: 1 finding to fix" in done.stderr) == (1, True), "printed once"
    path.write_text(good.replace("max_batch_size: 8", "max_batch_size: 2"))
    output = ensemble("reload", "-m", "smaller").stdout
    assert "ensemble: changed:" in output
    with world.client() as client:
        assert client.transport.model_config("ensemble", 20)["max_batch_size"] == 2


def test_prune_lists_first_and_asks(world: World) -> None:
    ensemble("remove", "ensemble", "c")
    ensemble("weight", "ensemble", "a=2")
    assert "c  " in ensemble("prune", "--keep-edits", "0", "--dry-run").stdout
    before = content(world.folder)
    assert ensemble("prune", "--keep-edits", "9").stdout == "nothing to prune\n"
    assert_facts(refused("prune", "--keep-edits", "0", status=2), "--yes | --dry-run")
    assert content(world.folder) == before
    output = ensemble("prune", "--keep-edits", "1", "--yes").stdout
    assert re.search(r"^c  [0-9,]+ bytes: .*'ensemble'", output, re.MULTILINE)
    assert re.search(r"^deleted 2, [0-9,]+ bytes$", output, re.MULTILINE)
    assert not (world.folder / "c").exists()
    ensemble("rollback")
    world.check({"a@1": 1.0, "b@1": 1.0})
    assert_facts(refused("rollback"), "c@1 | 'ensemble' | repository")


def test_urls_and_replicas_may_be_named(world: World, tmp_path: Path) -> None:
    ensemble("weight", "ensemble", "a=2", "--url", world.server.grpc_url)
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    output = ensemble("weight", "ensemble", "a=3", "--url", world.server.grpc_url, "--admin-key-file", "admin.key").stdout
    assert f"--repository repository --url {world.server.grpc_url} --admin-key-file admin.key" in output
    place = f"{world.server.grpc_url}=repository"
    output = ensemble("rollback", "--count", "2", "--replica", place, repository="").stdout
    assert f"--replica {place}" in output
    world.check(ABC)
    assert len(ensemble("history", "--json").stdout.splitlines()) == 3
    for option in ("--files-only", "--url"):
        words = [option, *([world.server.http_url] if option == "--url" else [])]
        assert_facts(refused("show", "--replica", place, *words, repository=""), "--url | --files-only")
    assert_facts(refused("show", "--files-only", "--url", world.server.grpc_url), "--files-only | --url")


@pytest.mark.parametrize(
    ("written", "facts"),
    [
        (
            "another-key-0123456789",
            "not the server's",
        ),
        ("short", "16 to 256 | 5"),
        (None, "other.key"),
    ],
)
def test_a_wrong_admin_key_changes_nothing(world: World, written: str | None, facts: str) -> None:
    place = world.folder.parent / "other.key"
    if written is None:
        place.unlink(missing_ok=True)
    else:
        place.write_text(written)
    before, times = content(world.folder), times_of_change(world.folder)
    for words in (["weight", "ensemble", "a=2"], ["delete", "ensemble"], ["prune", "--yes"], ["reload"], ["show"]):
        error = refused(*words, "--admin-key-file", "other.key", status=2 if written is None else 1)
        assert_facts(error, facts)
        assert "another-key" not in error
    assert (content(world.folder), times_of_change(world.folder)) == (before, times)
    world.check(ABC)


def test_edits_work_in_a_process_of_their_own(world: World) -> None:
    place = world.folder.parent
    output = succeed("ensemble", "weight", "ensemble", "a=2", "--repository", "repository", cwd=place)
    assert f"serving on {world.server.http_url}" in output
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    done = run("ensemble", "prune", "--keep-edits", "0", "--repository", "repository", cwd=place)
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    succeed("ensemble", "rollback", "--repository", "repository", cwd=place)
    world.check(ABC)

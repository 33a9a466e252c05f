"""`serve` and `check` reject the same models for the same reasons, and so does Triton, with the exceptions listed here."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble_export import check_repository, write_files
from defensemble_export.editing.plan import plan_creation
from defensemble_repository.checks.finding import Finding
from defensemble_repository.checks.repository import problems_from_findings
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.target import DOCKER, EMBEDDED
from defensemble_repository.view import RepositoryView
from defensemble_server import NotServableError, Server, serve
from tests.support import tiny
from tests.support.calls import FREE, ask
from tests.support.ensemble_hand_edits import AVERAGES, ENSEMBLES
from tests.support.hand_edits import CRASHING, EDITS, LIMITS

# Models that Triton loads and we reject, with the reason.
STRICTER = {
    "no-backend",  # its kind would depend on the names of its files
    "output-twice-unlabelled",  # certainly a mistake
    "dims-minus-1",  # the graph accepts one size, and callers would see a free one
    "instances-passive",  # the first call crashes the server
    "version-zero",
    "version-only-zero",
    "file-name-path",
    "warmup-file-path",
    # The parameters of an average contradict its graph, or describe no computation.
    *("average-average-other", "average-average-unknown", "average-batch-above", "average-members-empty", "average-members-malformed"),
    *("average-members-of-no-version", "average-members-one-more", "average-members-other-order", "average-members-other-pins"),
    *("average-weights-0", "average-weights-faint", "average-weights-huge", "average-weights-nested", "average-weights-not-a-number"),
    *("average-weights-other", "average-weights-too-few", "average-weights-too-many", "average-weights-true"),
    # The graph has fixed sizes.
    *("average-input-dims-minus-1", "average-second-input-dims-minus-1", "average-output-dims-minus-1", "average-measure-dims-minus-1"),
    "ensemble-input-dims-minus-1",
    # Their meaning changes when a version is added.
    *("ensemble-pin-minus-1", "ensemble-pin-of-the-average-minus-1"),
}
# `check` and Triton open the graphs, each with its own messages.
BY_GRAPH = {
    *("batch-0", "batch-0-without-batching", "dims-minus-1", "dims-other", "dims-missing", "dims-one-more"),
    *("output-dims-other", "output-dims-missing", "type-int32", "type-string", "output-type-fp16", "reshape-output"),
    *("input-renamed", "output-renamed", "input-one-more", "output-one-more"),
    *("version-2-broken", "file-empty-no-digest", "file-no-onnx"),
}
# Features that only NVIDIA's container has: GPUs, other backends, and options of its ONNX Runtime backend.
ONLY_EMBEDDED = {
    *("backend-python", "platform-tensorflow", "runtime-field-other", "instances-gpu", "instances-gpu-0", "graph-level-7"),
    *("decoupled", "sequence-batching", "operator-library", "agents", "accelerator-gpu", "input-optional", "type-missing", "no-inputs"),
    *("joined-rows-0", "joined-rows-65537", "joined-rows-all"),
    *("backend-pytorch", "model-metrics", "model-metrics-empty", "ensemble-inflight", "ensemble-inflight-0", "ensemble-model-metrics"),
}


@dataclass(frozen=True)
class Judged:
    repository: Path
    served: frozenset[str]
    serve: dict[str, str]
    check: dict[str, str]
    server: Server
    findings: list[Finding]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    folder = tmp_path_factory.mktemp("judged") / "repository"
    tiny.write_repository(folder, {"alpha": 1, "beta": 2})
    for name, edit in (EDITS | CRASHING).items():
        copied(folder, "alpha", name)
        edit(folder / name)
    for name, edit in LIMITS.items():
        tiny.write_repository(folder, {f"{name}-member": 3, f"{name}-other": 4}, ensemble=name)
        edit(folder / f"{name}-member")
    for number, (name, edit) in enumerate((AVERAGES | ENSEMBLES).items(), 2):
        average = write_ensemble(folder, name, weight=number)
        edit(folder / (average if name in AVERAGES else name))
    findings = check_repository(RepositoryView(folder), EMBEDDED)
    check = problems_from_findings(findings)
    with serve(folder, FREE) as server:
        yield Judged(folder, frozenset(server.models), dict(server.problems), check, server, findings)
    assert tiny.leftovers(folder) == []


def copied(folder: Path, model: str, name: str) -> None:
    shutil.copytree(folder / model, folder / name)
    path = folder / name / "config.pbtxt"
    path.write_text(path.read_text().replace(f'name: "{model}"', f'name: "{name}"'))


def write_ensemble(folder: Path, name: str, weight: float) -> str:
    """Add an ensemble of `alpha` and `beta`; return its averaging model, which is unique because of the weight."""
    plan = plan_creation(folder, Ensemble(name, (Member("alpha", 1, weight), Member("beta"))))
    write_files(folder, {**plan.averaging, **plan.files})
    (average,) = plan.new_models
    return average


def test_serve_and_check_reject_the_same_models(judged: Judged) -> None:
    assert set(judged.serve) == set(judged.check)
    assert judged.served.isdisjoint(judged.serve)
    assert len(EDITS) > 150
    assert 80 < len(judged.serve.keys() & EDITS) < len(EDITS) - 60
    assert 30 < len(judged.serve.keys() & (AVERAGES | ENSEMBLES)) < len(AVERAGES | ENSEMBLES) - 10


def test_messages_are_the_same_unless_a_graph_was_opened(judged: Judged) -> None:
    other = {name for name, text in judged.serve.items() if judged.check[name] != text}
    assert other == BY_GRAPH


def test_triton_rejects_what_check_rejects_and_loads_the_rest(judged: Judged) -> None:
    headers = {"x-admin-key": judged.server.state.admin_key}
    loaded = set()
    edits = EDITS | AVERAGES | ENSEMBLES
    for name in set(edits) & set(judged.serve):
        url = f"{judged.server.http_url}/v2/repository/models/{name}/load"
        if urllib3.request("POST", url, headers=headers, timeout=60.0).status == 200:
            loaded.add(name)
            urllib3.request("POST", url.removesuffix("load") + "unload", headers=headers, timeout=60.0)
    assert loaded == STRICTER & set(edits)
    assert judged.server.running


def test_a_limited_queue_is_rejected_in_an_ensemble_and_served_without_one(judged: Judged) -> None:
    for name in LIMITS:
        refused = name in judged.serve
        assert refused == (name not in ("limit-delayed", "limit-of-delay", "limit-override")), name
        assert f"{name}-member" in judged.served
    assert "2.51.0" in judged.serve["limit-size"]
    assert "26.05" in judged.serve["limit-size"]
    assert f"{judged.repository}/limit-size-member/config.pbtxt:" in judged.serve["limit-size"]
    assert {"queue-max-size", "queue-timeout"} <= judged.served
    assert ask(judged.server, "queue-max-size", tiny.images(1), "logits").shape == (1, 3)


def test_ensembles_that_the_core_cannot_read_are_rejected(judged: Judged) -> None:
    unreadable = {"ensemble-inflight", "ensemble-inflight-0", "ensemble-model-metrics", "ensemble-version-dangling-link"}
    assert unreadable <= set(judged.serve)
    assert f"{judged.repository}/ensemble-inflight/config.pbtxt:" in judged.serve["ensemble-inflight"]
    assert {"model-metrics", "model-metrics-empty", "version-dangling-link", "other-dangling-link"} <= judged.serve.keys()
    assert "file-name-of-a-plan" in judged.served


def test_one_mistake_is_one_finding(judged: Judged) -> None:
    counts = Counter((one.file, one.line) for one in judged.findings if one.is_error and one.line is not None)
    assert [place for place, count in counts.items() if count > 1] == []


def test_the_container_accepts_features_that_the_embedded_runtime_lacks(judged: Judged) -> None:
    docker = problems_from_findings(check_repository(RepositoryView(judged.repository), DOCKER))
    assert docker.keys() <= judged.check.keys()
    assert ONLY_EMBEDDED <= judged.check.keys()
    assert ONLY_EMBEDDED.isdisjoint(docker)
    assert set(LIMITS).isdisjoint(docker)


@pytest.mark.parametrize("name", ["backend-pytorch", "platform-tensorflow", "runtime-field-other"])
def test_unchecked_files_are_not_reported_as_verified(tmp_path: Path, name: str) -> None:
    tiny.write_repository(tmp_path / "repository", {"alpha": 1, "beta": 2}, ensemble="both")
    command = ["ensemble", "check", "both", "--runtime", "docker", "--repository", str(tmp_path / "repository")]
    claim = "compute what the configurations state"
    assert claim in CliRunner().invoke(cli, command).stdout
    EDITS[name](tmp_path / "repository" / "alpha")
    result = CliRunner().invoke(cli, command)
    assert (result.exit_code, claim in result.stdout) == (0, False)
    field = name.partition("-")[0]
    value = re.search(f'^{field}: "(.*)"', (tmp_path / "repository/alpha/config.pbtxt").read_text(), re.MULTILINE)
    assert value is not None
    assert f"not checked: {field} {value[1]!r}" in result.stdout


@pytest.mark.parametrize("goal", ["nowhere", "gone"])
def test_a_dangling_link_in_the_repository_stops_serving(tmp_path: Path, goal: str) -> None:
    tiny.write_repository(tmp_path, {"alpha": 1, "beta": 2}, ensemble="both")
    (tmp_path / "gone").symlink_to(goal)
    for name in (None, "both"):
        (finding,) = check_repository(RepositoryView(tmp_path), EMBEDDED, name)
        assert (finding.file, finding.is_error) == (tmp_path / "gone", True)
    with pytest.raises(NotServableError, match=goal), serve(tmp_path, FREE):
        pass

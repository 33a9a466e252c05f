"""Models that cannot be served: reported with what is wrong and how to fix it, while the others serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import urllib3

from defensemble_repository.target import DOCKER
from defensemble_server import serve
from tests.support import tiny
from tests.support.calls import FREE, ask, without_digest
from tests.support.facts import assert_facts


def test_broken_models_are_named_and_the_others_serve(repository: Path) -> None:
    tiny.write_repository(repository, {"gamma": 3, "delta": 4, "epsilon": 5, "zeta": 6}, ensemble=None)
    (repository / "stray").mkdir()
    (repository / "gamma/config.pbtxt").write_text('name: "gamma"\nbackend: [[')
    damaged = repository / "delta/1/model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    without_digest(repository, "epsilon").write_bytes(b"this is no ONNX file")
    unfit = repository / "zeta/config.pbtxt"
    unfit.write_text(unfit.read_text().replace("dims: 3\n", "dims: 4\n"))
    with serve(repository, FREE) as server:
        assert np.isfinite(ask(server, "ensemble", tiny.images(1), "probabilities")).all()
        problems = dict(server.problems)
    assert set(problems) == {"stray", "gamma", "delta", "epsilon", "zeta"}
    assert "stray folder" in problems["stray"]
    assert_facts(problems["gamma"], "gamma/config.pbtxt:2: | 2:")
    assert_facts(problems["delta"], "changed | damaged")
    assert "model.onnx" in problems["epsilon"]
    assert "logits" in problems["zeta"]


def test_an_ensemble_over_a_broken_member_is_not_served(repository: Path) -> None:
    tiny.write_repository(repository, {"gamma": 3}, ensemble="other")
    (repository / "alpha/config.pbtxt").unlink()
    with serve(repository, FREE) as server:
        assert "stray folder" in server.problems["alpha"]
        assert_facts(server.problems["ensemble"], f"step 1 | alpha | {repository}")
        assert "other" in server.models


def test_a_changed_weight_loads_as_well_as_a_right_one_and_is_caught_by_its_digest(repository: Path) -> None:
    (repository / "beta/1/model.onnx").write_bytes(tiny.linear_onnx(99))
    with serve(repository, FREE) as server:
        assert "SHA-256" in server.problems["beta"]
        assert_facts(server.problems["ensemble"], f"'beta' | {server.problems['beta']}")


def test_a_member_that_triton_refuses_is_the_reason_of_its_ensemble(repository: Path) -> None:
    without_digest(repository, "beta").write_bytes(b"this is no ONNX file")
    with serve(repository, FREE) as server:
        assert "cannot load" in server.problems["beta"]
        assert_facts(server.problems["ensemble"], f"'beta' | {server.problems['beta']}")


def test_a_reason_that_is_only_in_tritons_log_is_reported(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As where a rule is missing: judged for a container, which may have this agent.
    monkeypatch.setattr("defensemble_server.process.launch.target_from_runtime", lambda name: DOCKER)
    tiny.write_repository(repository, {"gamma": 3}, ensemble=None)
    with (repository / "gamma/config.pbtxt").open("a") as file:
        file.write('model_repository_agents { agents { name: "checksum" } }\n')
    with serve(repository, FREE) as server:
        assert "libtritonrepoagent_checksum.so" in server.problems["gamma"]


def test_a_newer_version_that_triton_refuses_is_named_with_its_remedy(repository: Path) -> None:
    tiny.write_second_version(repository, "beta", 7)
    without_digest(repository, "beta", 2).write_bytes(b"this is no ONNX file")
    with serve(repository, FREE) as server:
        assert server.problems["beta"].startswith("version 2: ")
        assert_facts(server.problems["beta"], f"version 1 | {repository}/beta/2")
        assert_facts(server.problems["ensemble"], f"'beta' | {server.problems['beta']}")
    (repository / "beta/2").rename(repository.parent / "out")
    with serve(repository, FREE) as server:
        assert server.problems == {}


def test_a_member_that_answers_no_numbers_is_the_reason_of_its_ensemble(repository: Path) -> None:
    without_digest(repository, "beta").write_bytes(tiny.linear_onnx(2, scale=np.nan))
    with serve(repository, FREE) as server:
        assert_facts(server.problems["beta"], "version 1 | not finite")
        assert_facts(server.problems["ensemble"], f"'beta' | {server.problems['beta']}")


def test_an_average_that_differs_from_its_configuration_is_not_served(repository: Path) -> None:
    from defensemble_export import average_onnx
    from defensemble_repository.ensemble import Ensemble, Member

    name = next(path.name for path in repository.iterdir() if path.name.startswith("average_"))
    file = without_digest(repository, name)
    file.write_bytes(average_onnx(Ensemble("e", (Member("alpha", 1, 9.0), Member("beta"))), 3))
    with serve(repository, FREE) as server:
        assert "differs by" in server.problems["ensemble"]
        assert_facts(server.problems["ensemble"], "average | probabilities")
        assert "ensemble" not in server.models
        answer = urllib3.request("POST", f"{server.http_url}/v2/models/ensemble/infer", json={"inputs": []})
        assert answer.status != 200, "it was unloaded"
        assert np.isfinite(ask(server, "alpha", tiny.images(1), "logits")).all()

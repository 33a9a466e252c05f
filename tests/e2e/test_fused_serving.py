"""A fused graph on a real Triton gives clients what its ensemble gives them, over both protocols, with and without the ensemble."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import urllib3

from defensemble import Client, GrpcTransport, HttpTransport, InputError, OutputRequest, Prediction, Transport
from defensemble_export import fuse_repository, fused_member, fused_onnx, planned_files, planned_fused_files, write_files
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.pbtxt import pbtxt_from_config
from defensemble_repository.reader import read_config
from defensemble_server import Server, serve
from tests.support import tiny
from tests.support.calls import FREE, ask
from tests.support.command_line import error_message, run, succeed
from tests.support.facts import assert_facts, raises

ALL = ("probabilities", "member_probabilities", "entropy", "mutual_information")
PAIR = Ensemble("ensemble", (Member("alpha"), Member("beta", 1, 3.0)))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `alpha` and `beta` (weights 1 and 3), their ensemble, and the fused graph of it."""
    folder = tiny.write_repository(tmp_path_factory.mktemp("both") / "repository", weight={"beta": 3.0})
    fuse_repository(folder, "ensemble", "fused")
    with serve(folder, FREE) as server:
        assert server.problems == {}
        yield server
    assert tiny.leftovers(folder) == []


@pytest.fixture(scope="module")
def fused_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the same fused graph only."""
    folder = tmp_path_factory.mktemp("fused-only") / "repository"
    members = [tiny.member("alpha", 1), tiny.member("beta", 2)]
    write_files(folder, planned_fused_files(folder, fused_member("fused", PAIR, members, None, max_batch_size=8), PAIR, max_batch_size=8))
    with serve(folder, FREE) as server:
        assert (server.models, server.problems) == (["fused"], {})
        yield server
    assert tiny.leftovers(folder) == []


def url_of(server: Server, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


def assert_same_predictions(first: Prediction, second: Prediction) -> None:
    assert first.class_names == second.class_names
    assert set(first.received) == set(second.received)
    for output, expected in first.received.items():
        got = second.received[output]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), output
        assert np.abs(got - expected).max() <= 1e-6, output
    if "probabilities" in first.received:
        assert first.labels == second.labels


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("outputs", [ALL, ("probabilities",), ("entropy",), ("mutual_information", "member_probabilities")])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_ensemble_and_fused_graph_return_the_same_predictions(both: Server, protocol: str, outputs: tuple[str, ...], count: int) -> None:
    batch = tiny.images(count, seed=count)
    with Client(url_of(both, protocol)) as client:
        pipeline, fused = (client.predict(batch, outputs=outputs, model=model) for model in ("ensemble", "fused"))
    assert_same_predictions(pipeline, fused)
    if "probabilities" in outputs:
        members = [tiny.softmax(tiny.logits(seed, batch)) for seed in (1, 2)]
        np.testing.assert_allclose(fused.probabilities, 0.25 * members[0] + 0.75 * members[1], atol=1e-6)
        assert fused.labels == [tiny.CLASSES[index] for index in fused.probabilities.argmax(1)]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_ensemble_and_fused_graph_have_the_same_description(both: Server, protocol: str) -> None:
    with Client(url_of(both, protocol)) as client:
        pipeline, fused = client.describe("ensemble"), client.describe("fused")
        assert [info.name for info in client.classifiers()][:2] == ["ensemble", "fused"], "ensembles first"
    for field in ("input_name", "image_shape", "outputs", "max_batch_size", "class_names", "score_output", "is_ensemble"):
        assert getattr(pipeline, field) == getattr(fused, field), field
    assert fused.is_ensemble
    assert fused.steps == ("alpha", "beta") == pipeline.steps[:2]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_classification_extension_names_the_classes(both: Server, protocol: str) -> None:
    transport: Transport = GrpcTransport(both.grpc_url) if protocol == "grpc" else HttpTransport(both.http_url)
    asked = [OutputRequest("probabilities", 3)]
    pipeline, fused = (transport.infer(model, {"images": tiny.images(2)}, asked, 10)["probabilities"] for model in ("ensemble", "fused"))
    transport.close()
    assert fused.shape == (2, 3)
    for one, other in zip(pipeline.ravel().tolist(), fused.ravel().tolist(), strict=True):
        assert one.split(b":")[1:] == other.split(b":")[1:]
        assert float(one.split(b":")[0]) == pytest.approx(float(other.split(b":")[0]), abs=1e-6)
    assert {text.split(b":")[2].decode() for text in fused.ravel().tolist()} == set(tiny.CLASSES)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_client_of_both_must_name_the_model(both: Server, protocol: str) -> None:
    with Client(url_of(both, protocol)) as client, raises(InputError, "2 ensembles | ensemble, fused"):
        client.predict(tiny.images(1))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_client_finds_a_fused_graph_without_its_ensemble(fused_only: Server, both: Server, protocol: str) -> None:
    batch = tiny.images(5)
    with Client(url_of(fused_only, protocol)) as client, Client(url_of(both, protocol), "ensemble") as other:
        client.wait_ready(10)
        assert client.describe().name == "fused"
        assert_same_predictions(other.predict(batch, outputs=ALL), client.predict(batch, outputs=ALL))


def test_predict_treats_a_fused_graph_as_an_ensemble(fused_only: Server, both: Server, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", tiny.images(3))
    outputs = []
    for url, more in ((fused_only.grpc_url, ()), (both.http_url, ("--model", "ensemble"))):
        outputs.append(
            succeed("predict", "--url", url, "x.npy", "--outputs", "probabilities,entropy,mutual_information", *more, cwd=tmp_path)
        )
    title, *rows = outputs[0].splitlines()
    assert title.strip() == "fused: 3 images"
    assert rows == outputs[1].splitlines()[1:]
    assert_facts(error_message(run("predict", "--url", both.grpc_url, "x.npy", cwd=tmp_path)), "2 ensembles | ensemble, fused")


def test_the_noise_probe_treats_a_fused_graph_as_an_ensemble(fused_only: Server, both: Server, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=tiny.images(6), labels=np.array([0, 1, 2, 0, 1, 2]))
    targets = []
    for server in (fused_only, both):
        succeed("probe", "noise", server.grpc_url, "--dataset", "data.npz", "--sigmas", "8", "--out", "noise.json", cwd=tmp_path)
        targets.append({target["name"]: target for target in json.loads((tmp_path / "noise.json").read_text())["targets"]})
    assert {name: target["role"] for name, target in targets[0].items()} == {"fused": "ensemble"}
    roles = {"ensemble": "ensemble", "fused": "ensemble", "alpha": "member", "beta": "member"}
    assert {name: target["role"] for name, target in targets[1].items()} == roles
    assert targets[1]["fused"]["members"] == targets[1]["ensemble"]["members"] == ["alpha", "beta"]
    assert targets[0]["fused"]["clean"] == targets[1]["fused"]["clean"] == targets[1]["ensemble"]["clean"]


def test_a_fused_graph_has_the_max_batch_size_of_its_ensemble(both: Server) -> None:
    with Client(both.grpc_url) as client:
        for model in ("ensemble", "fused"):
            assert client.describe(model).max_batch_size == 8
            assert len(client.predict(tiny.images(9), model=model)) == 9  # in two requests


def load(server: Server, model: str) -> None:
    answer = urllib3.request(
        "POST", f"{server.http_url}/v2/repository/models/{model}/load", json={}, headers={"x-admin-key": server.state.admin_key}
    )
    assert answer.status == 200, answer.data


def test_the_next_version_of_a_fused_graph_loads_under_load(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "repository")
    fuse_repository(folder, "ensemble", "fused")
    batch = tiny.images(4)
    old, new = ([0.5, 0.5], (1, 2)), ([1 / 3, 1 / 3, 1 / 3], (1, 2, 3))
    expected = [
        sum(weight * tiny.softmax(tiny.logits(seed, batch)) for weight, seed in zip(weights, seeds, strict=True))
        for weights, seeds in (old, new)
    ]
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    answers: list[tiny.Array] = []
    failures: list[Exception] = []
    done = threading.Event()
    with serve(folder, FREE) as server, Client(server.grpc_url, "fused") as client:

        def call() -> None:
            try:
                while not done.is_set():
                    answers.append(client.predict(batch).probabilities)
            except Exception as error:
                failures.append(error)

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            write_files(folder, planned_files(folder, [tiny.member("gamma", 3)], replace=True))
            fuse_repository(folder, "ensemble", "fused", replace=True)
            load(server, "fused")
            np.testing.assert_allclose(client.predict(batch).probabilities, expected[1], atol=1e-6)
        finally:
            done.set()
            for caller in callers:
                caller.join()
        assert failures == []
        kinds = [min((np.abs(answer - right).max(), kind) for kind, right in enumerate(expected)) for answer in answers]
        assert max(difference for difference, _ in kinds) <= 1e-6, "each answer comes from the old or the new graph"
        assert kinds[0][1] == 0
    with serve(folder, FREE) as server:
        assert server.problems == {}


# Checks at the start of a server


def set_parameter(folder: Path, key: str, value: str) -> None:
    config = read_config(folder / "fused")
    config.parameters[key].string_value = value
    (folder / "fused/config.pbtxt").write_bytes(pbtxt_from_config(config))


@pytest.mark.parametrize(
    ("key", "value", "facts"),
    [
        (
            "weights",
            "[1, 1]",
            "average | probabilities | alpha@1, beta@1",
        ),
        ("member_digests", "[]", "member_digests | 'fused' | JSON list | 2"),
        ("member_digests", "all", "member_digests | 'fused' | JSON list | 2 | 'all'"),
        ("weights", "[1]", "weights | 'fused' | 2 finite numbers | above 0"),
        ("weights", "all", "weights | 'fused' | JSON list | 'all'"),
        ("average", "votes", "average | 'fused' | probabilities, logits | 'votes'"),
        ("members", "alpha", "members | 'fused' | JSON list | \"NAME@VERSION\" | 'alpha'"),
        ("members", "[1, 2]", "JSON list"),
    ],
)
def test_parameters_that_do_not_describe_the_graph_are_problems(tmp_path: Path, key: str, value: str, facts: str) -> None:
    folder = tiny.write_repository(tmp_path / "repository", weight={"beta": 3.0})
    fuse_repository(folder, "ensemble", "fused")
    set_parameter(folder, key, value)
    with serve(folder, FREE) as server:
        assert list(server.problems) == ["fused"]
        assert np.isfinite(ask(server, "ensemble", tiny.images(1), "probabilities")).all(), "the other models are served"
        assert_facts(server.problems["fused"], facts)


def test_a_fused_graph_is_compared_with_its_own_members_only(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "repository", {"alpha": 7, "beta": 8}, ensemble=None)
    members = [tiny.member("alpha", 1), tiny.member("beta", 2)]
    write_files(folder, planned_fused_files(folder, fused_member("fused", PAIR, members, None, max_batch_size=8), PAIR, max_batch_size=8))
    with serve(folder, FREE) as server:
        assert server.problems == {}
    config = read_config(folder / "fused")
    del config.parameters["member_digests"]  # without digests, members are known by name only
    (folder / "fused/config.pbtxt").write_bytes(pbtxt_from_config(config))
    with serve(folder, FREE) as server:
        assert server.problems["fused"].startswith("it differs by ")


def test_a_graph_whose_answers_are_no_probabilities_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    members = [tiny.member("alpha", 1), tiny.member("beta", 2, onnx=tiny.linear_onnx(2, scale=np.nan))]
    good = fused_member("fused", PAIR, [tiny.member("alpha", 1), tiny.member("beta", 2)], None, max_batch_size=8)
    plan = planned_fused_files(folder, good, PAIR, max_batch_size=8)
    plan["fused/1/model.onnx"] = fused_onnx([member.onnx for member in members], PAIR)
    write_files(folder, plan)
    config = read_config(folder / "fused")
    del config.parameters["sha256.1"]
    (folder / "fused/config.pbtxt").write_bytes(pbtxt_from_config(config))
    write_files(folder, planned_files(folder, [tiny.member("gamma", 3)], ensemble=None))
    with serve(folder, FREE) as server:
        assert list(server.problems) == ["fused"]
        assert_facts(server.problems["fused"], "nan to nan | sum nan")


def test_a_changed_file_is_found_by_its_digest(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "repository")
    fuse_repository(folder, "ensemble", "fused")
    (folder / "fused/1/model.onnx").write_bytes(tiny.linear_onnx(1))
    with serve(folder, FREE) as server:
        assert_facts(server.problems["fused"], "changed | damaged")
        assert "ensemble" in server.models

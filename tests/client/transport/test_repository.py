"""Calls for editing the served repository, against a real Triton over both protocols and against the fake."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defensemble import (
    Client,
    FakeTransport,
    ForbiddenError,
    GrpcTransport,
    HttpTransport,
    InputError,
    ModelNotFoundError,
    ModelState,
    ModelStatistics,
    OutputRequest,
    RequestRefusedError,
    ServerFailedError,
    Transport,
)
from defensemble._transport.base import ConnectionOptions
from tests.support.facts import raises
from tests.support.fakes import ensemble, member
from tests.support.tiny import content, edit_config, images, leftovers, logits, write_repository, write_second_version

if TYPE_CHECKING:
    from defensemble_server import Server

KEY = "the-key-of-the-tests-0123456789"
WRONG_KEY = "another-key-0123456789"
LOGITS = [OutputRequest("logits")]
FIX_FACTS = "admin_key= | --admin-key-file"


def serving(folder: Path) -> Iterator[Server]:
    from defensemble_server import ServeOptions, serve

    with serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1, admin_key=KEY)) as server:
        yield server
    assert leftovers(folder) == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two versions of `alpha`, `beta`, and an ensemble of `alpha` 1 and `beta`."""
    folder = write_repository(tmp_path_factory.mktemp("edited") / "repository")
    write_second_version(folder, "alpha", 5)
    yield from serving(folder)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that also restricts configurations, and was started without explicit model control."""
    from defensemble_server.admin_key import RESTRICTED_APIS
    from defensemble_server.command import triton_command
    from defensemble_server.process import launch

    folder = write_repository(tmp_path_factory.mktemp("closed") / "repository")

    def command(*arguments: Any, **named: Any) -> list[str]:
        lines = triton_command(*arguments, **named)
        kept = [line for line in lines if not line.startswith("--load-model=")]
        return [line.replace("--model-control-mode=explicit", "--model-control-mode=none") for line in kept]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defensemble_server.command.RESTRICTED_APIS", (*RESTRICTED_APIS, "model-config"))
        patch.setattr(launch, "triton_command", command)
        yield from serving(folder)


@pytest.fixture
def folder(server: Server) -> Iterator[Path]:
    """The served repository. Changes of a test are undone, and everything is served again."""
    folder = Path(server.state.repository)
    before = content(folder)
    yield folder
    for name in content(folder).keys() - before.keys():
        if (folder / name).is_dir() and "/" not in name:
            shutil.rmtree(folder / name)
    for name, written in before.items():
        if written is not None and (folder / name).read_bytes() != written:
            (folder / name).write_bytes(written)
    transport = HttpTransport(server.http_url, ConnectionOptions(admin_key=KEY))
    for name in ("alpha", "beta", "ensemble"):
        transport.load_model(name, 20)
    assert {state.state for state in transport.repository_index(20) if (folder / state.name).exists()} == {"READY"}
    transport.close()


def transport_to(server: Server, kind: str, admin_key: str | None = KEY) -> Transport:
    return (
        GrpcTransport(server.grpc_url, ConnectionOptions(admin_key=admin_key))
        if kind == "grpc"
        else HttpTransport(server.http_url, ConnectionOptions(admin_key=admin_key))
    )


@pytest.fixture(params=["grpc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def editor(kind: str, server: Server) -> Iterator[Transport]:
    transport = transport_to(server, kind)
    yield transport
    transport.close()


@pytest.fixture(params=["grpc", "http", "fake"])
def either(request: pytest.FixtureRequest) -> Iterator[Transport]:
    """An admin transport to `alpha`, `beta` and their ensemble, on a server or fake."""
    if request.param == "fake":
        yield FakeTransport({"alpha": member(1), "beta": member(2), "ensemble": ensemble()})
    else:
        request.getfixturevalue("folder")  # serves everything again
        transport = transport_to(request.getfixturevalue("server"), request.param)
        yield transport
        transport.close()


def infer(transport: Transport, model: str = "beta", version: int | None = None, count: int = 2) -> NDArray[Any]:
    return transport.infer(model, {"images": images(count)}, LOGITS, 20, version)["logits"]


def settled_index(transport: Transport) -> list[ModelState]:
    """Return the index once no model is loading or unloading: an unload finishes after its call, with the last request."""
    deadline = time.monotonic() + 20
    while True:
        index = transport.repository_index(20)
        if not any(state.state in ("LOADING", "UNLOADING") for state in index):
            return index
        assert time.monotonic() < deadline, index


def states(transport: Transport) -> dict[str, tuple[str, str]]:
    return {state.name: (state.state, state.reason) for state in settled_index(transport) if state.name in ("alpha", "beta", "ensemble")}


def statistics_of(transport: Transport, model: str = "beta", version: int = 1) -> ModelStatistics:
    (statistics,) = [entry for entry in transport.statistics(20) if (entry.name, entry.version) == (model, version)]
    return statistics


def admin_calls(transport: Transport) -> list[Callable[[], object]]:
    return [
        lambda: transport.repository_index(20),
        lambda: transport.load_model("beta", 20),
        lambda: transport.unload_model("beta", 20),
    ]


def test_the_index_lists_loaded_and_unloaded_models(editor: Transport, folder: Path, kind: str) -> None:
    new = f"new-{kind}"
    shutil.copytree(folder / "beta", folder / new)
    edit_config(folder, new, name=new)
    listed = [state for state in editor.repository_index(20) if "_" not in state.name and (folder / state.name).exists()]
    assert listed == [
        ModelState("alpha", 1, "READY", ""),
        ModelState("alpha", 2, "READY", ""),
        ModelState("beta", 1, "READY", ""),
        ModelState("ensemble", 1, "READY", ""),
        ModelState(new, None, "", ""),
    ]
    assert new not in editor.models(20)
    editor.load_model(new, 20)
    np.testing.assert_allclose(infer(editor, new), logits(2, images(2)), atol=1e-5)
    editor.unload_model(new, 20)
    assert ModelState(new, 1, "UNAVAILABLE", "unloaded") in settled_index(editor)


def test_an_unloaded_model_is_not_found_until_it_is_loaded_again(either: Transport) -> None:
    ready, gone = ("READY", ""), ("UNAVAILABLE", "unloaded")
    assert states(either) == {"alpha": ready, "beta": ready, "ensemble": ready}
    infer(either)
    either.unload_model("beta", 20)
    either.unload_model("beta", 20)
    assert states(either) == {"alpha": ready, "beta": gone, "ensemble": gone}
    assert {"alpha", "beta", "ensemble"} & set(either.models(20)) == {"alpha"}
    calls: list[Callable[[], object]] = [
        lambda: infer(either),
        lambda: either.model_metadata("beta", 20),
        lambda: either.model_config("beta", 20),
        lambda: either.model_metadata("ensemble", 20),
    ]
    for call in calls:
        with pytest.raises(ModelNotFoundError, match="has no available versions"):
            call()
    either.load_model("beta", 20)
    assert states(either) == {"alpha": ready, "beta": ready, "ensemble": ready}
    assert statistics_of(either) == ModelStatistics("beta", 1, 0, 0, 0)
    np.testing.assert_allclose(infer(either), logits(2, images(2)), atol=1e-5)


def test_loading_an_ensemble_loads_its_members_and_unloading_keeps_them(either: Transport) -> None:
    either.unload_model("ensemble", 20)
    assert states(either)["beta"] == ("READY", "")
    either.unload_model("beta", 20)
    either.load_model("ensemble", 20)
    assert set(states(either).values()) == {("READY", "")}


def test_reloading_an_unchanged_model_keeps_its_statistics(either: Transport) -> None:
    infer(either)
    before = statistics_of(either)
    either.load_model("beta", 20)
    assert statistics_of(either) == before


def test_statistics_count_valid_requests(either: Transport) -> None:
    started_ms = time.time_ns() // 1_000_000
    before = statistics_of(either)
    for _ in range(3):
        infer(either)
    after = statistics_of(either)
    assert (after.requests - before.requests, after.executions - before.executions) == (3, 3)
    assert started_ms <= after.last_ms <= time.time_ns() // 1_000_000
    with pytest.raises(RequestRefusedError, match="batch-size must be <= 8"):
        infer(either, count=9)
    assert statistics_of(either) == after


def test_a_version_can_be_run_and_described(editor: Transport) -> None:
    for version, seed in ((1, 1), (2, 5), (None, 5)):
        np.testing.assert_allclose(infer(editor, "alpha", version), logits(seed, images(2)), atol=1e-5)
        assert editor.model_config("alpha", 20, version)["max_batch_size"] == 8
    assert statistics_of(editor, "alpha", 2).requests >= 2


@pytest.mark.parametrize("version", [2, 9])
def test_a_missing_version_is_not_found(either: Transport, version: int) -> None:
    calls: list[Callable[[], object]] = [
        lambda: infer(either, "beta", version),
        lambda: either.model_config("beta", 20, version),
    ]
    for call in calls:
        with pytest.raises(ModelNotFoundError, match=f"'beta' version {version} is not found"):
            call()


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0])
def test_an_invalid_version_is_rejected(either: Transport, version: int) -> None:
    with raises(InputError, "version | 1 or more | None"):
        infer(either, "beta", version)
    with raises(InputError, "version | 1 or more | None"):
        either.model_config("beta", 20, version)


@pytest.mark.parametrize(("key", "facts"), [(None, "No admin key"), (WRONG_KEY, "admin key | not the server's")])
def test_without_the_key_only_the_repository_api_is_forbidden(server: Server, kind: str, key: str | None, facts: str) -> None:
    transport = transport_to(server, kind, key)
    for call in admin_calls(transport):
        with raises(ForbiddenError, f"restricted | {facts} | {FIX_FACTS}") as caught:
            call()
        assert WRONG_KEY not in f"{caught.value!r} {caught.value}"
    assert transport.live(20)
    assert transport.ready(20)
    assert statistics_of(transport).name == "beta"
    assert {"alpha", "beta", "ensemble"} < set(transport.models(20))
    np.testing.assert_allclose(infer(transport), logits(2, images(2)), atol=1e-5)
    transport.close()
    with Client(server.grpc_url if kind == "grpc" else server.http_url, "ensemble", admin_key=key) as client:
        assert client.predict(images(2)).probabilities.shape == (2, 3)


@pytest.mark.parametrize(("key", "facts"), [(None, "No admin key"), (WRONG_KEY, "admin key | not the server's")])
def test_restricted_configurations_require_the_key(closed: Server, kind: str, key: str | None, facts: str) -> None:
    transport = transport_to(closed, kind, key)
    for version in (None, 1):
        with raises(ForbiddenError, f"configuration | 'beta' | restricted | {facts} | {FIX_FACTS}"):
            transport.model_config("beta", 20, version)
    transport.close()
    with Client(closed.grpc_url if kind == "grpc" else closed.http_url, admin_key=key) as client:
        assert client.describe().max_batch_size is None
    with Client(closed.grpc_url if kind == "grpc" else closed.http_url, admin_key=KEY) as client:
        assert client.describe().max_batch_size == 8
        assert client.transport.model_config("beta", client.timeout_s, 1)["max_batch_size"] == 8


def test_a_server_without_explicit_model_control_rejects_loading(closed: Server, kind: str) -> None:
    transport = transport_to(closed, kind)
    for change in (transport.load_model, transport.unload_model):
        with pytest.raises(RequestRefusedError, match="--model-control-mode=explicit"):
            change("beta", 20)
    assert set(states(transport).values()) == {("READY", "")}
    transport.close()
    keyless = transport_to(closed, kind, None)
    for call in admin_calls(keyless):
        with pytest.raises(ForbiddenError, match="No admin key"):
            call()
    keyless.close()


def test_a_rejected_member_quotes_triton_and_the_old_version_keeps_serving(editor: Transport, folder: Path) -> None:
    config = folder / "beta/config.pbtxt"
    written = config.read_bytes()
    config.write_bytes(written.replace(b"logits", b"wrong_name"))
    facts = "'wrong_name' | 'logits'"
    with raises(RequestRefusedError, f"'beta' | {facts}"):
        editor.load_model("beta", 20)
    config.write_bytes(b"nonsense {")
    with raises(ServerFailedError, "'beta' | log"):
        editor.load_model("beta", 20)
    np.testing.assert_allclose(infer(editor), logits(2, images(2)), atol=1e-5)


def test_loading_a_model_that_is_not_in_the_repository_fails(either: Transport) -> None:
    refused = RequestRefusedError if isinstance(either, FakeTransport) else ServerFailedError  # core 2.51 returns INTERNAL
    with pytest.raises(refused, match="failed to load 'nope'"):
        either.load_model("nope", 20)
    either.unload_model("nope", 20)


def test_a_rejected_ensemble_is_out_of_service_although_a_second_load_succeeds(editor: Transport, folder: Path) -> None:
    # Editors must expect this of Triton: only the index shows it.
    edit_config(folder, "ensemble", max_batch_size=99)
    with raises(RequestRefusedError, "99 | alpha"):
        editor.load_model("ensemble", 20)
    assert states(editor)["ensemble"] == ("UNAVAILABLE", "unloaded")
    editor.load_model("ensemble", 20)
    assert states(editor)["ensemble"] == ("UNAVAILABLE", "unloaded")

"""Where a server listens, and who may do what."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import urllib3
from tritonclient.utils import InferenceServerException

from defensemble_server import PortError, ServeOptions, Server, ServerError, serve
from defensemble_server.doctor.diagnose import WARN, diagnose
from defensemble_server.process.state import find_state
from tests.support import tiny
from tests.support.calls import FREE, ask, listening_ports
from tests.support.facts import raises


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/alpha/unload", "/v2/logging", "/v2/trace/setting"])
def test_editing_apis_need_the_admin_key(triton: Server, path: str) -> None:
    assert urllib3.request("POST", triton.http_url + path, json={}).status == 403


def test_shared_memory_needs_the_admin_key_and_configurations_do_not(triton: Server) -> None:
    assert urllib3.request("GET", f"{triton.http_url}/v2/systemsharedmemory/status").status == 403
    key = {"x-admin-key": triton.state.admin_key}
    assert urllib3.request("POST", f"{triton.http_url}/v2/repository/index", json={}, headers=key).status == 200
    config = urllib3.request("GET", f"{triton.http_url}/v2/models/alpha/config").json()
    assert config["max_batch_size"] == 8


def test_editing_over_grpc_needs_the_admin_key_under_the_name_that_triton_wants_there(triton: Server) -> None:
    with tritonclient.grpc.InferenceServerClient(triton.grpc_url.removeprefix("grpc://")) as client:
        for headers in ({}, {"x-admin-key": triton.state.admin_key}, {"triton-grpc-protocol-x-admin-key": "0123456789abcdef"}):
            for call in (client.get_model_repository_index, client.get_system_shared_memory_status, client.get_log_settings):
                with pytest.raises(InferenceServerException, match="This protocol is restricted") as caught:
                    call(headers=headers)
                assert caught.value.status() == "StatusCode.UNAVAILABLE"
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                client.unload_model("alpha", headers=headers)
        index = client.get_model_repository_index(headers={"triton-grpc-protocol-x-admin-key": triton.state.admin_key})
        assert {"alpha", "ensemble"} <= {model.name for model in index.models}
        assert client.get_model_config("alpha").config.max_batch_size == 8


def test_it_listens_only_on_its_three_ports(triton: Server) -> None:
    # SageMaker's and Vertex AI's front ends would have ports of their own.
    assert listening_ports(triton.triton_pid) == {triton.state.http_port, triton.state.grpc_port, triton.state.metrics_port}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "::1", "::", "0.0.0.0"])
def test_a_host_is_listened_on_over_both_protocols_and_for_metrics(repository: Path, host: str) -> None:
    if ":" in host and not ipv6_here():
        pytest.skip("this machine has no IPv6")
    with serve(repository, replace(FREE, host=host, expose_outdated_server=True), start_timeout_s=30) as server:
        assert find_state(server.state.grpc_port).host in {"localhost": ("127.0.0.1", "::1")}.get(host, (host,))
        images = tiny.images(2)
        expected = ask(server, "alpha", images, "logits")
        with tritonclient.grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
            given = tritonclient.grpc.InferInput("images", list(images.shape), "FP32")
            given.set_data_from_numpy(images)
            assert np.abs(client.infer("alpha", [given]).as_numpy("logits") - expected).max() < 1e-6
        assert b"nv_inference" in urllib3.request("GET", server.metrics_url).data
        (check,) = [check for check in diagnose([]) if check.name == f"server {server.state.grpc_port}" and check.text.startswith("core")]
        assert check.status == WARN


def ipv6_here() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_taken_port_is_named(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            raises(PortError, f"grpc port {port} | 127.0.0.1 | --grpc-port"),
            serve(repository, ServeOptions(http_port=0, grpc_port=port, metrics_port=0)),
        ):
            pytest.fail("it must not start")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_the_old_core_refuses_a_public_address(host: str) -> None:
    with pytest.raises(PortError, match="--expose-outdated-server"):
        ServeOptions(host=host)
    assert ServeOptions(host=host, expose_outdated_server=True).host == host


@pytest.mark.parametrize("key", ["short", "with space in the middle of it", "x" * 300, "quite-long-but,with=signs"])
def test_admin_keys_that_triton_would_misread_are_refused_without_showing_them(key: str) -> None:
    with pytest.raises(ServerError) as caught:
        ServeOptions(admin_key=key)
    assert key not in str(caught.value)

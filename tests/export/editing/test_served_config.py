"""Comparison of configurations on a real server with the files on disk."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format, text_format

from defensemble import Client
from defensemble_export import planned_files, write_files, write_profile
from defensemble_export.editing.served_config import config_from_server, is_served_as_on_disk
from defensemble_repository.errors import ConfigError
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.view import RepositoryView
from tests.support import tiny

if TYPE_CHECKING:
    from defensemble_server import Server


def loaded_configs(server: Server) -> dict[str, dict[str, Any]]:
    """Return the configurations of all loaded models; both protocols must give the same."""
    loaded: dict[str, dict[str, Any]] = {}
    for url in (server.grpc_url, server.http_url):
        with Client(url, admin_key=server.state.admin_key) as client:
            for model in client.models():
                config = client.transport.model_config(model, 20)
                assert config_from_server(config) == config_from_server(loaded.setdefault(model, config))
    return loaded


@pytest.fixture(scope="module")
def loaded(triton: Server) -> tuple[Path, dict[str, dict[str, Any]]]:
    return Path(triton.state.repository), loaded_configs(triton)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, dict[str, Any]]]]:
    """A server started with a profile that differs from `config.pbtxt`."""
    from defensemble_server import ServeOptions, serve

    folder = tiny.write_repository(tmp_path_factory.mktemp("profiled") / "repository")
    write_profile(folder, "cpu")
    path = folder / "alpha/configs/cpu.pbtxt"
    config = config_from_pbtxt(path.read_text(), "alpha")
    config.parameters["intra_op_thread_count"].string_value = "1"
    path.write_bytes(pbtxt_from_config(config))
    with serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1, profile="cpu")) as server:
        yield folder, loaded_configs(server)


def test_loaded_models_are_served_as_on_disk(loaded: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, configs = loaded
    assert set(configs) == {"alpha", "beta", "ensemble", *(entry.name for entry in folder.iterdir() if "_" in entry.name)}
    for model, config in configs.items():
        assert is_served_as_on_disk(RepositoryView(folder), model, config), model


def test_a_profile_counts_as_on_disk(profiled: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, configs = profiled
    assert configs["alpha"]["parameters"]["intra_op_thread_count"]["string_value"] == "1"
    for model, config in configs.items():
        assert is_served_as_on_disk(RepositoryView(folder), model, config), model
    content = (folder / "alpha/configs/cpu.pbtxt").read_bytes()
    other = RepositoryView(folder, {"alpha/configs/cpu.pbtxt": content.replace(b'"1"', b'"2"')})
    assert not is_served_as_on_disk(other, "alpha", configs["alpha"]), "neither the profile nor config.pbtxt has this"


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("alpha", "max_batch_size: 8 -> max_batch_size: 4"),
        ("alpha", "dims: 3 -> dims: 4"),
        ("alpha", 'key: "mask_digest.1" -> key: "mask_digest.2"'),
        ("alpha", 'string_value: "masks-1" -> string_value: "masks-2"'),
        ("alpha", "version_policy -> instance_group { count: 2 kind: KIND_CPU } version_policy"),
        ("alpha", "version_policy -> parameters { key: 'x' value { string_value: 'y' } } version_policy"),
        ("ensemble", "model_version: 1 -> model_version: 2"),
        ("ensemble", 'model_name: "alpha" -> model_name: "gamma"'),
        ("ensemble", "max_batch_size: 8 -> max_batch_size: 7"),
    ],
)
def test_a_changed_file_is_not_served(loaded: tuple[Path, dict[str, dict[str, Any]]], model: str, change: str) -> None:
    folder, configs = loaded
    old, new = change.split(" -> ")
    text = (folder / model / "config.pbtxt").read_text()
    assert old in text
    changed = RepositoryView(folder, {f"{model}/config.pbtxt": text.replace(old, new, 1).encode()})
    assert not is_served_as_on_disk(changed, model, configs[model])


@pytest.mark.parametrize(
    "added",
    [
        "parameters { key: 'x' value { string_value: 'y' } }",
        "model_warmup { name: 'w' batch_size: 1 }",
        "response_cache { enable: true }",
        "dynamic_batching { max_queue_delay_microseconds: 100 }",
        "dynamic_batching { default_queue_policy { max_queue_size: 9 } }",
    ],
)
def test_a_removed_field_is_still_served(loaded: tuple[Path, dict[str, dict[str, Any]]], added: str) -> None:
    folder, configs = loaded
    served = config_from_server(configs["beta"])
    text_format.Merge(added, served)
    before = json_format.MessageToDict(served, preserving_proto_field_name=True)
    assert config_from_server(before) == served
    bare = config_from_pbtxt((folder / "beta/config.pbtxt").read_text(), "beta")
    bare.ClearField("parameters")
    if "parameters" not in added:
        before.pop("parameters")
    else:
        assert not is_served_as_on_disk(RepositoryView(folder, {"beta/config.pbtxt": pbtxt_from_config(bare)}), "beta", configs["beta"])
    assert not is_served_as_on_disk(RepositoryView(folder, {"beta/config.pbtxt": pbtxt_from_config(bare)}), "beta", before)
    text_format.Merge(added, bare)
    if "parameters" not in added:
        assert is_served_as_on_disk(RepositoryView(folder, {"beta/config.pbtxt": pbtxt_from_config(bare)}), "beta", before)


def test_a_removed_output_is_still_served(loaded: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, configs = loaded
    config = config_from_pbtxt((folder / "ensemble/config.pbtxt").read_text(), "ensemble")
    del config.output[-1]
    changed = RepositoryView(folder, {"ensemble/config.pbtxt": pbtxt_from_config(config)})
    assert not is_served_as_on_disk(changed, "ensemble", configs["ensemble"])


def test_comments_and_default_values_do_not_count(loaded: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, configs = loaded
    text = (folder / "alpha/config.pbtxt").read_bytes()
    assert is_served_as_on_disk(RepositoryView(folder, {"alpha/config.pbtxt": b"# a comment\n\n" + text}), "alpha", configs["alpha"])
    without = text.replace(b'name: "alpha"\n', b"", 1)
    assert without != text
    assert is_served_as_on_disk(RepositoryView(folder, {"alpha/config.pbtxt": without}), "alpha", configs["alpha"])


def test_an_added_version_differs_by_its_digest(tmp_path: Path, loaded: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, configs = tiny.write_repository(tmp_path / "place" / "repository"), loaded[1]
    assert is_served_as_on_disk(RepositoryView(folder), "alpha", configs["alpha"])
    write_files(folder, planned_files(folder, [tiny.member("alpha", 9)], ensemble=None, replace=True))
    assert not is_served_as_on_disk(RepositoryView(folder), "alpha", configs["alpha"])


def test_reports_unreadable_configurations(loaded: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, configs = loaded
    broken = RepositoryView(folder, {"alpha/config.pbtxt": b"name: alpha {"})
    with pytest.raises(ConfigError, match=r"alpha/config.pbtxt: not a valid model configuration"):
        is_served_as_on_disk(broken, "alpha", configs["alpha"])
    newer = copy.deepcopy(configs["alpha"]) | {"a_field_of_a_newer_server": {"x": 1}}
    assert is_served_as_on_disk(RepositoryView(folder), "alpha", newer)
    with pytest.raises(ConfigError, match="the server's configuration of 'alpha' cannot be read: "):
        config_from_server({"name": "alpha", "max_batch_size": "many"})
    assert not is_served_as_on_disk(RepositoryView(folder), "not-there", configs["alpha"])

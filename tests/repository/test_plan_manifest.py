"""The manifest of a TensorRT plan: written, read back, and rejected if it is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from defensemble_repository.errors import ManifestError
from defensemble_repository.names import MANIFEST_FILE
from defensemble_repository.plan_manifest import Manifest, OptimizationProfile, manifest_from_bytes, read_manifest
from tests.support.facts import raises

MANIFEST = Manifest(
    tensorrt="10.13.3.9",
    gpu="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
    driver="570.124.06",
    onnx_sha256="a" * 64,
    plan_sha256="b" * 64,
    profile=OptimizationProfile((1, 3, 32, 32), (16, 3, 32, 32), (64, 3, 32, 32)),
    precision="fp16",
    version_compatible=False,
    hardware_compatible=True,
    builder_level=3,
    workspace_bytes=None,
    build_s=12.5,
    date="2026-11-25T12:00:00+00:00",
)


def test_a_manifest_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST_FILE
    assert read_manifest(path) is None
    path.write_bytes(MANIFEST.to_bytes())
    assert read_manifest(path) == MANIFEST


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 200_000], ids=["empty", "open", "bytes", "list", "nested"])
def test_a_manifest_must_be_a_json_object(content: bytes) -> None:
    with pytest.raises(ManifestError, match=r"^model.plan.json "):
        manifest_from_bytes(content, "model.plan.json")


versions = st.lists(st.integers(0, 99), min_size=2, max_size=4).map(lambda parts: ".".join(map(str, parts)))
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
batches = st.lists(st.integers(1, 4096), min_size=3, max_size=3).map(sorted)


@given(versions, st.text(min_size=1), digests, batches, st.integers(1) | st.none(), st.booleans())
def test_every_manifest_is_read_back(
    version: str, gpu: str, digest: str, batch: list[int], workspace: int | None, version_compatible: bool
) -> None:
    manifest = msgspec.structs.replace(
        MANIFEST,
        tensorrt=version,
        gpu=gpu,
        onnx_sha256=digest,
        profile=OptimizationProfile(*((size, 1, 2, 3) for size in batch)),
        workspace_bytes=workspace,
        version_compatible=version_compatible,
    )
    assert manifest_from_bytes(manifest.to_bytes(), "model.plan.json") == manifest


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(MANIFEST.to_bytes()) | changes).encode()


def without(name: str) -> bytes:
    values = json.loads(MANIFEST.to_bytes())
    del values[name]
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", "line 1 column 1"),
        (MANIFEST.to_bytes()[:-20], "line 35 column 11"),
        (b"[]", "[]"),
        (without("schema"), "schema | None | 'defensemble.plan/1'"),
        (changed(schema="defensemble.plan/2"), "schema | 'defensemble.plan/2' | 'defensemble.plan/1'"),
        (without("driver"), "missing | driver"),
        (changed(more=1), "unknown | more"),
        (changed(tensorrt="ten"), "tensorrt | 'ten'"),
        (changed(plan_sha256="b" * 63), f"plan_sha256 | 64 | '{'b' * 63}'"),
        (changed(gpu=7), "gpu | str | 7"),
        (changed(version_compatible=1), "version_compatible | bool | 1"),
        (changed(builder_level=True), "builder_level | int | True"),
        (changed(build_s=float("nan")), "NaN"),
        (changed(profile={"min": [1, 3, 32, 32]}), "profile | opt"),
        (changed(profile=json.loads(MANIFEST.to_bytes())["profile"] | {"more": [1]}), "profile | more"),
        (changed(profile=[1, 2, 3]), "profile | 1, 2, 3"),
        (changed(profile={"min": [2, 3, 32, 32], "opt": [1, 3, 32, 32], "max": [4, 3, 32, 32]}), "2 | 1 | 4"),
        (changed(profile={"min": [1, 3, 32, 32], "opt": [1, 3, 32, 16], "max": [4, 3, 32, 32]}), "first"),
        (
            changed(profile={"min": [1, 3, 32], "opt": [1, 3, 32], "max": [4, 3, 32]}),
            "(N, C, H, W) | above 0 | [1, 3, 32]",
        ),
    ],
)
def test_a_damaged_manifest_states_the_problem(content: bytes, facts: str) -> None:
    with raises(ManifestError, facts) as caught:
        manifest_from_bytes(content, "folder/model.plan.json")
    assert str(caught.value).startswith("folder/model.plan.json ")
    assert "--force" in str(caught.value)

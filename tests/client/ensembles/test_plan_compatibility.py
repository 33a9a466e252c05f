"""TensorRT plans of an edit are compared with the plans that the server already runs."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from defensemble import Client, FakeModel, FakeTransport
from defensemble.ensembles import EditRefusedError, Ensembles
from defensemble_export import planned_files, write_files, write_profile
from defensemble_repository.pbtxt import config_from_pbtxt
from tests.support import tiny
from tests.support.facts import assert_facts
from tests.support.fakes import ensemble, member
from tests.support.tiny import content

BUILT_WITH = {
    "schema": "defensemble.plan/1",
    "tensorrt": "10.13.3.9",
    "gpu": "NVIDIA H100 80GB HBM3",
    "compute_capability": "9.0",
    "driver": "570.124.06",
    "profile": {name: [size, *tiny.SHAPE] for name, size in (("min", 1), ("opt", 8), ("max", 8))},
    "precision": "fp16",
    "version_compatible": False,
    "hardware_compatible": False,
    "builder_level": 3,
    "workspace_bytes": None,
    "build_s": 12.5,
    "date": "2026-11-25T12:00:00+00:00",
}


class Serving(FakeTransport):
    """A server of a folder, started with `profile`; its configurations are those of the files at that time."""

    def __init__(self, folder: Path, loaded: list[str], profile: str) -> None:
        (average,) = (entry.name for entry in folder.iterdir() if "_" in entry.name)

        def nothing(images: tiny.Array) -> dict[str, tiny.Array]:
            return {"probabilities": np.zeros((len(images), 3), np.float32)}

        models = {name: member(1) for name in loaded} | {average: FakeModel(nothing, tiny.SHAPE)}
        super().__init__(models | {"ensemble": ensemble(steps=(*loaded, average))}, "fake://gpu")
        self.loads: list[str] = []
        self._configs = {}
        for name in (*loaded, average, "ensemble"):
            path = folder / name / "configs" / f"{profile}.pbtxt"
            text = (path if path.exists() else folder / name / "config.pbtxt").read_text()
            self._configs[name] = MessageToDict(config_from_pbtxt(text, name), preserving_proto_field_name=True)

    def load_model(self, model: str, timeout_s: float) -> None:
        self.loads.append(model)
        super().load_model(model, timeout_s)

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        super().model_config(model, timeout_s, version)
        return self._configs[model]


def build(folder: Path, model: str, **changes: object) -> None:
    """Write a fake plan of a member, and its manifest."""
    version_folder = folder / model / "1"
    (version_folder / "model.plan").write_bytes(f"plan of {model}".encode())
    digests = {f"{kind}_sha256": sha256((version_folder / f"model.{kind}").read_bytes()).hexdigest() for kind in ("onnx", "plan")}
    (version_folder / "model.plan.json").write_text(json.dumps({**BUILT_WITH, **digests, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`alpha` and `beta` are members, `gamma` is not; all three are plans."""
    folder = tiny.write_repository(tmp_path / "place" / "repository")
    write_files(folder, planned_files(folder, [tiny.member("gamma", 3)], ensemble=None, max_batch_size=8))
    for model in ("alpha", "beta", "gamma"):
        build(folder, model)
    return folder


def remarks_of_adding_gamma(folder: Path, profile: str = "gpu-tensorrt") -> tuple[str, ...]:
    with Client("fake", transport=Serving(folder, ["alpha", "beta"], profile)) as client:
        return Ensembles(folder, client).add("ensemble", ["gamma"], dry_run=True).remarks


def test_accepts_a_plan_with_matching_tensorrt_and_gpu(folder: Path) -> None:
    write_profile(folder, "gpu-tensorrt")
    assert not [remark for remark in remarks_of_adding_gamma(folder) if "plan" in remark]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (
            {"tensorrt": "10.9.0.34"},
            "TensorRT 10.9.0.34 | NVIDIA H100 | TensorRT 10.13.3.9",
        ),
        (
            {"gpu": "Tesla T4", "compute_capability": "7.5"},
            "Tesla T4 | 7.5 | NVIDIA H100",
        ),
    ],
)
def test_refuses_a_plan_that_the_server_cannot_run(folder: Path, changes: dict[str, object], facts: str) -> None:
    build(folder, "gamma", **changes)
    write_profile(folder, "gpu-tensorrt")
    before = content(folder)
    transport = Serving(folder, ["alpha", "beta"], "gpu-tensorrt")
    with Client("fake", transport=transport) as client, pytest.raises(EditRefusedError) as caught:
        Ensembles(folder, client).add("ensemble", ["gamma"])
    (finding,) = caught.value.findings
    assert_facts(finding, f"gamma | version 1 | {facts}")
    assert "fake://gpu" in finding
    assert content(folder) == before
    assert transport.loads == []


def test_ignores_onnx_files_on_a_server_of_plans(folder: Path) -> None:
    write_profile(folder, "gpu-tensorrt")
    (folder / "gamma/configs/gpu-tensorrt.pbtxt").unlink()
    for name in ("model.plan", "model.plan.json"):
        (folder / "gamma/1" / name).unlink()
    assert not [remark for remark in remarks_of_adding_gamma(folder) if "TensorRT" in remark]


def test_ignores_plan_profiles_on_a_server_of_onnx_files(folder: Path) -> None:
    build(folder, "gamma", tensorrt="10.9.0.34")
    write_profile(folder, "gpu-tensorrt")
    assert not [remark for remark in remarks_of_adding_gamma(folder, "none") if "TensorRT" in remark]


def test_remarks_that_compatibility_is_unknown_without_served_plans(folder: Path) -> None:
    write_profile(folder, "gpu-tensorrt")
    text = (folder / "gamma/configs/gpu-tensorrt.pbtxt").read_text()
    (folder / "gamma/config.pbtxt").write_text(text)
    (folder / "gamma/configs/gpu-tensorrt.pbtxt").unlink()
    remarks = [remark for remark in remarks_of_adding_gamma(folder, "none") if "whether" in remark]
    assert len(remarks) == 1
    assert "gamma" in remarks[0]
    assert_facts(remarks[0], "version 1 | TensorRT | fake://gpu")

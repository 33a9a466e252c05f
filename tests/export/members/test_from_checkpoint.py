"""Exports of real checkpoints: masks bit for bit, the interface, and what the verification detects."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from defensemble_export import (
    CheckpointSource,
    VerificationError,
    export_checkpoints,
    export_networks,
    member_from_onnx,
    onnx_from_checkpoint,
    onnx_from_module,
    reference_from_module,
    verify_onnx,
)
from defensemble_export.graphs.mask_aware import plain_onnx
from defensemble_export.verification.tolerances import TOLERANCES, Tolerance
from defensemble_repository.errors import RepositoryError
from defensemble_training import (
    CheckpointError,
    ModelSpec,
    build,
    defect_masks,
    defective,
    load_checkpoint,
    load_dataset,
    mask_digest,
    save_checkpoint,
)
from tests.support import tiny
from tests.support.checkout import ROOT
from tests.support.facts import raises
from tests.support.untrained import record_of


def digits_spec(**other: object) -> ModelSpec:
    dataset = load_dataset("digits", 16)
    values = {
        "arch": "resnet18",
        "keep": 0.5,
        "blocks": (0, 1, 2),
        "width": 8,
        "mean": dataset.mean,
        "std": dataset.std,
        "input_shape": dataset.input_shape,
    }
    return ModelSpec(**(values | other))  # type: ignore[arg-type]


def untrained(path: Path, spec: ModelSpec) -> Path:
    """Save a checkpoint whose BatchNorm has the statistics of some images, so that folding it is not the identity."""
    torch.manual_seed(0)
    module = build(spec)
    module.train()
    with torch.no_grad():
        module(torch.rand(16, *spec.input_shape))
    record = record_of(spec, data="digits", class_names=tuple("0123456789"))
    save_checkpoint(path, module.eval(), spec, record)
    return path


@pytest.mark.parametrize(
    ("size", "pattern"),
    [
        ("demo", "neuron"),
        pytest.param("full", "neuron", marks=pytest.mark.slow),
        pytest.param("demo", "channel", marks=pytest.mark.slow),
        pytest.param("demo", "shared", marks=pytest.mark.slow),
    ],
)
def test_masks_are_bool_initialisers_bit_for_bit(tmp_path: Path, size: str, pattern: str) -> None:
    spec = (
        digits_spec(pattern=pattern, mask_seed=3)
        if size == "demo"
        else ModelSpec(arch="resnet18", keep=0.1, blocks=(0, 1, 2), pattern=pattern, mask_seed=3)
    )
    checkpoint = untrained(tmp_path / "net.safetensors", spec)
    images = np.random.default_rng(0).random((4, *spec.input_shape), np.float32)
    path = onnx_from_checkpoint(checkpoint, tmp_path / "net.onnx", max_batch_size=4, images=images)
    module, _, _ = load_checkpoint(checkpoint)
    masks = defect_masks(module)
    assert len(masks) == 10
    model = onnx.load(path)
    exported_masks = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.BOOL
    }
    assert set(exported_masks) == set(masks)
    for name, mask in masks.items():
        assert exported_masks[name].shape == mask.shape
        assert exported_masks[name].tobytes() == mask.tobytes()
    assert mask_digest(exported_masks) == {entry.key: entry.value for entry in model.metadata_props}["defensemble.mask_digest"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = untrained(folder / "net.safetensors", digits_spec())
    return checkpoint, onnx_from_checkpoint(checkpoint, folder / "net.onnx")


def test_the_file_has_the_interface_of_a_member(exported: tuple[Path, Path]) -> None:
    checkpoint, path = exported
    stored = onnx.load(path)
    model = plain_onnx(stored)
    assert stored.ir_version == model.ir_version == 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert sum(node.op_type == "Where" for node in model.graph.node) == 10
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(x.name, x.type, x.shape[1:]) for x in session.get_inputs()] == [("images", "tensor(float)", [1, 16, 16])]
    assert [(x.name, x.type, x.shape[1:]) for x in session.get_outputs()] == [("logits", "tensor(float)", [10])]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert ModelSpec.from_json(metadata["defensemble.spec"]) == load_checkpoint(checkpoint)[1]
    assert json.loads(metadata["defensemble.class_names"]) == list("0123456789")
    assert json.loads(metadata["defensemble.record"])["data"] == "digits"


def test_the_file_contains_nothing_about_the_machine(exported: tuple[Path, Path]) -> None:
    content = exported[1].read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content


def test_any_batch_of_real_images_matches_torch(exported: tuple[Path, Path]) -> None:
    checkpoint, path = exported
    images = load_dataset("digits", 16).test.images()[:37]
    module, _, _ = load_checkpoint(checkpoint)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    for batch in (1, 3, 37):
        (got,) = session.run(None, {"images": images[:batch]})
        assert np.abs(got - expected[:batch]).max() < 1e-5 * max(1, np.abs(expected).max())


def test_equal_masks_keep_their_names(tmp_path: Path) -> None:
    # With two channels, most of the ten masks are equal to another one.
    spec = digits_spec(width=2, pattern="channel", mask_seed=1)
    checkpoint = untrained(tmp_path / "net.safetensors", spec)
    masks = defect_masks(load_checkpoint(checkpoint)[0])
    assert len({mask.tobytes() for mask in masks.values()}) < len(masks)
    model = plain_onnx(onnx.load(onnx_from_checkpoint(checkpoint, tmp_path / "net.onnx")))
    exported_masks = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.BOOL
    }
    assert {name: mask.tobytes() for name, mask in exported_masks.items()} == {name: mask.tobytes() for name, mask in masks.items()}
    assert sorted(node.input[0] for node in model.graph.node if node.op_type == "Where") == sorted(masks)


def test_a_mask_missing_under_its_name_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = untrained(tmp_path / "net.safetensors", digits_spec(width=2, pattern="channel", mask_seed=1))
    # Merge equal masks, as torch's optimiser does. The graph computes the same, so no image shows it.
    monkeypatch.setattr("defensemble_export.graphs.tracing._name_masks", lambda model, masks: None)
    with pytest.raises(VerificationError, match="BOOL initialiser"):
        onnx_from_checkpoint(checkpoint, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_keep_one_exports_the_standard_network(tmp_path: Path) -> None:
    path = onnx_from_checkpoint(untrained(tmp_path / "s.safetensors", digits_spec(keep=1.0)), tmp_path / "s.onnx")
    assert not [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type == onnx.TensorProto.BOOL]


def test_a_member_is_read_back(exported: tuple[Path, Path]) -> None:
    member = member_from_onnx(exported[1], "net")
    assert (member.input_shape, member.num_classes, member.class_names) == ((1, 16, 16), 10, tuple("0123456789"))
    foreign = exported[1].with_name("foreign.onnx")
    foreign.write_bytes(tiny.linear_onnx(0))
    with pytest.raises(RepositoryError, match=r"defensemble\.class_names"):
        member_from_onnx(foreign, "foreign")


def test_a_custom_network_becomes_a_member_with_its_masks(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 4))

    module = defective(make(), (1, 8, 8), layers=["1"], keep=0.5)
    images = tiny.images(5, shape=(1, 8, 8))
    names = ("a", "b", "c", "d")
    path = onnx_from_module(module, tmp_path / "mine.onnx", input_shape=(1, 8, 8), class_names=names, images=images, max_batch_size=4)
    member = member_from_onnx(path, "mine")
    masks = defect_masks(module)
    assert (member.input_shape, member.class_names, member.mask_digest) == ((1, 8, 8), names, mask_digest(masks))
    constants = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer if one.data_type == TensorProto.BOOL}
    assert list(constants) == list(masks)
    assert all(np.array_equal(constants[name], mask) for name, mask in masks.items())
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], {"images": images})
    with torch.inference_mode():
        assert np.allclose(logits, module(torch.from_numpy(images)).numpy(), atol=1e-5)


def test_a_missing_dataset_is_named_with_both_fixes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "net.safetensors"
    save_checkpoint(checkpoint, build(digits_spec()), digits_spec(), record_of(digits_spec(), data="folder"))
    with raises(RepositoryError, "test images of 'folder' | --dataset | --images"):
        onnx_from_checkpoint(checkpoint, tmp_path / "net.onnx")


def test_a_dataset_with_other_classes_is_rejected(tmp_path: Path) -> None:
    checkpoint = tmp_path / "net.safetensors"
    save_checkpoint(checkpoint, build(digits_spec()), digits_spec(), record_of(digits_spec(), data="digits"))
    with raises(RepositoryError, "0, 1, 2 | class 0, class 1 | --dataset"):
        onnx_from_checkpoint(checkpoint, tmp_path / "net.onnx")


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    target = path.with_name("changed.onnx")
    onnx.save(model, target)
    return target


def _rename_output(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "scores"


def _fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def _shift_a_weight(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), tensor.name))


def _flip_a_mask(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "stem.defect.mask")
    mask = numpy_helper.to_array(tensor).copy()
    mask[0] = ~mask[0]
    tensor.CopyFrom(numpy_helper.from_array(mask, tensor.name))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_rename_output, "outputs"),
        (_fix_batch, "inputs"),
        (_shift_a_weight, "logits | 0.01"),
        (_flip_a_mask, "logits differ"),
    ],
)
def test_the_verification_detects_changes(exported: tuple[Path, Path], change: Callable[[onnx.ModelProto], None], text: str) -> None:
    checkpoint, path = exported
    module, _, _ = load_checkpoint(checkpoint)
    images = load_dataset("digits", 16).test.images()
    answers = reference_from_module(module)
    assert verify_onnx(path, answers, images, max_batch_size=8).largest_logit_difference <= 1e-5
    with raises(VerificationError, text):
        verify_onnx(changed(path, change), answers, images, max_batch_size=8)


def test_a_failed_verification_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = untrained(tmp_path / "net.safetensors", digits_spec())
    monkeypatch.setitem(TOLERANCES, "fp32", Tolerance(agreement=1.0, logits=-1.0))
    with pytest.raises(VerificationError):
        export_checkpoints([checkpoint], tmp_path / "repository")
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_invalid_requests_fail_before_slow_work_and_change_nothing(tmp_path: Path, exported: tuple[Path, Path]) -> None:
    checkpoint, _ = exported
    repository = tmp_path / "repository"
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(checkpoint.read_bytes()[:-1000])
    for checkpoints, error in (
        ([checkpoint, truncated], CheckpointError),
        ([checkpoint, tmp_path / "missing.safetensors"], CheckpointError),
        ([], RepositoryError),
        ([checkpoint, checkpoint], RepositoryError),
    ):
        with pytest.raises(error):
            export_checkpoints(checkpoints, repository)
        assert not repository.exists()


def test_a_member_is_named_after_its_file_and_an_empty_name_is_rejected(tmp_path: Path) -> None:
    checkpoint = tmp_path / "net.safetensors"
    assert CheckpointSource(checkpoint).member_name == CheckpointSource(checkpoint, None).member_name == "net"
    with raises(RepositoryError, "name | 1 to 100 | ''"):
        export_networks([CheckpointSource(checkpoint, "")], tmp_path / "repository")


def test_a_damaged_spec_is_reported(tmp_path: Path) -> None:
    spec = dataclasses.replace(digits_spec(), input_shape=(1, 24, 24))
    with pytest.raises(RepositoryError, match=r"verification .*\(N, 1, 24, 24\) .* got \(4, 1, 16, 16\)"):
        onnx_from_checkpoint(untrained(tmp_path / "net.safetensors", spec), tmp_path / "net.onnx", images=tiny.images(4, shape=(1, 16, 16)))
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


GOOD = tiny.images(4, shape=(1, 16, 16))


@pytest.mark.parametrize(
    ("place", "options", "text"),
    [
        ("net.onnx", {"images": GOOD.astype(np.float64)}, "verification | float32 | float64"),
        ("net.onnx", {"images": GOOD * 255}, "[0, 1] | 255"),
        ("net.onnx", {"images": GOOD * np.float32("nan")}, "finite | NaN"),
        ("net.onnx", {"images": GOOD[:0]}, "verification | at least one | (0, 1, 16, 16)"),
        ("net.onnx", {"images": GOOD[0]}, "verification | (N, 1, 16, 16) | (1, 16, 16)"),
        ("net.onnx", {"images": np.array(1, np.float32)}, "verification | (N, 1, 16, 16) | ()"),
        ("net.onnx", {"max_batch_size": 0}, "max_batch_size | 1 to 4096 | 0"),
        ("net.onnx", {"max_batch_size": 5000}, "max_batch_size | 1 to 4096 | 5000"),
        ("none/net.onnx", {}, "/none/net.onnx | mkdir -p"),
        (".", {}, "folder"),
    ],
)
def test_invalid_arguments_fail_before_slow_work(
    tmp_path: Path, exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, place: str, options: dict[str, object], text: str
) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("it was exported first"))
    with raises(RepositoryError, text):
        onnx_from_checkpoint(exported[0], tmp_path / place, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_output_path_is_named_as_the_user_wrote_it(tmp_path: Path, exported: tuple[Path, Path]) -> None:
    place = tmp_path / ("x" * 250)
    with pytest.raises(OSError, match="too long") as caught:
        onnx_from_checkpoint(exported[0], place)
    assert caught.value.filename == str(place)

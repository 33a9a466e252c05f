"""Exports of every architecture, for each pattern, and of a custom network; one Triton serves all six.

Seconds of a core for an export with its verification: ResNet-18 2.5, ResNet-50 4.5, DenseNet-121 13, SENet-18 3, VGG-19 2.7, WRN-32-4 3.5.
One architecture a pattern runs by default, the rest of the grid is slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from defensemble_export import (
    ExportedMember,
    ExportOptions,
    member_from_onnx,
    onnx_from_checkpoint,
    planned_files,
    reference_from_module,
    verify_onnx,
    write_files,
)
from defensemble_export.engines.parser_support import problems_of_graph
from defensemble_export.graphs.mask_aware import plain_onnx
from defensemble_export.graphs.tracing import check_masks, graph_from_module
from defensemble_training import Drop, ModelSpec, build, defect_masks, defective, load_checkpoint, mask_digest, save_checkpoint
from tests.support import tiny
from tests.support.placements import PLACEMENTS
from tests.support.untrained import record_of, tiny_spec
from tests.support.users_network import UsersNetwork

PATTERNS = ("neuron", "channel", "shared")

# Narrow networks, each with a different feature: a stem for ImageNet, sizes that pooling rounds up, drops, wider blocks.
SPECS: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 4, "stem": "imagenet", "drop": Drop("drop_block", keep=0.5)},
    "resnet50": {"width": 4, "stem": "imagenet"},
    "densenet121": {"width": 4},
    "senet18": {"width": 16, "drop": Drop("spatial_dropout", keep=0.5)},
    "vgg19": {"width": 4, "input_shape": (1, 9, 12)},
    "wrn32_4": {"width": 8, "channel_multiplier": 2},
}
# The fast cases, one architecture per pattern; ResNet-18's masks of neurons are in members/test_from_checkpoint.py.
DEFAULT_PATTERN = {"senet18": "shared", "vgg19": "channel"}


def spec_of(arch: str, pattern: str, **changes: Any) -> ModelSpec:
    blocks = tuple(PLACEMENTS[arch])
    return tiny_spec(**{"arch": arch, "pattern": pattern, "keep": 0.5, "sampling": "exact", "blocks": blocks, **SPECS[arch], **changes})


def untrained(path: Path, spec: ModelSpec) -> Path:
    """Save a checkpoint whose BatchNorm has the statistics of some images, so it is not the identity and outputs differ."""
    torch.manual_seed(0)
    module = build(spec).train()
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # take the statistics of this batch, not a tenth of them
    with torch.no_grad():
        module(torch.rand(16, *spec.input_shape) * torch.linspace(0, 1, 16).reshape(-1, 1, 1, 1))  # images of pure noise are all alike
    for norm in norms:
        # A channel with almost no variance, which masks and few images cause, would make rounding errors hundreds of times larger. Without
        # this, the logits of ResNet-50 in float32 and float64 differ by 1e-5.
        variance = norm.get_buffer("running_var")
        variance.clamp_(min=1.5 * variance.mean().item())
    save_checkpoint(path, module.eval(), spec, record_of(spec))
    return path


def masks_in(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.BOOL}


def grid() -> list[Any]:
    return [
        pytest.param(arch, pattern, marks=() if DEFAULT_PATTERN.get(arch) == pattern else pytest.mark.slow)
        for arch in SPECS
        for pattern in PATTERNS
    ]


@pytest.mark.parametrize(("arch", "pattern"), grid())
def test_masks_are_bool_initialisers_bit_for_bit(tmp_path: Path, arch: str, pattern: str) -> None:
    spec = spec_of(arch, pattern)
    checkpoint = untrained(tmp_path / "net.safetensors", spec)
    images = np.random.default_rng(0).random((4, *spec.input_shape), np.float32)
    # Masks of whole channels would give smaller convolutions, whose weights are chosen by the masks.
    options = ExportOptions(mask_aware="off" if pattern == "channel" else "auto")
    stored = onnx.load(onnx_from_checkpoint(checkpoint, tmp_path / "net.onnx", max_batch_size=4, images=images, options=options))
    model = plain_onnx(stored)
    masks = defect_masks(load_checkpoint(checkpoint)[0])
    assert len(masks) >= len([path for block in PLACEMENTS[arch].values() for path in block])  # a wider block may add a projection
    exported_masks = masks_in(stored)
    assert {name: (mask.shape, mask.tobytes()) for name, mask in exported_masks.items()} == {
        name: (mask.shape, mask.tobytes()) for name, mask in masks.items()
    }
    # Each mask is used once, and nothing is random: drops are not part of a graph.
    assert sorted(node.input[0] for node in model.graph.node if node.op_type == "Where") == sorted(masks)
    assert not {node.op_type for node in model.graph.node} & {"Dropout", "RandomUniform", "RandomUniformLike", "Bernoulli"}
    assert mask_digest(exported_masks) == {entry.key: entry.value for entry in model.metadata_props}["defensemble.mask_digest"]
    assert problems_of_graph(model) == [], "TensorRT's parser is documented to read it"


@pytest.mark.parametrize("pattern", ["neuron", *(pytest.param(pattern, marks=pytest.mark.slow) for pattern in ("channel", "shared"))])
def test_a_custom_network_is_exported(tmp_path: Path, pattern: str) -> None:
    torch.manual_seed(0)
    shape = (3, 21, 16)
    layers = ["features", "features.0", "features.1", "norm"]
    module = defective(UsersNetwork(), shape, layers=layers, keep=0.5, pattern=pattern, sampling="exact").train()
    with torch.no_grad():
        module(torch.rand(16, *shape))
    masks = defect_masks(module.eval())
    assert len(masks) == 4
    model = graph_from_module(module, shape, masks)
    check_masks(model, masks)
    assert set(masks_in(model)) == set(masks)
    assert sorted(node.input[0] for node in model.graph.node if node.op_type == "Where") == sorted(masks)
    path = tmp_path / "own.onnx"
    onnx.save(model, path)
    images = np.random.default_rng(0).random((4, *shape), np.float32)
    assert verify_onnx(path, reference_from_module(module), images, max_batch_size=5).largest_logit_difference <= 1e-5


@pytest.mark.usefixtures("no_shared_memory_left")
@pytest.mark.slow
def test_all_six_architectures_are_served(tmp_path: Path) -> None:
    from defensemble import Client
    from defensemble_server import ServeOptions, serve

    shape = (1, 16, 16)
    members: list[ExportedMember] = []
    for arch in SPECS:
        checkpoint = untrained(tmp_path / f"{arch}.safetensors", spec_of(arch, "neuron", input_shape=shape))
        images = np.random.default_rng(0).random((4, *shape), np.float32)
        path = onnx_from_checkpoint(checkpoint, tmp_path / f"{arch}.onnx", max_batch_size=8, images=images)
        members.append(member_from_onnx(path, arch))
    repository = tmp_path / "repository"
    write_files(repository, planned_files(repository, members, ensemble=None, max_batch_size=8))
    with serve(repository, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        with Client(server.grpc_url, timeout_s=60) as client:
            for arch in SPECS:
                images = np.random.default_rng(1).random((8, *shape), np.float32)
                module, _, _ = load_checkpoint(tmp_path / f"{arch}.safetensors")
                with torch.inference_mode():
                    expected = module(torch.from_numpy(images)).softmax(dim=1).numpy()
                np.testing.assert_allclose(client.predict(images, model=arch).probabilities, expected, atol=1e-4)
                assert np.ptp(expected, axis=0).max() > 5e-3  # the network distinguishes images
    assert tiny.leftovers(repository) == []

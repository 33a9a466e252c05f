"""`defective`: masks in any network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from defensemble_training import SpecError, defect_mask, defect_masks, defective
from defensemble_training.models.defect import Defect
from tests.support.facts import raises
from tests.support.users_network import UsersNetwork

SHAPE = (3, 21, 16)
LAYERS = ["features.0", "features.1", "norm"]
SIZES = {"features.0": (8, 9, 6), "features.1": (8, 9, 6), "norm": (12, 7, 4)}


def wrapped(network: nn.Module | None = None, **changes: Any) -> nn.Module:
    return defective(network or UsersNetwork(), SHAPE, **{"layers": LAYERS, "keep": 0.5, **changes})


@pytest.mark.parametrize(("pattern", "axes"), [("neuron", (0, 1, 2)), ("channel", (0,)), ("shared", (1, 2))])
@pytest.mark.parametrize("sampling", ["bernoulli", "exact"])
def test_each_named_layer_has_its_mask(pattern: str, axes: tuple[int, ...], sampling: str) -> None:
    module = wrapped(pattern=pattern, sampling=sampling, mask_seed=4)
    masks = defect_masks(module)
    assert list(masks) == [f"{path}.defect.mask" for path in LAYERS]
    for path, size in SIZES.items():
        mask = masks[f"{path}.defect.mask"]
        assert mask.shape == tuple(extent if axis in axes else 1 for axis, extent in enumerate(size))
        np.testing.assert_array_equal(mask, defect_mask(size, 0.5, pattern, sampling, seed=4, name=f"{path}.defect"))


def test_masks_are_applied_and_the_original_network_is_unchanged() -> None:
    network = UsersNetwork().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.rand(3, *SHAPE)
    expected = network(images)
    module = wrapped(network)
    assert torch.equal(network(images), expected)
    assert {name: torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()} == dict.fromkeys(before, True)
    assert not any(isinstance(layer, Defect) for layer in network.modules())
    masks = {name: torch.from_numpy(mask) for name, mask in defect_masks(module).items()}
    hidden = torch.where(masks["features.0.defect.mask"], network.features[0](images), torch.zeros(()))
    hidden = torch.where(masks["features.1.defect.mask"], network.features[1](hidden), torch.zeros(()))
    hidden = network.norm(network.features[3](network.features[2](hidden)))
    hidden = functional.silu(torch.where(masks["norm.defect.mask"], hidden, torch.zeros(())))
    assert torch.equal(module(images), network.head(hidden.amax(dim=(2, 3))))


def test_keep_1_returns_a_copy() -> None:
    network = UsersNetwork()
    module = wrapped(network, keep=1.0)
    assert module is not network
    assert list(module.state_dict()) == list(network.state_dict())


def test_result_trains_and_can_be_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = wrapped().train()
    masks = defect_masks(module)
    images, labels = torch.rand(20, *SHAPE), torch.arange(20) % 5
    optimiser = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = functional.cross_entropy(module(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    other = wrapped(mask_seed=9)
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert {name: mask.tobytes() for name, mask in defect_masks(other).items()} == {name: mask.tobytes() for name, mask in masks.items()}
    assert torch.equal(other.eval()(images), module.eval()(images))
    assert torch.equal(copy.deepcopy(module)(images), module(images))


def test_result_compiles_to_one_graph() -> None:
    module = wrapped().eval()
    images = torch.rand(2, *SHAPE)
    assert torch.equal(torch.compile(module, backend="eager", fullgraph=True)(images), module(images))


def test_nested_layer_has_the_same_mask_as_without_the_outer_layer() -> None:
    module = wrapped(layers=["features", "features.0"])
    inner_only = wrapped(layers=["features.0"])
    masks = defect_masks(module)
    assert sorted(masks) == ["features.defect.mask", "features.layer.0.defect.mask"]
    np.testing.assert_array_equal(masks["features.layer.0.defect.mask"], defect_masks(inner_only)["features.0.defect.mask"])
    assert masks["features.defect.mask"].shape == (12, 7, 4)


def test_modes_devices_and_dtypes_are_kept() -> None:
    network = UsersNetwork().double().train()
    network.features[1].eval()
    random = torch.random.get_rng_state()
    module = wrapped(network, layers=["features", "norm"])
    assert torch.equal(random, torch.random.get_rng_state())
    modes = {name: layer.training for name, layer in module.named_modules()}
    assert [name for name, training in modes.items() if not training] == ["features.layer.1"]
    assert module(torch.rand(2, *SHAPE)).dtype == torch.float64


class Odd(nn.Module):
    """A network with layers that cannot have a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.twice = nn.ReLU()
        self.never = nn.ReLU()
        self.split = nn.MaxPool2d(2, return_indices=True)
        self.flat = nn.Flatten()
        self.same = self.conv
        self.hidden = nn.Conv2d(4, 4, 1)
        self.past_names = [self.hidden]
        self.container = nn.Sequential(nn.Identity())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.container[0](self.container(images))
        features = self.twice(self.past_names[0](self.twice(self.conv(features))))
        return self.flat(self.split(features)[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"layers": ["conf"]}, "'conf' | conv"),
        ({"layers": ["xyz"]}, "'xyz' | conv, twice, never"),
        ({"layers": [""]}, "layer | ''"),
        ({"layers": "conv"}, "layers | 'conv'"),
        ({"layers": []}, "layers | []"),
        ({"layers": ["conv", "conv"]}, "layers | duplicates"),
        ({"layers": ["twice"]}, "'twice' | 2"),
        ({"layers": ["never"]}, "'never' | 0"),
        ({"layers": ["hidden"]}, "'hidden' | 0"),
        ({"layers": ["container"]}, "masks | subscriptable"),
        ({"layers": ["flat"]}, "'flat' | (N, C, H, W) | (2, 64)"),
        ({"layers": ["split"]}, "'split' | (N, C, H, W) | tuple"),
        ({"example_shape": (1, 8, 8)}, "(1, 8, 8) | channels"),
        ({"example_shape": (8, 8)}, "example_shape | (C, H, W) | (8, 8)"),
        ({"example_shape": (3, 0, 8)}, "example_shape | (C, H, W) | at least 1 | 0"),
        ({"keep": 0}, "keep | (0, 1] | got 0"),
        ({"pattern": "pixel"}, "pattern"),
        ({"sampling": "poisson"}, "sampling"),
        ({"mask_seed": -1}, "mask_seed | 0"),
    ],
)
def test_invalid_arguments_are_rejected(changes: dict[str, Any], facts: str) -> None:
    values: dict[str, Any] = {"example_shape": (3, 8, 8), "layers": ["conv"], "keep": 0.5, **changes}
    with raises(SpecError, facts):
        defective(Odd(), **values)


@pytest.mark.parametrize("path", ["norm", "norm.layer", "norm.defect"])
def test_layer_with_a_mask_is_rejected(path: str) -> None:
    with raises(SpecError, f"'{path}' | already"):
        wrapped(wrapped(), layers=[path])

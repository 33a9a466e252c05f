"""Networks and their masks: ResNet-18 in detail (test_placements.py covers all networks), and the defective layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from defensemble_training import ModelSpec, SpecError, build, defect_mask, defect_masks
from defensemble_training.models.defect import Defect
from tests.support.facts import raises
from tests.support.untrained import tiny_spec


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {path: tuple(layer.mask.shape) for path, layer in module.named_modules() if isinstance(layer, Defect)}


@pytest.mark.parametrize(("pattern", "shape"), [("neuron", (2, 9, 12)), ("channel", (2, 1, 1)), ("shared", (1, 9, 12))])
def test_patterns_and_images_that_are_not_square(pattern: str, shape: tuple[int, int, int]) -> None:
    module = build(tiny_spec(pattern=pattern, sampling="exact", input_shape=(1, 9, 12)))
    assert shapes_of(module)["stem.defect"] == shape
    assert module(torch.zeros(2, 1, 9, 12)).shape == (2, 3)


def test_keep_1_is_the_standard_network() -> None:
    module = build(tiny_spec(keep=1.0, blocks=(0, 1, 2, 3, 4)))
    assert not any(isinstance(layer, Defect) for layer in module.modules())
    assert defect_masks(module) == {}


def test_masks_depend_on_seed_and_module_path() -> None:
    module = build(tiny_spec(mask_seed=5))
    for path, layer in module.named_modules():
        if isinstance(layer, Defect):
            shape = tuple(layer.mask.shape)
            np.testing.assert_array_equal(layer.mask.numpy(), defect_mask(shape, 0.3, seed=5, name=path))
            np.testing.assert_array_equal(defect_masks(module)[f"{path}.mask"], layer.mask.numpy())
    assert set(defect_masks(module)) <= set(module.state_dict())


def test_masks_are_between_batchnorm_and_the_residual_sum() -> None:
    module = build(tiny_spec(keep=0.5, blocks=(0, 1, 2), width=4)).eval()
    tensors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for path, layer in module.named_modules():
        layer.register_forward_hook(lambda layer, inputs, output, path=path: tensors.__setitem__(path, (inputs[0], output)))
    module(torch.rand(2, 1, 8, 8))
    masks = defect_masks(module)
    assert len(masks) == 10
    for name in masks:
        path = name.removesuffix(".mask")
        before, after = tensors[path]
        norm = path.replace("defect1", "bn1").replace("defect2", "bn2").replace(".defect", ".bn")
        assert torch.equal(before, tensors[norm][1])
        assert torch.equal(after, torch.where(torch.from_numpy(masks[name]), before, torch.zeros(())))
    # The first unit of block 1 has an identity shortcut, which is not masked.
    unit_in, unit_out = tensors["block1.0"]
    assert torch.equal(unit_out, (tensors["block1.0.defect2"][1] + unit_in).relu())
    # The first unit of block 2 has a projection: the sum of the masked branch and the masked projection is not masked.
    _, unit_out = tensors["block2.0"]
    assert torch.equal(unit_out, (tensors["block2.0.defect2"][1] + tensors["block2.0.shortcut.defect"][1]).relu())


def test_normalisation_is_the_first_layer() -> None:
    spec = ModelSpec("resnet18", 1.0, (), width=2)
    module = build(spec).eval()
    plain = build(ModelSpec("resnet18", 1.0, (), width=2, mean=(0.0,) * 3, std=(1.0,) * 3)).eval()
    plain.load_state_dict(module.state_dict())
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor(spec.mean).reshape(3, 1, 1), torch.tensor(spec.std).reshape(3, 1, 1)
    torch.testing.assert_close(module(images), plain((images - mean) / std))


def test_constant_network_is_rejected() -> None:
    with raises(SpecError, "stem | keep | constant"):
        build(tiny_spec(keep=1e-9, blocks=(0,)))
    with raises(SpecError, "block3.0 | keep"):
        build(tiny_spec(keep=1e-9, blocks=(3,)))


def test_empty_masks_parallel_to_an_identity_shortcut_are_accepted() -> None:
    module = build(tiny_spec(keep=1e-9, blocks=(1,))).eval()
    logits = module(torch.rand(2, 1, 8, 8))
    assert not torch.equal(logits[0], logits[1])


def test_exact_sampling_never_makes_a_constant_network() -> None:
    assert all(mask.sum() == 1 for mask in defect_masks(build(tiny_spec(keep=1e-9, sampling="exact"))).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_defect_zeroes_exactly_the_defective_neurons(dtype: torch.dtype) -> None:
    mask = defect_mask((3, 4, 5), 0.5, seed=1, name="layer")
    values = torch.randn(2, 3, 4, 5).to(dtype)
    result = Defect(mask)(values)
    assert result.dtype == dtype
    assert torch.equal(result[:, torch.from_numpy(mask)], values[:, torch.from_numpy(mask)])
    assert (result[:, torch.from_numpy(~mask)] == 0).all()


def test_defect_zeroes_non_finite_values() -> None:
    defect = Defect(np.array([[[True, False]]]))
    result = defect(torch.tensor([[[[float("inf"), float("nan")]]]]))
    assert result.flatten().tolist() == [float("inf"), 0.0]


def test_defect_stops_the_gradient_of_defective_neurons() -> None:
    values = torch.randn(1, 1, 1, 2, requires_grad=True)
    Defect(np.array([[[True, False]]]))(values).sum().backward()
    assert values.grad is not None
    assert values.grad.flatten().tolist() == [1.0, 0.0]


def test_defect_copies_its_mask() -> None:
    mask = np.array([[[True, False]]])
    defect = Defect(mask)
    mask[:] = False
    assert defect.mask.tolist() == [[[True, False]]]
    assert defect.half().mask.dtype == torch.bool
    assert list(defect.parameters()) == []


def test_defect_repr_shows_its_mask() -> None:
    assert repr(Defect(np.array([[[True, False], [False, False]]]))) == "Defect(1x2x2, kept=0.2500)"


@pytest.mark.parametrize("mask", [np.ones((1, 1, 1), dtype=np.float32), np.ones((2, 2), dtype=np.bool_)])
def test_defect_rejects_invalid_masks(mask: npt.NDArray[Any]) -> None:
    with raises(SpecError, "bool | (C, H, W)"):
        Defect(mask)

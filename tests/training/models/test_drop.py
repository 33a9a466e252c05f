"""SpatialDropout and DropBlock: compared with numpy, random only in train mode."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from defensemble_training import Drop, build, defect_mask
from defensemble_training.models.drop import DefectThenDrop, DropBlock, SpatialDropout, drop_squares
from tests.support.untrained import tiny_spec

Array = npt.NDArray[np.float32]


def squares_by_numpy(activations: Array, centres: npt.NDArray[np.bool_], size: int) -> Array:
    """DropBlock's algorithm 1 in loops: a square around each centre; for even sizes, the centre is the upper left of the middle four."""
    kept = np.ones(activations.shape, dtype=bool)
    for image, channel, row, column in np.argwhere(centres):
        top, left = row - (size - 1) // 2, column - (size - 1) // 2
        assert min(top, left) >= 0
        assert top + size <= activations.shape[2]
        assert left + size <= activations.shape[3]
        kept[image, channel, top : top + size, left : left + size] = False
    if not kept.any():
        return np.zeros_like(activations)
    scaled: Array = (activations * kept * (kept.size / kept.sum())).astype(np.float32)
    return scaled


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.floats(0, 1), st.integers(0, 99))
def test_squares_equal_numpy(batch: int, channels: int, height: int, width: int, size: int, rate: float, seed: int) -> None:
    size = min(size, height, width)
    generator = np.random.default_rng(seed)
    activations = generator.standard_normal((batch, channels, height, width)).astype(np.float32)
    seeds = generator.random((batch, channels, height - size + 1, width - size + 1)) < rate
    centres = np.zeros(activations.shape, dtype=bool)
    before = (size - 1) // 2
    centres[:, :, before : before + seeds.shape[2], before : before + seeds.shape[3]] = seeds
    got = drop_squares(torch.from_numpy(activations), torch.from_numpy(seeds), size).numpy()
    np.testing.assert_allclose(got, squares_by_numpy(activations, centres, size), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_expected_fraction_is_dropped_in_squares(size: int) -> None:
    torch.manual_seed(0)
    ones = torch.ones(64, 32, 16, 16)
    result = DropBlock(0.9, size)(ones)
    fraction = (result != 0).float().mean().item()
    # Overlapping squares drop less than 10 %: on average 1 - (1 - rate) ** size**2 in the middle of an image.
    assert 0.895 < fraction < 0.93
    assert result.mean().item() == pytest.approx(1, abs=1e-4)
    dropped = (result[0] == 0).float()
    full = nn.functional.max_pool2d(dropped.reshape(32, 1, 16, 16) * -1, size, stride=1) == -1  # squares without a kept position
    spread = nn.functional.max_pool2d(nn.functional.pad(full.float(), (size - 1,) * 4), size, stride=1)
    assert torch.equal(spread.reshape(dropped.shape), dropped)


@pytest.mark.parametrize("layer", [SpatialDropout(0.5), DropBlock(0.5, 3)])
def test_drops_are_random_in_train_mode_and_identity_in_eval_mode(layer: nn.Module) -> None:
    images = torch.rand(4, 8, 6, 6) + 1
    torch.manual_seed(0)
    first, second = layer.train()(images), layer(images)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(layer(images), first)
    assert torch.equal(layer.eval()(images), images)
    layer.train()


def test_spatial_dropout_drops_whole_channels() -> None:
    torch.manual_seed(0)
    images = torch.rand(50, 40, 3, 3) + 1
    result = SpatialDropout(0.9)(images)
    dropped = (result == 0).all(dim=(2, 3))
    assert torch.equal(dropped, (result == 0).any(dim=(2, 3)))
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.03)
    torch.testing.assert_close(result[~dropped], images[~dropped] / 0.9)


def test_images_smaller_than_a_square() -> None:
    torch.manual_seed(0)
    layer = DropBlock(0.5, 3)
    for shape in ((8, 4, 1, 1), (8, 4, 2, 5)):
        result = layer(torch.ones(shape))
        assert result.shape == shape
        assert 0 < (result != 0).float().mean() < 1
    assert torch.equal(DropBlock(1e-9, 3)(torch.ones(2, 2, 1, 1)), torch.zeros(2, 2, 1, 1))  # nothing is kept, without NaN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    result = DropBlock(0.5, 2)(torch.ones(2, 3, 4, 4, dtype=dtype))
    assert result.dtype == dtype
    assert result.float().mean().item() == pytest.approx(1, abs=0.01)


def test_mask_is_applied_before_the_drop() -> None:
    mask = defect_mask((4, 5, 5), 0.5, seed=1, name="layer")
    both = DefectThenDrop(mask, DropBlock(0.7, 2))
    images = torch.rand(3, 4, 5, 5) + 1
    assert torch.equal(both.eval()(images), torch.where(torch.from_numpy(mask), images, torch.zeros(())))
    result = both.train()(images)
    assert (result[:, torch.from_numpy(~mask)] == 0).all()
    assert (result[:, torch.from_numpy(mask)] == 0).any()


@pytest.mark.parametrize("kind", ["spatial_dropout", "drop_block"])
def test_networks_with_drops_train_and_are_deterministic_in_eval_mode(kind: str) -> None:
    torch.manual_seed(0)
    module = build(tiny_spec(drop=Drop(kind, keep=0.5), blocks=(0, 1, 2, 3)))
    images = torch.rand(4, 1, 8, 8)
    assert not torch.equal(module(images), module(images))
    module(images).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
    module.eval()
    assert torch.equal(module(images), module(images))

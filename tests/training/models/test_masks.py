"""Masks: equal bytes everywhere, correct shapes and fractions, independent layers."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble_training import SpecError, defect_mask, mask_digest
from defensemble_training.models.masks import PATTERNS, SAMPLINGS, BoolArray
from tests.support.facts import raises

keeps = st.floats(0.001, 1.0)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
patterns = st.sampled_from(PATTERNS)
samplings = st.sampled_from(SAMPLINGS)

# Equal on Python 3.10 to 3.13 with numpy 1.26 to 2.5. A different digest would break every existing checkpoint.
GOLDEN = {
    ("neuron", "bernoulli"): "5f1bf7f08c69b1b10a6d3578a28f39124f377a1ae9a128bf58fe20542144516d",
    ("neuron", "exact"): "67e34d283657ccc42874abdce99f13e82d2c252b90d7c161dd4d6b4f0bd3ed6e",
    ("channel", "bernoulli"): "729c3dd2cc16351f38503c4293ac3632a104ce1acce7b2b643aa5b3997edb629",
    ("channel", "exact"): "78c51837cc14478e6ba41766368338d41a0a18acc95b25307a9981c53057621a",
    ("shared", "bernoulli"): "c24910aec26740032e854ebe8d133e643f7060292810899182eab3d3037e1299",
    ("shared", "exact"): "d978eef6a16846f950e9ff74908904fa13c5263123b55657df4a7f67bf58ba94",
}


def mask_by_python(shape: tuple[int, int, int], keep: float, sampling: str, seed: int, name: str) -> BoolArray:
    """The documented algorithm for the pattern `neuron`, with Python integers."""
    count = shape[0] * shape[1] * shape[2]
    stream = hashlib.shake_256(f"defensemble-mask-v1:{seed}:{name}".encode()).digest(8 * count)
    keys = [int.from_bytes(stream[8 * index : 8 * index + 8], "little") for index in range(count)]
    if sampling == "bernoulli":
        kept = [key // 2**11 / 2**53 < keep for key in keys]
    else:
        chosen = sorted(range(count), key=lambda index: (keys[index], index))[: max(1, int(keep * count + 0.5))]
        kept = [index in chosen for index in range(count)]
    return np.array(kept).reshape(shape)


@pytest.mark.parametrize(("pattern", "sampling"), list(GOLDEN))
def test_same_seed_gives_the_same_bytes(pattern: str, sampling: str) -> None:
    masks = {
        f"{name}.mask": defect_mask(shape, 0.3, pattern, sampling, seed=7, name=name)
        for name, shape in {"stem.defect": (64, 32, 32), "block2.0.shortcut.defect": (128, 16, 16)}.items()
    }
    assert mask_digest(masks) == GOLDEN[pattern, sampling]


@given(shapes, keeps, samplings, st.integers(0, 2**64), st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_masks_follow_the_documented_algorithm(shape: tuple[int, int, int], keep: float, sampling: str, seed: int, name: str) -> None:
    np.testing.assert_array_equal(
        defect_mask(shape, keep, "neuron", sampling, seed=seed, name=name), mask_by_python(shape, keep, sampling, seed, name)
    )


@given(shapes, keeps, patterns, samplings, st.integers(0, 1000))
def test_masks_are_bool_and_broadcast_over_the_tensor(
    shape: tuple[int, int, int], keep: float, pattern: str, sampling: str, seed: int
) -> None:
    mask = defect_mask(shape, keep, pattern, sampling, seed=seed, name="layer")
    channels, height, width = shape
    assert mask.dtype == np.bool_
    assert mask.shape == {"neuron": shape, "channel": (channels, 1, 1), "shared": (1, height, width)}[pattern]
    assert np.broadcast_shapes(mask.shape, (2, *shape)) == (2, *shape)


@given(shapes, keeps, patterns, st.integers(0, 1000))
def test_exact_keeps_the_rounded_count(shape: tuple[int, int, int], keep: float, pattern: str, seed: int) -> None:
    mask = defect_mask(shape, keep, pattern, "exact", seed=seed, name="layer")
    assert mask.sum() == max(1, int(keep * mask.size + 0.5))


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.9])
def test_bernoulli_keeps_the_expected_fraction(keep: float) -> None:
    mask = defect_mask((64, 32, 32), keep, seed=1, name="layer")
    assert abs(mask.mean() - keep) < 5 * np.sqrt(keep * (1 - keep) / mask.size)


def test_keep_1_keeps_everything() -> None:
    for sampling in SAMPLINGS:
        assert defect_mask((4, 8, 8), 1.0, "neuron", sampling, seed=1, name="layer").all()


def test_layers_and_seeds_are_independent() -> None:
    masks = [defect_mask((64, 16, 16), 0.3, seed=seed, name=name) for seed, name in ((1, "a"), (1, "b"), (2, "a"), (12, "a"), (1, "2:a"))]
    for index, first in enumerate(masks):
        for second in masks[:index]:
            both = (first & second).mean()
            assert abs(both - 0.09) < 5 * np.sqrt(0.09 * 0.91 / first.size)


@given(shapes, st.integers(0, 1000), st.floats(0.001, 1.0), st.floats(0.001, 1.0), samplings)
def test_larger_keep_only_adds_neurons(shape: tuple[int, int, int], seed: int, one: float, other: float, sampling: str) -> None:
    smaller = defect_mask(shape, min(one, other), "neuron", sampling, seed=seed, name="layer")
    larger = defect_mask(shape, max(one, other), "neuron", sampling, seed=seed, name="layer")
    assert not (smaller & ~larger).any()


def test_digest_encoding_is_as_documented() -> None:
    masks = {"b.mask": np.array([[[True, False]]]), "a.mask": np.array([[[False]], [[True]]])}
    assert mask_digest(masks) == hashlib.sha256(b"a.mask\x002,1,1\x00\x00\x01" + b"b.mask\x001,1,2\x00\x01\x00").hexdigest()
    assert mask_digest(dict(reversed(masks.items()))) == mask_digest(masks)
    assert mask_digest({}) == hashlib.sha256().hexdigest()


def test_digest_does_not_depend_on_the_memory_layout() -> None:
    mask = defect_mask((3, 4, 5), 0.5, seed=1, name="layer")
    assert mask_digest({"layer.mask": np.asfortranarray(mask)}) == mask_digest({"layer.mask": mask})


def test_digest_depends_on_name_shape_and_value() -> None:
    mask = defect_mask((2, 4, 4), 0.5, seed=1, name="layer")
    flipped = mask.copy()
    flipped[0, 0, 0] ^= True
    digests = {
        mask_digest({"a.mask": mask}),
        mask_digest({"b.mask": mask}),
        mask_digest({"a.mask": mask.reshape(4, 4, 2)}),
        mask_digest({"a.mask": flipped}),
    }
    assert len(digests) == 4


def test_digest_rejects_masks_that_are_not_bool() -> None:
    with raises(SpecError, "'a.mask' | bool | float32"):
        mask_digest({"a.mask": np.ones((1, 1, 1), dtype=np.float32)})


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"keep": 0.0}, "keep | (0, 1] | 0.0"),
        ({"keep": 1.5}, "keep | (0, 1] | 1.5"),
        ({"keep": float("nan")}, "keep | (0, 1] | nan"),
        ({"keep": "0.3"}, "keep | (0, 1] | '0.3'"),
        ({"keep": True}, "keep | (0, 1] | True"),
        ({"pattern": "pixel"}, "pattern | neuron, channel, shared | 'pixel'"),
        ({"sampling": "poisson"}, "sampling | bernoulli, exact | 'poisson'"),
        ({"seed": -1}, "seed | 0 | -1"),
        ({"seed": 1.0}, "seed | integer | 1.0"),
        ({"name": ""}, "name | layer"),
        ({"shape": (8, 8)}, "shape | (C, H, W) | (8, 8)"),
        ({"shape": 5}, "shape | (C, H, W) | 5"),
        ({"shape": None}, "shape | (C, H, W) | None"),
        ({"shape": "888"}, "shape | (C, H, W) | '888'"),
        ({"shape": (8, 0, 8)}, "(C, H, W) | at least 1 | 0"),
    ],
)
def test_invalid_values_are_rejected(changes: dict[str, object], facts: str) -> None:
    values: dict[str, object] = {"shape": (2, 3, 4), "keep": 0.5, "pattern": "neuron", "sampling": "exact", "seed": 1, "name": "a"}
    with raises(SpecError, facts):
        defect_mask(**{**values, **changes})  # type: ignore[arg-type]

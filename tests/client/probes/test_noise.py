"""The noise probe: how the noise is distributed, and that its rates are numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble import InputError, wilson
from defensemble.probes import LabelledImages, Noise, ProbeImage, RunOptions, measure
from defensemble.probes.noise import MAX_SIGMA, NOISE_KINDS, PAPER_SIGMAS
from tests.support.facts import raises
from tests.support.probing import DATA, LABELS, linear
from tests.support.tiny import Array, images, logits


def noisy(batch: Array, sigma: float, seed: int = 0, kind: Any = "gaussian") -> Array:
    """Return what the probe makes of images in the rows 0, 1, ..."""
    probe = Noise((sigma,), kind, seed=seed)
    (condition,) = probe.conditions()
    return np.stack([probe.perturb(ProbeImage(image, 0, row), condition, probe.rng(condition, row)) for row, image in enumerate(batch)])


@given(st.integers(0, 2**32), st.sampled_from(PAPER_SIGMAS), st.integers(1, 6))
def test_noise_is_clipped_to_two_sigma_and_to_the_range(seed: int, sigma: float, count: int) -> None:
    clean = images(count, seed % 7)
    made = noisy(clean, sigma, seed)
    assert made.dtype == np.float32
    assert made.shape == clean.shape
    assert 0 <= made.min() <= made.max() <= 1
    assert np.abs(made - clean).max() <= 2 * sigma / 255 + 1e-6
    np.testing.assert_array_equal(made, noisy(clean, sigma, seed))


def test_noise_has_the_spread_of_a_clipped_gaussian() -> None:
    middle = np.full((100, 1, 16, 16), 0.5, np.float32)
    noise = (noisy(middle, 8) - middle).astype(np.float64) * 255 / 8
    # A standard normal clipped to +-2 has mean 0, variance 0.9206, and 4.55 % of its mass on the two ends.
    assert abs(noise.mean()) < 0.02
    assert noise.var() == pytest.approx(0.9206, abs=0.02)
    assert (np.abs(noise) > 1.999).mean() == pytest.approx(0.0455, abs=0.005)


def test_uniform_noise_has_the_same_deviation() -> None:
    middle = np.full((100, 1, 16, 16), 0.5, np.float32)
    noise = (noisy(middle, 8, kind="uniform") - middle).astype(np.float64) * 255 / 8
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert np.abs(noise).max() == pytest.approx(3**0.5, abs=0.01)


def test_salt_and_pepper_changes_whole_pixels_to_black_and_white() -> None:
    colours = np.full((50, 3, 16, 16), 0.5, np.float32)
    made = noisy(colours, 64, kind="salt-and-pepper")
    assert (made == made[:, :1]).all()
    share = 3 * (64 / 255) ** 2
    for value in (0, 1):
        assert (made == value).mean() == pytest.approx(share / 2, abs=0.01)
    assert set(np.unique(made)) == {0, 0.5, 1}
    assert ((made - 0.5) ** 2).mean() == pytest.approx(share / 4, abs=0.01)  # a third, over all greys
    assert set(np.unique(noisy(colours, MAX_SIGMA, kind="salt-and-pepper"))) == {0, 1}


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noise_depends_on_seed_sigma_and_row_and_not_on_order_or_batch(kind: Any) -> None:
    grey = np.full((2, 1, 4, 4), 0.5, np.float32)
    first = noisy(grey, 64, kind=kind) - grey
    assert not np.allclose(first[0], first[1])
    assert not np.allclose(first / 2, noisy(grey, 128, kind=kind) - grey)
    assert not np.allclose(first, noisy(grey, 64, 1, kind) - grey)
    outcomes = [
        measure(Noise(sigmas, kind), [linear("a", 1)], DATA, options=RunOptions(batch_size=size)).targets[0].predicted
        for sigmas, size in (((8, 32), 7), ((32, 8), 16))
    ]
    assert set(outcomes[0]) == {"clean", "sigma 8", "sigma 32"}
    for name, classes in outcomes[0].items():
        np.testing.assert_array_equal(classes, outcomes[1][name])


def oracle(seed: int, batch: Array, labels: Array) -> Array:
    return np.array([logits(seed, image[None])[0].argmax() == label for image, label in zip(batch, labels, strict=True)])


def test_rates_equal_numpy() -> None:
    batch, sigmas = images(40), (32.0, 8.0, 200.0)
    result = measure(Noise(sigmas, seed=3), [linear("a", 1), linear("b", 2)], LabelledImages(batch, LABELS)).json()
    clean = {name: oracle(seed, batch, LABELS) for name, seed in (("a", 1), ("b", 2))}
    common = clean["a"] & clean["b"]
    assert clean["a"].all()
    assert 0 < common.sum() < 40
    assert (result["data"]["n"], result["data"]["n_common"]) == (40, common.sum())
    for target, (name, seed) in zip(result["targets"], (("a", 1), ("b", 2)), strict=True):
        assert (target["name"], target["failure"], target["queries"]["counted"]) == (name, None, 160)
        assert target["clean"]["value"] == clean[name].mean()
        for rates, sigma in zip(target["conditions"], sigmas, strict=True):
            right = oracle(seed, noisy(batch, sigma, 3), LABELS)
            assert rates["name"] == f"sigma {sigma:g}"
            for kind, counted in (("accuracy", np.ones(40, bool)), ("defense_rate", clean[name]), ("accuracy_on_common", common)):
                got = rates[kind]
                assert (got["successes"], got["n"]) == (right[counted].sum(), counted.sum())
                assert (got["low"], got["high"]) == wilson(got["successes"], got["n"])
    assert min(rates["accuracy"]["value"] for target in result["targets"] for rates in target["conditions"]) < 0.9


def test_the_json_has_the_documented_fields() -> None:
    output = measure(Noise(seed=5), [linear("a", 1)], DATA).json()
    assert (output["schema"], output["probe"], output["name"]) == ("defensemble.probe/2", "noise", "noise-gaussian-float32")
    assert [condition["value"] for condition in output["conditions"]] == [1, 2, 4, 8, 12, 16, 20, 24, 28, 32]
    assert {condition["unit"] for condition in output["conditions"]} == {"1/255"}
    assert output["settings"] == {"seed": 5, "sigmas": list(PAPER_SIGMAS), "kind": "gaussian"}
    assert (output["seed"], output["data"]["n"], output["data"]["n_common"]) == (5, 40, 40)
    assert len(output["data"]["sha256"]) == 64
    first = output["targets"][0]["conditions"][0]
    assert first["defense_rate_source_fooled"] is None
    assert set(first["accuracy"]) == {"value", "successes", "n", "low", "high"}
    assert "1911.08432" in output["paper"]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"sigmas": (8, 0)}, "sigmas | positive"),
        ({"sigmas": (float("nan"),)}, "sigmas | positive"),
        ({"sigmas": (float("inf"),)}, "sigmas | 2550 | 1/255 | inf"),
        ({"sigmas": (8, 1e308)}, "sigmas | 2550 | 1/255 | 1e+308"),
        ({"sigmas": ()}, "sigmas | one or more"),
        ({"sigmas": (8, 8)}, "sigmas | one or more"),
        ({"kind": "pink"}, "kind | 'pink' | gaussian | salt-and-pepper"),
    ],
)
def test_noise_rejects_invalid_settings(options: dict[str, Any], facts: str) -> None:
    with raises(InputError, facts):
        Noise(**options)

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble import Client, InputError, NotReadyError, wilson
from defensemble.probes import noisy_images, probe_noise, target_from_model
from defensemble.probes.noise import PAPER_SIGMAS
from tests.support.facts import raises
from tests.support.fakes import house
from tests.support.tiny import images, logits

Array = np.ndarray[Any, Any]
LABELS = logits(1, images(40)).argmax(axis=1)


def linear(seed: int) -> Any:
    return lambda batch: logits(seed, batch).argmax(axis=1)


@given(st.integers(0, 2**32), st.sampled_from(PAPER_SIGMAS), st.integers(1, 6))
def test_noise_is_clipped_to_two_sigma_and_to_the_range(seed: int, sigma: float, count: int) -> None:
    clean = images(count, seed % 7)
    noisy = noisy_images(clean, sigma, seed)
    assert noisy.dtype == np.float32
    assert noisy.shape == clean.shape
    assert 0 <= noisy.min() <= noisy.max() <= 1
    assert np.abs(noisy - clean).max() <= 2 * sigma / 255 + 1e-6
    np.testing.assert_array_equal(noisy, noisy_images(clean, sigma, seed))


def test_noise_has_the_spread_of_a_clipped_gaussian() -> None:
    middle = np.full((100, 1, 16, 16), 0.5, np.float32)
    noise = (noisy_images(middle, 8, 0) - middle).astype(np.float64) * 255 / 8
    # A standard normal clipped to +-2 has mean 0, variance 0.9206, and 4.55 % of its mass on the two ends.
    assert abs(noise.mean()) < 0.02
    assert noise.var() == pytest.approx(0.9206, abs=0.02)
    assert (np.abs(noise) > 1.999).mean() == pytest.approx(0.0455, abs=0.005)


def test_noise_depends_on_seed_and_sigma_and_not_on_their_order() -> None:
    grey = np.full((2, 1, 4, 4), 0.5, np.float32)
    by_two = (noisy_images(grey, 2, 0) - grey) / 2
    assert not np.allclose(by_two, (noisy_images(grey, 4, 0) - grey) / 4)
    assert not np.allclose(by_two, (noisy_images(grey, 2, 1) - grey) / 2)
    first = probe_noise({"a": linear(1)}, images(40), LABELS, [8, 32], batch_size=7)
    second = probe_noise({"a": linear(1)}, images(40), LABELS, [32, 8], batch_size=40)
    assert first.targets[0].noise == second.targets[0].noise[::-1]


def oracle(seed: int, batch: Array, labels: Array) -> Array:
    return np.array([logits(seed, image[None])[0].argmax() == label for image, label in zip(batch, labels, strict=True)])


def test_rates_equal_numpy() -> None:
    batch, sigmas = images(40), (32.0, 8.0, 200.0)
    result = probe_noise({"a": linear(1), "b": linear(2)}, batch, LABELS, sigmas, seed=3, batch_size=16)
    clean = {name: oracle(seed, batch, LABELS) for name, seed in (("a", 1), ("b", 2))}
    common = clean["a"] & clean["b"]
    assert clean["a"].all()
    assert 0 < common.sum() < 40
    assert (result.n, result.n_common, result.failures) == (40, common.sum(), {})
    for target, (name, seed) in zip(result.targets, (("a", 1), ("b", 2)), strict=True):
        assert target.name == name
        assert target.queries == 160
        assert target.clean is not None
        assert target.clean.value == clean[name].mean()
        for rates, sigma in zip(target.noise, sigmas, strict=True):
            right = oracle(seed, noisy_images(batch, sigma, 3), LABELS)
            for got, counted in (
                (rates.accuracy, np.ones(40, bool)),
                (rates.defense_rate, clean[name]),
                (rates.accuracy_on_common, common),
            ):
                assert got is not None
                assert (got.successes, got.n) == (right[counted].sum(), counted.sum())
                assert (got.low, got.high) == wilson(got.successes, got.n)
    assert min(rates.accuracy.value for target in result.targets for rates in target.noise if rates.accuracy and rates.accuracy.value) < 0.9


def test_every_target_sees_the_same_images_within_the_range() -> None:
    seen: dict[str, list[Array]] = {"a": [], "b": []}

    def recording(name: str) -> Any:
        def target(batch: Array) -> Any:
            seen[name].append(batch.copy())
            return logits(1, batch).argmax(axis=1)

        return target

    batch_sizes: list[int] = []
    probe_noise({"a": recording("a"), "b": recording("b")}, images(40), LABELS, [4, 32], batch_size=16, on_batch=batch_sizes.append)
    np.testing.assert_array_equal(np.concatenate(seen["a"]), np.concatenate(seen["b"]))
    assert [len(batch) for batch in seen["a"]] == [16, 16, 8] * 3
    assert all(0 <= batch.min() <= batch.max() <= 1 for batch in seen["a"])
    assert sum(batch_sizes) == 2 * 3 * 40


def test_the_json_has_the_documented_fields() -> None:
    result = probe_noise({"a": linear(1)}, images(40), LABELS, seed=5)
    output = json.loads(json.dumps(result.json(), allow_nan=False))
    assert output["schema"] == "defensemble.probe.noise/1"
    assert output["sigmas"] == [1, 2, 4, 8, 12, 16, 20, 24, 28, 32]
    assert (output["seed"], output["data"]["n"], output["data"]["n_common"]) == (5, 40, 40)
    assert len(output["data"]["sha256"]) == 64
    first = output["targets"][0]["noise"][0]
    assert first["defense_rate_source_fooled"] is None
    assert set(first["accuracy"]) == {"value", "successes", "n", "low", "high"}


def test_the_digest_covers_images_labels_and_their_order() -> None:
    def digest(batch: Array, labels: Array) -> str:
        return probe_noise({"a": linear(1)}, batch, labels, [8]).data_digest

    same = digest(images(40), LABELS)
    assert digest(images(40), LABELS.astype(np.int32)) == same
    assert len({same, digest(images(40)[::-1], LABELS), digest(images(40), LABELS[::-1]), digest(images(39), LABELS[:39])}) == 4


def failing_after(calls: int) -> Any:
    left = [calls]

    def target(batch: Array) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise NotReadyError("server stopped")
        return logits(1, batch).argmax(axis=1)

    return target


def test_a_failed_target_has_null_rates_from_then_on() -> None:
    result = probe_noise({"good": linear(1), "bad": failing_after(2)}, images(40), LABELS, [8, 16, 32], batch_size=40)
    good, bad = result.targets
    assert result.failures == {"bad": "NotReadyError: server stopped"}
    assert good.failure is None
    assert all(rates.accuracy_on_common is not None for rates in good.noise)
    assert bad.noise[0].accuracy is not None
    assert [rates.accuracy for rates in bad.noise[1:]] == [None, None]
    assert bad.queries == 80
    assert result.json()["targets"][1]["noise"][2]["accuracy"] is None


def test_a_target_that_never_responded_leaves_no_common_images() -> None:
    result = probe_noise({"good": linear(1), "bad": failing_after(0)}, images(40), LABELS, [8])
    assert result.n_common is None
    assert result.targets[1].clean is None
    assert result.targets[0].noise[0].accuracy is not None
    assert result.targets[0].noise[0].accuracy_on_common is None


def test_a_served_model_is_a_target() -> None:
    transport = house()
    with Client("fake", transport=transport) as client:
        result = probe_noise(
            {"alpha": target_from_model(client, "alpha"), "default": target_from_model(client)}, images(40), LABELS, [8], batch_size=8
        )
    assert result.targets[0].clean is not None
    assert result.targets[0].clean.value == 1
    assert transport.images["ensemble"] == 81


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"images": images(40).astype(np.float64)}, "images | float32"),
        ({"images": images(40)[0]}, "images | shape"),
        ({"images": images(40) * 2}, "images | [0, 1]"),
        ({"labels": LABELS[:3]}, "labels | 40 integers"),
        ({"labels": LABELS.astype(float)}, "labels | 40 integers"),
        ({"images": images(0), "labels": LABELS[:0]}, "at least one"),
        ({"sigmas": [8, 0]}, "sigmas | positive"),
        ({"sigmas": [float("nan")]}, "sigmas | positive"),
        ({"sigmas": [float("inf")]}, "sigmas | 2550 | 1/255 | inf"),
        ({"sigmas": [8, 1e308]}, "sigmas | 2550 | 1/255 | 1e+308"),
        ({"sigmas": []}, "sigmas | one or more"),
        ({"sigmas": [8, 8]}, "sigmas | one or more"),
        ({"seed": -1}, "seed | 0 or more"),
        ({"batch_size": 0}, "batch_size | at least 1"),
        ({"targets": {}}, "no targets"),
        ({"targets": {"a": lambda batch: logits(1, batch)}}, "40 class indices"),
        ({"targets": {"a": lambda batch: np.zeros(len(batch))}}, "40 class indices"),
    ],
)
def test_probe_noise_rejects_invalid_arguments(change: dict[str, Any], facts: str) -> None:
    arguments: dict[str, Any] = {"targets": {"a": linear(1)}, "images": images(40), "labels": LABELS, **change}
    with raises(InputError, facts):
        probe_noise(**arguments)

"""Averages of several networks as one source, compared with numpy and with finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from defensemble_training import AveragedLogits, AveragedProbabilities, SpecError, attack
from tests.support.attacked import batch, defective_resnet, one_thread as one_thread, small_net
from tests.support.facts import raises


def softmax(module: nn.Module, images: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    with torch.no_grad():
        logits = module(images).double().numpy()
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("weights", [None, [2, 1, 1], [0.1, 7.0, 0.1]])
def test_softmax_is_the_weighted_mean_of_probabilities(weights: list[float] | None) -> None:
    modules, (images, _) = [small_net(1), defective_resnet(2), small_net(3)], batch()
    share = np.full(3, 1 / 3) if weights is None else np.array(weights) / sum(weights)
    expected = np.tensordot(share, np.stack([softmax(module, images) for module in modules]), axes=1)
    averaged = AveragedProbabilities(modules, weights)
    assert np.abs(softmax(averaged, images) - expected).max() < 1e-6
    with torch.no_grad():
        assert np.abs(averaged(images).numpy() - np.log(expected)).max() < 1e-5


def test_gradient_equals_finite_differences() -> None:
    """In float64, and away from the kinks of ReLU, where a difference has no limit."""
    averaged, (images, labels) = AveragedProbabilities([linear(1), linear(2)], [3, 1]).double(), batch(2)
    origin = images.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(functional.cross_entropy(averaged(origin), labels, reduction="sum"), origin)

    def loss(moved: torch.Tensor) -> float:
        probabilities = (3 * softmax(averaged.sources[0], moved) + softmax(averaged.sources[1], moved)) / 4
        return float(-np.log(probabilities[np.arange(2), labels]).sum())

    for index in np.ndindex(2, 1, 8, 8):
        step = torch.zeros_like(origin)
        step[index] = 1e-5
        with torch.no_grad():
            expected = (loss(origin + step) - loss(origin - step)) / 2e-5
        assert abs(float(gradient[index]) - expected) < 1e-6


def linear(seed: int) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    return module


def test_gradient_survives_probabilities_that_underflow() -> None:
    """Of the true class in both networks: a logarithm of the averaged softmax would be infinite."""
    sources = [linear(1), linear(2)]
    with torch.no_grad():
        for source in sources:
            source[1].bias.copy_(torch.tensor([-400.0, 0.0, 0.0]))  # type: ignore[index]
    images, labels = batch()[0], torch.zeros(12, dtype=torch.int64)
    moved = attack("fgsm8", AveragedProbabilities(sources), images, labels)
    assert (moved != images).any()


def test_probabilities_and_logits_average_to_different_attacks() -> None:
    sources, (images, labels) = [small_net(1), defective_resnet(2)], batch()
    assert not torch.equal(*(attack("pgd16", kind(sources), images, labels) for kind in (AveragedLogits, AveragedProbabilities)))
    one = attack("pgd16", AveragedProbabilities(sources[:1]), images, labels)
    assert (one - attack("pgd16", sources[0], images, labels)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("weights", "facts"),
    [([1.0], "one weight per module | 2 | got 1"), ([1.0, 0.0], "above 0 | got 0.0"), ([1.0, float("nan")], "above 0 | nan")],
)
def test_invalid_averages_are_rejected(weights: list[float], facts: str) -> None:
    with raises(SpecError, facts):
        AveragedProbabilities([small_net(), small_net()], weights)
    for kind in (AveragedLogits, AveragedProbabilities):
        with raises(SpecError, f"{kind.__name__} | at least one module"):
            kind([])

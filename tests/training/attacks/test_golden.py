"""The attacks compared with Foolbox, numpy, and the definition of CW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from defensemble_training import ATTACKS, attack
from tests.support.attacked import batch, carlini_wagner, defective_resnet, fgsm, foolbox, mifgsm, one_thread as one_thread, pgd, small_net

sources = pytest.mark.parametrize("make", [small_net, defective_resnet])


def by_foolbox(method: Any, module: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    model = foolbox().PyTorchModel(module, bounds=(0, 1), device="cpu")
    examples: torch.Tensor = method(model, images, labels, epsilons=epsilon)[0]
    return examples


@sources
@pytest.mark.parametrize("epsilon", [1 / 255, 8 / 255, 0.3])
def test_fgsm_equals_foolbox_bit_for_bit(make: Callable[[], nn.Module], epsilon: float) -> None:
    module, (images, labels) = make(), batch()
    expected = by_foolbox(foolbox().attacks.LinfFastGradientAttack(random_start=False), module, images, labels, epsilon)
    assert torch.equal(fgsm(module, images, labels, epsilon), expected)
    assert not torch.equal(expected, images)


@sources
@pytest.mark.parametrize("name", ["table2-pgd", "table3-pgd", "pgd16", "pgd2-16", "pgd32", "mnist-pgd", "table12-pgd4"])
def test_pgd_equals_foolbox_bit_for_bit(make: Callable[[], nn.Module], name: str) -> None:
    module, (images, labels), preset = make(), batch(), ATTACKS[name]
    assert preset.epsilon is not None
    method = foolbox().attacks.LinfPGD(abs_stepsize=preset.step_size, steps=preset.steps, random_start=False)
    assert torch.equal(attack(name, module, images, labels), by_foolbox(method, module, images, labels, preset.epsilon))


@sources
@pytest.mark.parametrize("name", ["mifgsm16", "mifgsm64-tiny-imagenet"])
def test_mifgsm_equals_foolbox_with_l1_normalisation(make: Callable[[], nn.Module], name: str) -> None:
    module, (images, labels), preset = make(), batch(), ATTACKS[name]
    assert preset.epsilon is not None

    class Normalised(foolbox().attacks.LinfMomentumIterativeFastGradientMethod):  # type: ignore[misc]
        def normalize(self, gradients: Any, **_: Any) -> Any:
            return gradients / gradients.abs().sum(axis=(1, 2, 3), keepdims=True)

    expected = {
        method: by_foolbox(method(abs_stepsize=preset.step_size, steps=preset.steps, momentum=1.0), module, images, labels, preset.epsilon)
        for method in (Normalised, foolbox().attacks.LinfMomentumIterativeFastGradientMethod)
    }
    ours = attack(name, module, images, labels)
    assert torch.equal(ours, expected.pop(Normalised))
    (unnormalised,) = expected.values()
    assert not torch.equal(ours, unnormalised), "Foolbox now divides by the l1 norm: compare with it directly"


def test_mifgsm_against_numpy() -> None:
    random = np.random.default_rng(3)
    weight, bias = random.normal(size=(3, 64)), random.normal(size=3)
    linear = nn.Linear(64, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))
    images, labels = batch(20)
    epsilon, step_size, momentum = 0.1, 0.017, 0.7

    origin = images.numpy().astype(np.float64).reshape(20, 64)
    current, velocity = origin.copy(), np.zeros_like(origin)
    for _ in range(9):
        scores = np.exp(current @ weight.T + bias)
        gradient = (scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[labels.numpy()]) @ weight
        velocity = momentum * velocity + gradient / np.abs(gradient).sum(axis=1, keepdims=True)
        current = np.clip(np.clip(current + step_size * np.sign(velocity), origin - epsilon, origin + epsilon), 0, 1)

    ours = mifgsm(nn.Sequential(nn.Flatten(), linear), images, labels, epsilon, step_size, 9, momentum)
    assert np.abs(ours.numpy().reshape(20, 64) - current).max() < 1e-6


def test_mifgsm_without_momentum_is_pgd() -> None:
    module, (images, labels) = small_net(), batch()
    assert torch.equal(mifgsm(module, images, labels, 0.1, 0.02, 6, momentum=0), pgd(module, images, labels, 0.1, 0.02, 6))


class FixedMargin(nn.Module):
    """Two logits: a constant for class 0, and ten times the output of a network for class 1."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin, self.network = margin, small_net()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = 10 * self.network(images)[:, :1]
        return torch.cat([torch.full_like(logits, self.margin), logits], dim=1)


def test_mifgsm_weighs_small_and_large_gradients_equally() -> None:
    """The margin changes the gradient's length (e^-40 or 1), not its direction. (Foolbox's helper divides by at least 1e-12.)"""
    images, _ = batch(40)
    labels = torch.zeros(40, dtype=torch.int64)
    examples = [mifgsm(FixedMargin(margin), images, labels, 0.3, 0.05, 12) for margin in (0, 40)]
    assert (examples[0] - examples[1]).abs().max() < 1e-6


def test_cw_reaches_the_margin_and_is_closer_than_fgsm() -> None:
    module, (images, _) = small_net(), batch()
    with torch.no_grad():
        labels = module(images).argmax(dim=1)
    moved = carlini_wagner(module, images, labels, confidence=0.1, search_steps=8, steps=200, step_size=0.05)
    assert 0 <= moved.min()
    assert moved.max() <= 1
    with torch.no_grad():
        logits = module(moved)
    true = logits[torch.arange(len(labels)), labels]
    other = logits.masked_fill(functional.one_hot(labels, 3).bool(), -torch.inf).amax(dim=1)
    assert (other - true >= 0.1 - 1e-5).all()
    one_step = fgsm(module, images, labels, 0.3)
    with torch.no_grad():
        fooled = module(one_step).argmax(dim=1) != labels
    assert fooled.any()
    ours, theirs = ((part - images)[fooled].flatten(1).norm(dim=1) for part in (moved, one_step))
    assert (ours < theirs).all()


def test_cw_returns_images_unchanged_if_it_fails() -> None:
    module, (images, labels) = small_net(), batch()
    assert torch.equal(carlini_wagner(module, images, labels, confidence=1e6, search_steps=1, steps=3), images)

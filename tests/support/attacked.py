"""What the tests of attacks share: small sources with images, and Foolbox, whose import warns of scipy's namespaces."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from defensemble_training import AttackPreset, attack, build
from tests.support.untrained import tiny_spec


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads wait for each other on a busy machine: at a load of 7 on 2 cores, 67 s of their time did not do what one does in 6 s."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def foolbox() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return import_module("foolbox")


def fgsm(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    return attack(AttackPreset("test", "fgsm", epsilon=epsilon), module, images, labels)


def pgd(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    step_size: float,
    steps: int,
    random_start: bool = False,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    preset = AttackPreset("test", "pgd", epsilon=epsilon, step_size=step_size, steps=steps, random_start=random_start)
    return attack(preset, module, images, labels, generator=generator)


def mifgsm(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: float, step_size: float, steps: int, momentum: float = 1.0
) -> torch.Tensor:
    preset = AttackPreset("test", "mifgsm", epsilon=epsilon, step_size=step_size, steps=steps, momentum=momentum)
    return attack(preset, module, images, labels)


def carlini_wagner(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    confidence: float = 0.0,
    search_steps: int = 30,
    steps: int = 1000,
    step_size: float = 0.01,
) -> torch.Tensor:
    preset = AttackPreset("test", "cw", step_size=step_size, steps=steps, confidence=confidence, search_steps=search_steps)
    return attack(preset, module, images, labels)


def small_net(seed: int = 0) -> nn.Module:
    """A convolutional network of 3 classes with BatchNorm, whose statistics are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4 * 4, 3))
        )
        module.train()
        with torch.no_grad():
            module(torch.rand(16, 1, 8, 8))
    return module.eval()


def defective_resnet(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(tiny_spec()).eval()


def batch(count: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 1, 8, 8), some values exactly 0 and 1, and labels of 3 classes."""
    random = np.random.default_rng(seed)
    images = np.clip(random.random((count, 1, 8, 8), dtype=np.float32) * np.float32(1.4) - np.float32(0.2), 0, 1)
    return torch.from_numpy(images), torch.from_numpy(random.integers(0, 3, count))

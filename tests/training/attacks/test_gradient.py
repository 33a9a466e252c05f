"""The attacks stay within their norm and range for any input, and leave the attacked module unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional

from defensemble_training import ATTACKS, AveragedLogits, SpecError, TrainingError, attack
from tests.support.attacked import batch, carlini_wagner, defective_resnet, fgsm, mifgsm, one_thread as one_thread, pgd, small_net
from tests.support.facts import raises

Attack = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
SHORT_CW = partial(carlini_wagner, search_steps=4, steps=30, step_size=0.05)
EVERY_ATTACK: dict[str, Attack] = {
    "fgsm": partial(fgsm, epsilon=0.1),
    "pgd": partial(pgd, epsilon=0.1, step_size=0.03, steps=4),
    "mifgsm": partial(mifgsm, epsilon=0.1, step_size=0.03, steps=4),
    "cw": SHORT_CW,
}
every_attack = pytest.mark.parametrize("name", EVERY_ATTACK)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    values = st.lists(st.sampled_from([0.0, 1e-7, 0.1, 0.3, 1 / 3, 0.5, 0.7, 200 / 255, 1 - 2**-24, 1.0]), min_size=64, max_size=64)
    images = torch.tensor([draw(values) for _ in range(2)], dtype=torch.float32).reshape(2, 1, 8, 8)
    return images, torch.tensor(draw(st.lists(st.integers(0, 2), min_size=2, max_size=2)))


NET = small_net(5)
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)
nn.init.normal_(LINEAR[1].weight, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
nn.init.zeros_(LINEAR[1].bias)  # type: ignore[arg-type]


@given(batches(), st.floats(0, 1), st.floats(1e-3, 1), st.integers(1, 4), st.sampled_from(["fgsm", "pgd", "start", "mifgsm"]))
def test_within_norm_and_range(given_batch: Any, epsilon: float, step_size: float, steps: int, which: str) -> None:
    images, labels = given_batch
    if which == "fgsm":
        moved = fgsm(NET, images, labels, epsilon)
    elif which == "mifgsm":
        moved = mifgsm(NET, images, labels, epsilon, step_size, steps)
    else:
        moved = pgd(NET, images, labels, epsilon, step_size, steps, which == "start", torch.Generator().manual_seed(steps))
    assert moved.dtype == torch.float32
    assert moved.shape == images.shape
    assert 0 <= moved.min()
    assert moved.max() <= 1
    assert (moved.double() - images.double()).abs().max() <= epsilon + 1e-7


@given(batches(), st.floats(0, 1))
def test_fgsm_never_lowers_the_loss_of_a_linear_model(given_batch: Any, epsilon: float) -> None:
    images, labels = given_batch
    before, after = (
        functional.cross_entropy(LINEAR(part), labels, reduction="none") for part in (images, fgsm(LINEAR, images, labels, epsilon))
    )
    assert (after >= before - 1e-5).all()


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mifgsm"])
def test_epsilon_0_returns_the_images(name: str) -> None:
    module, (images, labels) = small_net(), batch()
    method: Any = EVERY_ATTACK[name]
    assert torch.equal(method(module, images, labels, epsilon=0), images)


@every_attack
def test_attacks_are_deterministic_and_do_not_change_their_input(name: str) -> None:
    module, (images, labels) = small_net(), batch()
    before = images.clone(), labels.clone()
    first = EVERY_ATTACK[name](module, images, labels)
    torch.rand(3)
    assert torch.equal(EVERY_ATTACK[name](module, images, labels), first)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert not first.requires_grad
    assert first.grad_fn is None


@every_attack
@pytest.mark.parametrize("gradients_before", [False, True])
def test_attacks_leave_the_module_unchanged(name: str, gradients_before: bool) -> None:
    module, (images, labels) = small_net(), batch()
    module.train()
    module[1].eval()  # type: ignore[index]
    module[0].bias.requires_grad_(False)  # type: ignore[index]
    if gradients_before:
        module(images).sum().backward()
    modes = [submodule.training for submodule in module.modules()]
    gradients = [parameter.grad if parameter.grad is None else parameter.grad.clone() for parameter in module.parameters()]
    requires_grad = [parameter.requires_grad for parameter in module.parameters()]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    EVERY_ATTACK[name](module, images, labels)
    assert [submodule.training for submodule in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == requires_grad
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None and parameter.grad is not None:
            assert torch.equal(parameter.grad, gradient)


@every_attack
def test_result_does_not_depend_on_the_mode_of_the_module(name: str) -> None:
    module, (images, labels) = small_net(), batch()
    expected = EVERY_ATTACK[name](module, images, labels)
    assert torch.equal(EVERY_ATTACK[name](module.train(), images, labels), expected)
    assert module.training


@every_attack
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_attacks_work_without_grad_mode(name: str, guard: Callable[[], Any]) -> None:
    module, (images, labels) = small_net(), batch()
    expected = EVERY_ATTACK[name](module, images, labels)
    with guard():
        assert torch.equal(EVERY_ATTACK[name](module, images.clone(), labels.clone()), expected)


def test_random_start_depends_only_on_the_generator() -> None:
    module, (images, labels) = small_net(), batch()

    def run(seed: int) -> torch.Tensor:
        return attack("adversarial-training", module, images, labels, generator=torch.Generator().manual_seed(seed))

    state = torch.random.get_rng_state()
    first = run(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(run(1), first)
    assert not torch.equal(run(2), first)
    assert not torch.equal(first, attack("table2-pgd", module, images, labels))
    with raises(SpecError, "generator | None | manual_seed"):
        attack("adversarial-training", module, images, labels)


def test_random_start_is_uniform_in_the_ball() -> None:
    images = torch.full((400, 1, 8, 8), 0.5)
    labels = torch.zeros(400, dtype=torch.int64)
    # Steps that are too small to change anything return the start.
    start = pgd(small_net(), images, labels, 0.2, 1e-12, 1, random_start=True, generator=torch.Generator().manual_seed(0))
    counts = np.histogram((start - images).numpy(), bins=10, range=(-0.2, 0.2))[0]
    assert counts.sum() == 25_600
    assert np.abs(counts - 2560).max() < 5 * 2560**0.5


def test_more_steps_raise_the_loss_more() -> None:
    module, (images, labels) = small_net(), batch(40)

    def loss(moved: torch.Tensor) -> float:
        with torch.no_grad():
            return functional.cross_entropy(module(moved), labels).item()

    clean, one_step, many_steps = loss(images), loss(fgsm(module, images, labels, 0.1)), loss(pgd(module, images, labels, 0.1, 0.02, 20))
    assert clean < one_step <= many_steps + 1e-6


def test_presets_run_by_name() -> None:
    module, (images, labels) = small_net(), batch()
    assert torch.equal(attack("fgsm16", module, images, labels), fgsm(module, images, labels, 16 / 255))
    assert torch.equal(attack("pgd2-16", module, images, labels), pgd(module, images, labels, 16 / 255, 2 / 255, 10))
    assert torch.equal(attack("mifgsm16", module, images, labels), mifgsm(module, images, labels, 16 / 255, 1 / 255, 40, 1.0))
    short = dataclasses.replace(ATTACKS["cw"], confidence=0.5, search_steps=3, steps=20, step_size=0.05)
    assert torch.equal(attack(short, module, images, labels), carlini_wagner(module, images, labels, 0.5, 3, 20, 0.05))
    with pytest.raises(SpecError, match="AttackPreset"):
        attack("pgd", module, images, labels)


def test_cw_without_foolbox(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "foolbox", None)
    module, (images, labels) = small_net(), batch()
    with raises(TrainingError, "cw | Foolbox | pip install 'foolbox>=3.3.4'"):
        attack("cw", module, images, labels)


def test_averaged_logits() -> None:
    first, second = small_net(1), defective_resnet(2)
    module, (images, labels) = AveragedLogits([first, second]), batch()
    with torch.no_grad():
        assert torch.allclose(module(images), (first(images) + second(images)) / 2, atol=1e-6)
    moved = pgd(module, images, labels, 0.1, 0.02, 5)
    assert not first.training
    assert all(parameter.grad is None for parameter in module.parameters())
    with torch.no_grad():
        before, after = (functional.cross_entropy(module(part), labels) for part in (images, moved))
    assert after > before
    with raises(SpecError, "AveragedLogits | at least one"):
        AveragedLogits([])


def test_memory_format_is_kept() -> None:
    module, labels = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3)), torch.tensor([0, 1])
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = pgd(module, images, labels, 0.1, 0.02, 3)
    moved = pgd(module, images.to(memory_format=torch.channels_last), labels, 0.1, 0.02, 3)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved, expected)


IMAGES, LABELS = batch(4)


@every_attack
@pytest.mark.parametrize(
    ("images", "labels", "facts"),
    [
        (IMAGES * 1.5, LABELS, "images | [0, 1] | 0 to 1.5"),
        (IMAGES - 0.25, LABELS, "images | [0, 1] | -0.25 to 0.75"),
        (IMAGES.masked_fill(IMAGES > 0.9, torch.nan), LABELS, "images | [0, 1] | nan to nan"),
        (IMAGES.double(), LABELS, "images | float32 (N, C, H, W) | torch.float64 (4, 1, 8, 8)"),
        (IMAGES[0], LABELS, "images | float32 | torch.float32 (1, 8, 8)"),
        (IMAGES[:0], LABELS[:0], "images | at least 1 | torch.float32 (0, 1, 8, 8)"),
        (IMAGES, LABELS[:3], "labels | int64 (4,) | torch.int64 (3,)"),
        (IMAGES, LABELS[:, None], "labels | int64 (4,) | torch.int64 (4, 1)"),
        (IMAGES, LABELS.float(), "labels | int64 (4,) | torch.float32 (4,)"),
        (IMAGES, LABELS.to("meta"), "labels | device | cpu | meta"),
        (IMAGES, LABELS - 3, "labels | got -"),
        (IMAGES, torch.full((4,), 3), "labels | 0 to 2 | got 3"),
    ],
)
def test_invalid_images_and_labels_are_rejected(name: str, images: torch.Tensor, labels: torch.Tensor, facts: str) -> None:
    with raises(SpecError, facts):
        EVERY_ATTACK[name](small_net(), images, labels)


def test_invalid_arguments_are_rejected() -> None:
    module = small_net()
    with raises(SpecError, "epsilon | [0, 1] | got 8"):
        fgsm(module, IMAGES, LABELS, 8)
    with raises(SpecError, "step_size | (0, 1] | got 0"):
        pgd(module, IMAGES, LABELS, 0.1, 0, 3)
    with raises(SpecError, "steps | at least 1 | 0"):
        mifgsm(module, IMAGES, LABELS, 0.1, 0.01, 0)
    with raises(SpecError, "momentum | [0, 2] | -1"):
        mifgsm(module, IMAGES, LABELS, 0.1, 0.01, 3, momentum=-1)
    with raises(SpecError, "search_steps | at least 1 | 0"):
        carlini_wagner(module, IMAGES, LABELS, search_steps=0)


class Constant(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 3)


def test_invalid_modules_are_rejected() -> None:
    with pytest.raises(SpecError, match="differentiable"):
        fgsm(Constant(), IMAGES, LABELS, 0.1)
    with raises(SpecError, "4 images | (4, K) | (4, 8, 8, 8)"):
        fgsm(small_net()[0], IMAGES, LABELS, 0.1)  # type: ignore[index]


@every_attack
def test_module_with_nan_weight_is_rejected(name: str) -> None:
    module = small_net()
    with torch.no_grad():
        module[-1].weight[0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(TrainingError, match=r"(gradient|logits) .*not finite"):
        EVERY_ATTACK[name](module, IMAGES, LABELS)
    assert all(parameter.requires_grad for parameter in module.parameters())

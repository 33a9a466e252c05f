"""Attacks through the expected gradient over masks: an oracle of single draws, and masks that are restored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from defensemble_training import (
    AttackPreset,
    AveragedProbabilities,
    RedrawnMasks,
    SpecError,
    attack,
    build,
    defect_mask,
    defect_masks,
    mask_digest,
)
from defensemble_training.models.defect import Defect
from tests.support.attacked import batch, one_thread as one_thread, small_net
from tests.support.facts import raises
from tests.support.untrained import tiny_spec

SPECS = [tiny_spec(mask_seed=1), tiny_spec(mask_seed=2, keep=0.6, pattern="channel", sampling="exact")]
PGD = AttackPreset("test", "pgd", epsilon=0.1, step_size=0.03, steps=3)


def networks() -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [build(spec).eval() for spec in SPECS]


def test_gradient_is_the_mean_over_single_masks() -> None:
    modules, (images, labels) = networks(), batch()
    source = AveragedProbabilities(modules)
    masks = RedrawnMasks(list(zip(modules, SPECS, strict=True)), draws=4, seed=7)

    def gradient() -> torch.Tensor:
        leaf = images.clone().requires_grad_(True)
        return torch.autograd.grad(functional.cross_entropy(source(leaf), labels, reduction="sum"), leaf)[0]

    single, digests = [], set()
    with masks.restored():
        for draw in range(4):
            masks.redraw(step=2, draw=draw)
            single.append(gradient().numpy())
            digests.add(tuple(mask_digest(defect_masks(module)) for module in modules))
        mean = masks.mean_gradient(2, gradient)
    assert len(digests) == 4
    assert np.abs(mean.numpy() - np.mean(single, axis=0)).max() < 1e-6
    assert np.abs(single[0] - single[1]).max() > 1e-4


def test_fgsm_follows_the_mean_gradient() -> None:
    modules, (images, labels) = networks(), batch()
    masks = RedrawnMasks([(modules[0], SPECS[0])], draws=3)
    moved = attack(AttackPreset("test", "fgsm", epsilon=0.1), modules[0], images, labels, masks=masks)
    with masks.restored():

        def gradient() -> torch.Tensor:
            leaf = images.clone().requires_grad_(True)
            return torch.autograd.grad(functional.cross_entropy(modules[0](leaf), labels, reduction="sum"), leaf)[0]

        expected = (images + 0.1 * masks.mean_gradient(0, gradient).sign()).clamp(0, 1)
    assert (moved - expected).abs().max() < 1e-6


def test_redrawn_masks_have_the_spec_of_their_network() -> None:
    modules = networks()
    before = [defect_masks(module) for module in modules]
    masks = RedrawnMasks(list(zip(modules, SPECS, strict=True)))
    with masks.restored():
        masks.redraw(0, 0)
        redrawn = [defect_masks(module) for module in modules]
    for spec, old, new in zip(SPECS, before, redrawn, strict=True):
        assert {name: mask.shape for name, mask in old.items()} == {name: mask.shape for name, mask in new.items()}
        assert mask_digest(old) != mask_digest(new)
        kept = np.concatenate([mask.ravel() for mask in new.values()])
        assert kept.dtype == np.bool_
        assert abs(kept.mean() - spec.keep) < 5 * (0.25 / kept.size) ** 0.5
    shape = before[0]["stem.defect.mask"].shape
    path = "stem.defect"
    assert not np.array_equal(redrawn[0][f"{path}.mask"], defect_mask(shape, 0.3, seed=SPECS[0].mask_seed, name=path))


def test_example_does_not_depend_on_the_batch() -> None:
    modules, (images, labels) = networks(), batch()
    masks = RedrawnMasks([(modules[0], SPECS[0])], draws=2)
    moved = attack(PGD, modules[0], images, labels, masks=masks)
    assert (attack(PGD, modules[0], images[5:7], labels[5:7], masks=masks) - moved[5:7]).abs().max() < 1e-6
    other = RedrawnMasks([(modules[0], SPECS[0])], draws=2, seed=1)
    assert not torch.equal(attack(PGD, modules[0], images, labels, masks=other), moved)


@pytest.mark.parametrize("is_broken", [False, True])
def test_masks_are_restored(is_broken: bool) -> None:
    modules, (images, labels) = networks(), batch()
    layers = [layer for layer in modules[0].modules() if isinstance(layer, Defect)]
    before = [(layer.mask, layer.mask.clone()) for layer in layers]
    masks = RedrawnMasks([(modules[0], SPECS[0])], draws=2)
    if is_broken:
        with torch.no_grad():
            next(modules[0].parameters()).fill_(torch.inf)
        with pytest.raises(Exception, match="not finite"):
            attack(PGD, modules[0], images, labels, masks=masks)
    else:
        attack(PGD, modules[0], images, labels, masks=masks)
    for layer, (mask, values) in zip(layers, before, strict=True):
        assert layer.mask is mask
        assert torch.equal(mask, values)


def test_invalid_settings_are_rejected() -> None:
    module, (images, labels) = networks()[0], batch()
    with raises(SpecError, "draws | at least 1 | 0"):
        RedrawnMasks([(module, SPECS[0])], draws=0)
    with raises(SpecError, "seed | at least 0 | -1"):
        RedrawnMasks([(module, SPECS[0])], seed=-1)
    with raises(SpecError, "defective"):
        RedrawnMasks([(small_net(), tiny_spec(keep=1.0))])
    with raises(SpecError, "cw | fgsm"):
        attack("cw", module, images, labels, masks=RedrawnMasks([(module, SPECS[0])]))

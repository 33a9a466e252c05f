"""White-box attacks in torch: perturb images so that a source network misclassifies them.

FGSM (arXiv 1412.6572), PGD (1706.06083) and MIFGSM (1710.06081) are implemented here, in l_inf: a step along the sign of the
cross-entropy's gradient, then a clip to the epsilon ball, then to [0, 1], in Foolbox's order of operations. CW (1608.04644), in l2, is
Foolbox's.

A module maps images float32 (N, C, H, W) in [0, 1] to logits (N, K). It is attacked in eval mode, in adversarial training too (as in the
Madry lab's `robustness`); in train mode every gradient would change BatchNorm's running statistics. The mode of every submodule is restored
afterwards, and no parameter gains a gradient. Pass the bare module, not a wrapper that reduces gradients across processes:
DistributedDataParallel's forward pass expects a backward pass, which an attack never runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from ..errors import SpecError, TrainingError
from ..evaluation import in_eval_mode
from .foolbox_cw import l2_carlini_wagner
from .presets import AttackPreset, attack_preset
from .redrawn_masks import RedrawnMasks


def attack(
    preset: str | AttackPreset,
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    masks: RedrawnMasks | None = None,
) -> torch.Tensor:
    """Attack a batch of images.

    Args:
        preset: A name in `ATTACKS`, or your own settings. `adversarial-training` is the attack that adversarial training uses.
        module: The source network.
        images: float32 (N, C, H, W) in [0, 1].
        labels: True classes int64 (N,), on the images' device.
        generator: Generator of the random start, if the preset has one; or one per image. It may be on another device than the images.
        masks: Masks to redraw for each gradient; the module's own ones are restored afterwards. Not for `cw`.

    Returns:
        Adversarial examples with the shape, range and device of `images`, detached.

    Raises:
        SpecError: The preset does not exist, the images or labels are invalid, a random start has no generator, or masks are to be redrawn
            in `cw`.
        TrainingError: The module's logits or gradients are not finite, or `cw` is used without Foolbox.

    Example:
        >>> examples = attack("pgd16", module, images, labels)
        >>> (examples - images).abs().max()  # at most 16 / 255
    """
    preset = attack_preset(preset)
    if preset.algorithm == "cw":
        if masks is not None:
            raise SpecError("masks cannot be redrawn in cw, whose steps are Foolbox's; use fgsm, pgd or mifgsm")
        return _carlini_wagner(preset, module, images, labels)
    if preset.random_start and generator is None:
        raise SpecError("a random start must have a generator, got None; pass torch.Generator().manual_seed(seed)")
    with nullcontext() if masks is None else masks.restored():
        return _gradient_ascent(preset, module, images, labels, generator if preset.random_start else None, masks)


def _gradient_ascent(
    preset: AttackPreset,
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    masks: RedrawnMasks | None,
) -> torch.Tensor:
    """Take steps along the gradient's sign, starting at a uniform point of the epsilon ball if there is a generator."""
    epsilon = preset.epsilon or 0.0
    step_size = epsilon if preset.step_size is None else preset.step_size
    highest_label = _check_batch(images, labels)
    with _attack_mode(module):
        origin, labels = images.detach().clone(), labels.clone()
        current = origin
        if generator is not None:
            noise = _uniform(origin.shape, generator).to(origin.device)
            current = (origin + (2 * noise - 1) * epsilon).clamp(0, 1)
        direction = torch.zeros_like(origin)
        finite = torch.ones((), dtype=torch.bool, device=origin.device)
        for step in range(preset.steps or 1):
            if masks is None:
                gradient = _gradient(module, current, labels, highest_label)
            else:
                gradient = masks.mean_gradient(step, partial(_gradient, module, current, labels, highest_label))
            finite &= torch.isfinite(gradient).all()
            if preset.momentum is None:
                direction = gradient
            else:
                # Divide by the sum over an image, as in the paper and the authors' code; a mean would not change any sign. (Foolbox
                # 3.3.4's MIFGSM sums the signs of the gradients, which is a different attack.)
                norm = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
                direction = preset.momentum * direction + gradient / norm
            current = origin + (current + step_size * direction.sign() - origin).clamp(-epsilon, epsilon)
            current = current.clamp(0, 1)
        if not bool(finite):  # torch's sign of NaN is 0, so the images would be returned unchanged
            raise TrainingError("the gradient of the module's loss is not finite; attack a module with finite weights and logits")
        return current


def _uniform(shape: torch.Size, generator: torch.Generator | Sequence[torch.Generator]) -> torch.Tensor:
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise SpecError(f"a random start must have one generator, or one for each of the {shape[0]} images, got {len(generator)}")
    return torch.stack([torch.rand(shape[1:], generator=one, device=one.device) for one in generator])


def _carlini_wagner(preset: AttackPreset, module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the images closest in l2 that Foolbox's CW attack finds to be misclassified by the margin.

    Images for which it finds none are returned unchanged (Foolbox returns black ones, which could pass for a success). The search stops by
    the loss of the whole batch, so the result for an image depends on the other images.
    """
    highest_label = _check_batch(images, labels)
    # Foolbox calls backward(), which would accumulate gradients in these parameters.
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with _attack_mode(module):
        origin, labels = images.detach().clone(), labels.clone()
        with torch.no_grad():
            logits = _checked_logits(module(origin), origin, highest_label)
        if not bool(torch.isfinite(logits).all()):  # Foolbox would return black images
            raise TrainingError("the module's logits for the images are not finite; attack a module with finite weights")
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            examples = l2_carlini_wagner(module, origin, labels, preset)
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
        is_failed = (examples == 0).all(dim=(1, 2, 3), keepdim=True)
        return torch.where(is_failed, origin, examples.clamp(0, 1)).detach()


@contextmanager
def _attack_mode(module: nn.Module) -> Iterator[None]:
    with in_eval_mode(module), torch.inference_mode(False), torch.enable_grad():
        yield


def _gradient(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, highest_label: int) -> torch.Tensor:
    images = images.detach().requires_grad_(True)
    logits = _checked_logits(module(images), images, highest_label)
    # A sum, so that the gradient of an image does not depend on the batch size.
    loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
    gradient = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise SpecError("the module must be differentiable with respect to its images, but its logits have no gradient for them")
    return gradient


def _check_batch(images: torch.Tensor, labels: torch.Tensor) -> int:
    """Check the images and labels of `attack`, and return the highest label."""
    if images.ndim != 4 or images.dtype != torch.float32 or images.numel() == 0:
        raise SpecError(f"images must be float32 (N, C, H, W) with N of at least 1, got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise SpecError(f"labels must be int64 ({len(images)},), one per image, got {labels.dtype} {tuple(labels.shape)}")
    if labels.device != images.device:
        raise SpecError(f"labels must be on the images' device, {images.device}, got {labels.device}")
    low, high = images.detach().aminmax()
    # One transfer for all four, because each transfer waits for the device.
    extremes = torch.stack([low.double(), high.double(), labels.min().double(), labels.max().double()]).tolist()
    if not (extremes[0] >= 0 and extremes[1] <= 1):
        raise SpecError(
            f"images must be in [0, 1] (normalisation is the module's first layer), got values from {extremes[0]:g} to {extremes[1]:g}"
        )
    if extremes[2] < 0:
        raise SpecError(f"labels must be classes from 0, got {extremes[2]:.0f}")
    return int(extremes[3])


def _checked_logits(logits: torch.Tensor, images: torch.Tensor, highest_label: int) -> torch.Tensor:
    if logits.ndim != 2 or len(logits) != len(images):
        raise SpecError(f"the module must return logits ({len(images)}, K) for {len(images)} images, got {tuple(logits.shape)}")
    if highest_label >= logits.shape[1]:
        raise SpecError(f"labels must be 0 to {logits.shape[1] - 1}, because the module has {logits.shape[1]} classes, got {highest_label}")
    return logits

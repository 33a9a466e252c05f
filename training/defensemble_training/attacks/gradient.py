"""White-box attacks on torch: images of a source network, moved so that it errs; they are also what surrogates are attacked with.

FGSM (arXiv 1412.6572), PGD (1706.06083) and MIFGSM (1710.06081) are ours, in l_inf: a step along the sign of the cross-entropy's gradient,
then a clip to the epsilon ball, then to [0, 1], in Foolbox's order of operations. CW (1608.04644), in l2, is Foolbox's.

A module takes images float32 (N, C, H, W) in [0, 1] to logits (N, K). While images are crafted it is in eval mode, in adversarial training
too (as in the Madry lab's `robustness`): else every gradient would move BatchNorm's running statistics. Afterwards each submodule is in the
mode that it was in, and no parameter has a gradient that it did not have. Give the bare module, not a wrapper that reduces gradients
between processes (DistributedDataParallel's forward expects a backward that never comes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from ..errors import SpecError, TrainingError
from ..evaluation import in_eval_mode
from .foolbox_cw import l2_carlini_wagner
from .presets import AttackPreset, attack_preset


def attack(
    preset: str | AttackPreset, module: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Run an attack by its name or settings; `adversarial-training` is what that trains on, batch by batch.

    Args:
        preset: a name in `ATTACKS`, or settings of one's own.
        module: the source.
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,), the true classes, on the images' device.
        generator: of the random start, where the preset has one; it may be on another device than the images.

    Returns:
        Images as `images`, detached.

    Raises:
        SpecError: no such preset, images or labels outside of their range, or no generator for a random start.
        TrainingError: the module's logits or gradients are not finite, or Foolbox is missing for `cw`.
    """
    preset = attack_preset(preset)
    if preset.algorithm == "cw":
        return _carlini_wagner(preset, module, images, labels)
    if preset.random_start and generator is None:
        raise SpecError("a random start must have a generator, got None; give torch.Generator().manual_seed(seed)")
    return _ascended(preset, module, images, labels, generator if preset.random_start else None)


class AveragedLogits(nn.Module):
    """Several sources as one (the paper's Table 8): images to the mean of the modules' logits.

    Raises:
        SpecError: no modules.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        if not modules:
            raise SpecError("AveragedLogits must have at least one module, got none")
        self.sources = nn.ModuleList(modules)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K)."""
        return torch.stack([source(images) for source in self.sources]).mean(dim=0)


def _ascended(
    preset: AttackPreset, module: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """Move images by steps along the gradient's sign, from a uniform point of the epsilon ball where there is a generator."""
    epsilon = preset.epsilon or 0.0
    step_size = epsilon if preset.step_size is None else preset.step_size
    highest_label = _check_batch(images, labels)
    with _crafting(module):
        origin, labels = images.detach().clone(), labels.clone()
        current = origin
        if generator is not None:
            noise = torch.rand(origin.shape, generator=generator, device=generator.device).to(origin.device)
            current = (origin + (2 * noise - 1) * epsilon).clamp(0, 1)
        direction = torch.zeros_like(origin)
        finite = torch.ones((), dtype=torch.bool, device=origin.device)
        for _ in range(preset.steps or 1):
            gradient = _gradient(module, current, labels, highest_label)
            finite &= torch.isfinite(gradient).all()
            if preset.momentum is None:
                direction = gradient
            else:
                # Divided by the sum over an image, as in the paper and the authors' code; a mean would change no sign. (Foolbox 3.3.4's
                # MIFGSM sums the gradients' signs, which is another attack.)
                norm = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
                direction = preset.momentum * direction + gradient / norm
            current = origin + (current + step_size * direction.sign() - origin).clamp(-epsilon, epsilon)
            current = current.clamp(0, 1)
        if not bool(finite):  # torch's sign of NaN is 0: the images would come back as they were
            raise TrainingError("the gradient of the module's loss is not finite; attack a module whose weights and logits are finite")
        return current


def _carlini_wagner(preset: AttackPreset, module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the images nearest in l2 that Foolbox's CW finds to be wrong by a margin.

    An image for which nothing is found is returned as it was (Foolbox returns a black one, which may pass for a success). The search stops
    by the loss of the whole batch, so that the result for an image depends on the other images.
    """
    highest_label = _check_batch(images, labels)
    # Foolbox calls backward(), which would add to the gradients of whatever asks for them.
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with _crafting(module):
        origin, labels = images.detach().clone(), labels.clone()
        with torch.no_grad():
            logits = _checked_logits(module(origin), origin, highest_label)
        if not bool(torch.isfinite(logits).all()):  # Foolbox would answer black images
            raise TrainingError("the module's logits for the images are not finite; attack a module whose weights are finite")
        try:
            for parameter in asking:
                parameter.requires_grad_(False)
            found = l2_carlini_wagner(module, origin, labels, preset)
        finally:
            for parameter in asking:
                parameter.requires_grad_(True)
        missed = (found == 0).all(dim=(1, 2, 3), keepdim=True)
        return torch.where(missed, origin, found.clamp(0, 1)).detach()


@contextmanager
def _crafting(module: nn.Module) -> Iterator[None]:
    with in_eval_mode(module), torch.inference_mode(False), torch.enable_grad():
        yield


def _gradient(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, highest_label: int) -> torch.Tensor:
    images = images.detach().requires_grad_(True)
    logits = _checked_logits(module(images), images, highest_label)
    # Summed, so that the gradient of an image does not depend on how many there are.
    loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
    gradient = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise SpecError("the module must be differentiable with respect to its images, but its logits do not depend on them by a gradient")
    return gradient


def _check_batch(images: torch.Tensor, labels: torch.Tensor) -> int:
    """Raise a `SpecError` unless images and labels are what `attack` takes; return the highest label."""
    if images.ndim != 4 or images.dtype != torch.float32 or images.numel() == 0:
        raise SpecError(f"images must be float32 (N, C, H, W), at least one, got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise SpecError(f"labels must be int64 ({len(images)},), one an image, got {labels.dtype} {tuple(labels.shape)}")
    if labels.device != images.device:
        raise SpecError(f"labels must be on the images' device, {images.device}, got {labels.device}")
    low, high = images.detach().aminmax()
    # One transfer for all, since each waits for the device.
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
        raise SpecError(f"the module must take {len(images)} images to logits ({len(images)}, K), got {tuple(logits.shape)}")
    if highest_label >= logits.shape[1]:
        raise SpecError(f"labels must be classes from 0 to {logits.shape[1] - 1}, as the module has {logits.shape[1]}, got {highest_label}")
    return logits

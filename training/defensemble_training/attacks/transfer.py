"""How an attack on one network is carried to others: adversarial examples as an array."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ..data.dataset import Images, Labels
from ..errors import SpecError
from ..evaluation import check_images, device_of
from ..validation import checked_integer
from .gradient import attack
from .presets import AttackPreset, attack_preset


def adversarial_examples(
    source: nn.Module,
    images: Images,
    labels: Labels,
    preset: str | AttackPreset,
    *,
    batch_size: int = 256,
    eight_bit: bool = False,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Attack a source with images, batch by batch, on the device that the source is on.

    All images are attacked, also those that the source gets wrong when clean: rates choose afterwards.

    Args:
        source: a module from images float32 (N, C, H, W) in [0, 1] to logits; `AveragedLogits` makes one of several.
        images: float32 (n, C, H, W) in [0, 1].
        labels: integers (n,), the true classes.
        preset: a name in `ATTACKS`, or settings of one's own.
        batch_size: images at once, at least 1.
        eight_bit: whether to round to the 256 grey levels, as the authors' examples were by being saved as PNG.
        seed: of a random start.
        on_progress: called after every batch with the images done and n.

    Returns:
        float32 (n, C, H, W) in [0, 1], in the order of the images.

    Raises:
        SpecError: no such preset, or images, labels, batch_size or seed outside of their range.
        TrainingError: the source's logits or gradients are not finite, or Foolbox is missing for `cw`.
    """
    preset = attack_preset(preset)
    batch_size = checked_integer("batch_size", batch_size, minimum=1)
    generator = torch.Generator().manual_seed(checked_integer("seed", seed, minimum=0, maximum=2**63 - 1))
    check_images(images, in_range=True)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise SpecError(f"labels must be integers ({len(images)},), one an image, got {labels.dtype} {labels.shape}")

    device = device_of(source)
    examples = np.empty(images.shape, dtype=np.float32)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        # Copied: torch warns of arrays that it may not write to, such as memory-mapped ones.
        batch = torch.from_numpy(np.array(images[part])).to(device)
        classes = torch.from_numpy(labels[part].astype(np.int64)).to(device)
        examples[part] = attack(preset, source, batch, classes, generator=generator).cpu().numpy()
        if on_progress is not None:
            on_progress(min(start + batch_size, len(images)), len(images))
    return round_to_8_bits(examples) if eight_bit else examples


def round_to_8_bits(images: Images) -> Images:
    """Round images in [0, 1] to the nearest of 256 grey levels, k / 255 in float32: what a PNG of them gives back."""
    rounded: Images = np.rint(images * np.float32(255)) / np.float32(255)
    return rounded

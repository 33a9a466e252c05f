"""Create adversarial examples as an array, to test other networks with them."""

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
    """Attack a source network with images, batch by batch, on the source's device.

    All images are attacked, also those that the source misclassifies without an attack.

    Args:
        source: Maps images float32 (N, C, H, W) in [0, 1] to logits. `AveragedLogits` combines several networks.
        images: float32 (n, C, H, W) in [0, 1].
        labels: True classes, integers (n,).
        preset: A name in `ATTACKS`, or your own settings.
        batch_size: Images per batch, at least 1.
        eight_bit: Whether to round to 256 grey levels. The authors' examples were rounded when they were saved as PNG.
        seed: Seed of a random start.
        on_progress: Called after every batch with the number of images done and n.

    Returns:
        Adversarial examples float32 (n, C, H, W) in [0, 1], in the order of the images.

    Raises:
        SpecError: The preset does not exist, or an argument is out of range.
        TrainingError: The source's logits or gradients are not finite, or `cw` is used without Foolbox.

    Example:
        >>> images, labels = dataset.test.images(), dataset.test.labels
        >>> examples = adversarial_examples(module, images, labels, "pgd16")
    """
    preset = attack_preset(preset)
    batch_size = checked_integer("batch_size", batch_size, minimum=1)
    generator = torch.Generator().manual_seed(checked_integer("seed", seed, minimum=0, maximum=2**63 - 1))
    check_images(images, in_range=True)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise SpecError(f"labels must be integers ({len(images)},), one per image, got {labels.dtype} {labels.shape}")

    device = device_of(source)
    examples = np.empty(images.shape, dtype=np.float32)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        # A copy: torch warns about read-only arrays, such as memory-mapped ones.
        batch = torch.from_numpy(np.array(images[rows])).to(device)
        classes = torch.from_numpy(labels[rows].astype(np.int64)).to(device)
        examples[rows] = attack(preset, source, batch, classes, generator=generator).cpu().numpy()
        if on_progress is not None:
            on_progress(min(start + batch_size, len(images)), len(images))
    return round_to_8_bits(examples) if eight_bit else examples


def round_to_8_bits(images: Images) -> Images:
    """Round images in [0, 1] to 256 grey levels, k / 255 in float32, as saving them as PNG does."""
    rounded: Images = np.rint(images * np.float32(255)) / np.float32(255)
    return rounded

"""Create adversarial examples as an array, to test other networks with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from ..data.dataset import Images, Labels
from ..errors import SpecError
from ..evaluation import check_images, device_of
from ..seeding import make_generator
from ..validation import checked_integer
from .gradient import attack
from .presets import AttackPreset, attack_preset
from .redrawn_masks import RedrawnMasks


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
        seed: Seed of a random start, which does not depend on the batch size.
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
    seed = checked_integer("seed", seed, minimum=0, maximum=2**63 - 1)
    check_images(images, in_range=True)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise SpecError(f"labels must be integers ({len(images)},), one per image, got {labels.dtype} {labels.shape}")

    examples = np.empty(images.shape, dtype=np.float32)
    for start in range(0, len(images), batch_size):
        batch = range(start, min(start + batch_size, len(images)))
        examples[start : batch.stop] = attack_rows(preset, source, images[start : batch.stop], labels[start : batch.stop], batch, seed=seed)
        if on_progress is not None:
            on_progress(batch.stop, len(images))
    return round_to_8_bits(examples) if eight_bit else examples


def attack_rows(
    preset: AttackPreset,
    source: nn.Module,
    images: Images,
    labels: Labels,
    rows: Sequence[int],
    *,
    seed: int,
    masks: RedrawnMasks | None = None,
) -> Images:
    """Attack one batch of images on the source's device. The random start of an image depends on the seed and its row only.

    Args:
        preset: The attack.
        source: The source network.
        images: float32 (n, C, H, W) in [0, 1].
        labels: True classes, integers (n,).
        rows: Position of each image in its dataset.
        seed: Seed of a random start.
        masks: Masks to redraw for each gradient.
    """
    device = device_of(source)
    # A copy: torch warns about read-only arrays, such as memory-mapped ones.
    batch, classes = torch.from_numpy(np.array(images)).to(device), torch.from_numpy(labels.astype(np.int64)).to(device)
    generators = [make_generator(seed, "random start", row) for row in rows] if preset.random_start else None
    examples: Images = attack(preset, source, batch, classes, generator=generators, masks=masks).cpu().numpy()
    return examples


def round_to_8_bits(images: Images) -> Images:
    """Round images in [0, 1] to 256 grey levels, k / 255 in float32, as saving them as PNG does."""
    rounded: Images = np.rint(images * np.float32(255)) / np.float32(255)
    return rounded

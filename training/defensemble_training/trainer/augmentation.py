"""Select and augment the images of a training step.

Everything depends only on the seed and the step, so a resumed run needs no saved state and all processes agree.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from ..seeding import make_generator


def epoch_order(seed: int, epoch: int, count: int, batch_size: int) -> tuple[torch.Tensor, ...]:
    """Return the image indices of each step of an epoch: a permutation split into nearly equal batches.

    The batches are nearly equal because BatchNorm fails on a last batch of one image.
    """
    return torch.randperm(count, generator=make_generator(seed, "epoch", epoch)).tensor_split(steps_per_epoch(count, batch_size))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of steps per epoch."""
    return max(1, round(count / batch_size))


def shift_images(
    pixels: torch.Tensor, up: torch.Tensor, left: torch.Tensor, mirrored: torch.Tensor, margin: tuple[int, int]
) -> torch.Tensor:
    """Shift images by whole pixels, padded with zeros, and mirror some of them.

    Args:
        pixels: (N, C, H, W).
        up: Vertical shifts, int64 (N,): 0 is down by the margin, twice the margin is up by it.
        left: Horizontal shifts, int64 (N,): 0 is right by the margin, twice the margin is left by it.
        mirrored: Images to mirror, bool (N,).
        margin: Largest shift (rows, columns) in pixels.
    """
    count, channels, height, width = pixels.shape
    padded = functional.pad(pixels, (margin[1], margin[1], margin[0], margin[0]))
    positions = torch.arange(width, device=pixels.device)
    columns = torch.where(mirrored[:, None], width - 1 - positions, positions) + left[:, None]
    rows = torch.arange(height, device=pixels.device) + up[:, None]
    # Indexed so that the result has NCHW strides. With one channel, a permuted result also counts as channels-last, and torch 2.13's
    # oneDNN then corrupts memory in the backward pass (batch 65, two threads, AVX-512: "double free or corruption", every time).
    return padded[
        torch.arange(count, device=pixels.device)[:, None, None, None],
        torch.arange(channels, device=pixels.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def augment(
    pixels: torch.Tensor, generator: torch.Generator, *, largest_shift: float, flip: bool, batch_size: int, rows: slice
) -> torch.Tensor:
    """Shift and mirror the images of one process at random, on their device.

    The random numbers are drawn for the whole batch, so they do not depend on the number of processes.

    Args:
        pixels: The process's images (n, C, H, W).
        generator: Random generator of the step, on the images' device.
        largest_shift: Largest shift as a fraction of height and width.
        flip: Whether to mirror half of the images.
        batch_size: Images in the whole batch.
        rows: The process's rows of the batch.
    """
    margin = round(pixels.shape[2] * largest_shift), round(pixels.shape[3] * largest_shift)
    size, device = (batch_size,), pixels.device
    up = torch.randint(0, 2 * margin[0] + 1, size, generator=generator, device=device)[rows]
    left = torch.randint(0, 2 * margin[1] + 1, size, generator=generator, device=device)[rows]
    mirrored = (torch.rand(size, generator=generator, device=device) < 0.5)[rows] if flip else torch.zeros_like(up, dtype=torch.bool)
    if margin == (0, 0) and not flip:
        return pixels
    return shift_images(pixels, up, left, mirrored, margin)


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """Convert images to float32 in [0, 1]: uint8 divided by 255, float32 unchanged."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels

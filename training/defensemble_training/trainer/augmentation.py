"""What a step sees: which images, moved and mirrored how.

All of it depends only on the seed and the step: nothing has to be remembered where a run is resumed, and the processes of a run agree.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from ..seeding import make_generator


def epoch_order(seed: int, epoch: int, count: int, batch_size: int) -> tuple[torch.Tensor, ...]:
    """Return the images of each step of an epoch: a permutation cut into nearly equal batches.

    Nearly equal, because a last batch of one image would have no variance for BatchNorm.
    """
    return torch.randperm(count, generator=make_generator(seed, "epoch", epoch)).tensor_split(steps_per_epoch(count, batch_size))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of steps of an epoch."""
    return max(1, round(count / batch_size))


def shift_images(
    pixels: torch.Tensor, up: torch.Tensor, left: torch.Tensor, mirrored: torch.Tensor, margin: tuple[int, int]
) -> torch.Tensor:
    """Move each image (N, C, H, W) by whole pixels, zeros coming in, and mirror those of `mirrored`, bool (N,).

    `up` and `left`, int64 (N,), are from 0 (down or right by the margin of rows or columns) to twice the margin (up or left by it).
    """
    count, channels, height, width = pixels.shape
    padded = functional.pad(pixels, (margin[1], margin[1], margin[0], margin[0]))
    along = torch.arange(width, device=pixels.device)
    columns = torch.where(mirrored[:, None], width - 1 - along, along) + left[:, None]
    rows = torch.arange(height, device=pixels.device) + up[:, None]
    # Indexed so that the strides are those of NCHW. With one channel, a permuted result counts as channels-last too, and torch 2.13's
    # oneDNN then corrupts memory in the backward pass (batch 65, two threads, AVX-512: "double free or corruption", every time).
    return padded[
        torch.arange(count, device=pixels.device)[:, None, None, None],
        torch.arange(channels, device=pixels.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def augment(
    pixels: torch.Tensor, generator: torch.Generator, *, largest_shift: float, flip: bool, whole: int, share: slice
) -> torch.Tensor:
    """Move and mirror the images (n, C, H, W) of one process, its `share` of the `whole` batch, on their device.

    The draws are those of the whole batch, whatever the number of processes.
    """
    margin = round(pixels.shape[2] * largest_shift), round(pixels.shape[3] * largest_shift)
    device = pixels.device
    up = torch.randint(0, 2 * margin[0] + 1, (whole,), generator=generator, device=device)[share]
    left = torch.randint(0, 2 * margin[1] + 1, (whole,), generator=generator, device=device)[share]
    mirrored = (torch.rand((whole,), generator=generator, device=device) < 0.5)[share] if flip else torch.zeros_like(up, dtype=torch.bool)
    if margin == (0, 0) and not flip:
        return pixels
    return shift_images(pixels, up, left, mirrored, margin)


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """Return images as float32 in [0, 1]: of uint8 a 255th, of float32 themselves."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels

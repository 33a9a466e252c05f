"""The check of images as every part of this package takes them: float32 (N, C, H, W) in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

from defensemble_images import image_fault

from .errors import ExportError


def check_images(images: object, shape: Sequence[int | None], purpose: str, *, error: type[ExportError] = ExportError) -> None:
    """Refuse what is not at least one float32 image in [0, 1].

    Args:
        images: an array (N, C, H, W).
        shape: the expected (C, H, W); None for an extent that is free.
        purpose: what the images are for, as errors call it.
        error: the class of the error.

    Raises:
        ExportError: they are something else, or the graph takes no images.
    """
    if len(shape) != 3:
        raise error(f"the {purpose} needs images (N, C, H, W); this graph takes {len(shape) + 1} dimensions")
    fault = image_fault(images, f"the images for the {purpose}", shape=shape, taker="the graph")
    if fault is not None:
        raise error(fault)

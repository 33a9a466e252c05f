"""Examples to show: an image, its perturbed version, and the difference, as PNG files in base64."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError

GALLERY_CHANNELS = (1, 3)
"""Numbers of channels that a PNG file shows as they are."""
PER_TARGET = 6
"""Examples per target: those of the first images, in the order of rows and conditions."""


def gallery_entry(
    clean: NDArray[np.float32],
    adversarial: NDArray[np.float32],
    *,
    target: str,
    row: int,
    condition: str,
    label: int,
    clean_class: int,
    adversarial_class: int,
    distance: float | None = None,
    entropy_clean: float | None = None,
    entropy_adversarial: float | None = None,
) -> dict[str, Any]:
    """Return one example of `ProbeOutcome.gallery`, as JSON.

    The difference is shown around grey: 0.5 + `amplification` * (adversarial - clean), where the largest difference is black or white.

    Args:
        clean: float32 (C, H, W) in [0, 1], C = 1 or 3.
        adversarial: The perturbed image, of the same shape.
        target: Name of the target.
        row: Position of the image in the dataset.
        condition: Name of the condition.
        label: The image's class.
        clean_class: The class that the target gives the clean image.
        adversarial_class: The class that it gives the perturbed one.
        distance: Norm of the difference.
        entropy_clean: Entropy of the clean prediction in nats.
        entropy_adversarial: Entropy of the other.

    Raises:
        InputError: The images have another number of channels, or not the same shape.

    Example:
        >>> gallery_entry(image, noisy, target="ensemble", row=3, condition="sigma 8", label=1, clean_class=1, adversarial_class=2)
    """
    if clean.ndim != 3 or clean.shape[0] not in GALLERY_CHANNELS or adversarial.shape != clean.shape:
        raise InputError(f"two images (C, H, W) of the same shape with C = 1 or 3 can be shown; got {clean.shape} and {adversarial.shape}")
    difference = adversarial.astype(np.float64) - clean
    largest = float(np.abs(difference).max(initial=0.0))
    amplification = 0.5 / largest if largest else 1.0
    return {
        "target": target,
        "row": row,
        "condition": condition,
        "label": label,
        "clean_class": clean_class,
        "adversarial_class": adversarial_class,
        "clean_png": _png(clean),
        "adversarial_png": _png(adversarial),
        "difference_png": _png(0.5 + amplification * difference),
        "amplification": amplification,
        "distance": distance,
        "entropy_clean": entropy_clean,
        "entropy_adversarial": entropy_adversarial,
    }


def _png(image: NDArray[Any]) -> str:
    from PIL import Image

    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()

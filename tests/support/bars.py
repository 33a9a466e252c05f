"""A tiny dataset that a tiny network learns."""

from __future__ import annotations

import numpy as np

from defensemble_training import Dataset, Part


def bars_dataset() -> Dataset:
    """Three classes: a bright bar at the top, in the middle, at the bottom; 67 training and 30 test images of 1x8x8."""
    random = np.random.default_rng(0)
    labels = np.arange(97) % 3
    images = random.random((97, 1, 8, 8), dtype=np.float32) * np.float32(0.5)
    for image, label in zip(images, labels, strict=True):
        image[0, 3 * label : 3 * label + 2] = 1.0
    train, test = Part(images[:67], labels[:67]), Part(images[67:], labels[67:])
    return Dataset("bars", ("top", "middle", "bottom"), train, test, (0.5,), (0.25,), flip=False, source="drawn", digest="0123456789abcdef")

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defensemble import InputError
from defensemble.probes.gallery import gallery_entry
from tests.support.facts import raises

FACTS: dict[str, Any] = {"target": "alpha", "row": 5, "condition": "sigma 8", "label": 1, "clean_class": 1, "adversarial_class": 2}


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_an_entry_shows_both_images_and_the_amplified_difference(channels: int, mode: str) -> None:
    rng = np.random.default_rng(channels)
    clean = rng.random((channels, 5, 7), dtype=np.float32) * np.float32(0.9)
    adversarial = clean + rng.uniform(-0.02, 0.02, clean.shape).astype(np.float32)
    adversarial = np.clip(adversarial, 0, 1)
    adversarial[0, 2, 3] = clean[0, 2, 3] + np.float32(0.04)
    entry = gallery_entry(clean, adversarial, **FACTS, distance=0.04, entropy_clean=0.1)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert {key: entry[key] for key in FACTS} == FACTS
    assert (entry["distance"], entry["entropy_clean"], entry["entropy_adversarial"]) == (0.04, 0.1, None)
    for key, image in (("clean_png", clean), ("adversarial_png", adversarial)):
        shown = decoded(entry[key])
        assert (shown.mode, shown.size) == (mode, (7, 5))
        values = np.asarray(shown).reshape(5, 7, channels) / 255
        np.testing.assert_allclose(values, image.transpose(1, 2, 0), atol=0.5 / 255 + 1e-6)
    difference = np.asarray(decoded(entry["difference_png"])).reshape(5, 7, channels)
    assert entry["amplification"] == pytest.approx(0.5 / 0.04, rel=1e-5)
    assert difference[2, 3, 0] == 255
    expected = 127.5 + 255 * entry["amplification"] * (adversarial - clean).transpose(1, 2, 0)
    np.testing.assert_allclose(difference, expected, atol=0.51)


def test_equal_images_have_a_grey_difference() -> None:
    clean = np.full((1, 2, 2), 0.3, np.float32)
    entry = gallery_entry(clean, clean, **FACTS)
    assert entry["amplification"] == 1
    assert set(decoded(entry["difference_png"]).tobytes()) <= {127, 128}


@pytest.mark.parametrize(("clean", "other"), [((2, 4, 4), (2, 4, 4)), ((3, 4, 4), (3, 4, 5)), ((4, 4), (4, 4))])
def test_images_that_a_png_cannot_show_are_refused(clean: tuple[int, ...], other: tuple[int, ...]) -> None:
    with raises(InputError, f"{clean} | {other}"):
        gallery_entry(np.zeros(clean, np.float32), np.zeros(other, np.float32), **FACTS)

"""The 15 common corruptions of Hendrycks & Dietterich (arXiv 1903.12261) at five severities, by the package `corrupt-tta`.

Its strengths are those of ImageNet-C for images of any size. On images of 32x32 pixels they are stronger than those of CIFAR-10-C, so that
the errors compare models with each other and not with published numbers of CIFAR-10-C. Its impulse noise cannot be seeded, so this module
has its own, with the same amounts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import platformdirs
from numpy.typing import NDArray

from defensemble_images.reader import floats_from_pixels

from .._exceptions import InputError, MissingExtraError
from .base import CLEAN, Condition, LabelledImages, OnProgress, Perturb, PerturbationProbe, ProbeImage, digest_of_all
from .image_cache import cache_path, cached_images, check_space

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
SEVERITIES = (1, 2, 3, 4, 5)
_IMPULSES = (0.03, 0.06, 0.09, 0.17, 0.27)  # share of the values that become 0 or 1, by severity
_LIBRARIES = ("corrupt_tta", "numpy", "cv2", "PIL", "skimage", "scipy")  # modules: OpenCV comes from one of several packages
_GREEN = 1


@dataclass(frozen=True)
class Corruptions(PerturbationProbe):
    """Accuracy under common corruptions. An image's corruption depends only on seed, corruption, severity and the image's row.

    Images are rounded to 8 bits before and after. An image of one channel is corrupted as a grey image of three, of which the green one is
    kept. The corrupted images are kept in files: see `image_cache`.

    Attributes:
        corruptions: Names of the corruptions.
        severities: Severities, 1 to 5.
        cache: Folder of the corrupted images; None for the user's cache. They depend on no model and no result, so that each later probe
            of the same images uses them, wherever it writes its result.

    Raises:
        InputError: A name or a severity is unknown.

    Example:
        >>> measure(Corruptions(("fog", "frost"), severities=(1, 3, 5)), targets, data)
    """

    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[int, ...] = SEVERITIES
    cache: Path | None = field(default=None, compare=False)

    name: ClassVar[str] = "corruptions"
    paper: ClassVar[str | None] = "arXiv:1903.12261"

    def __post_init__(self) -> None:
        for what, values, known in (("corruptions", self.corruptions, CORRUPTIONS), ("severities", self.severities, SEVERITIES)):
            if not values or len(set(values)) != len(values) or not set(values) <= set(known):
                raise InputError(
                    f"{what} must be different ones of {', '.join(map(str, known))}; got {', '.join(map(str, values)) or 'none'}"
                )

    @property
    def title(self) -> str:
        """What is done to the images."""
        return "Common corruptions"

    @property
    def threat_model(self) -> str:
        """What is done to an image."""
        return (
            "No attacker: common corruptions in the strengths of ImageNet-C, whatever the size of the image, rounded to 8 bits; one draw "
            "for each image, corruption and severity, the same for every target."
        )

    def settings(self) -> dict[str, Any]:
        """Return the settings without the folder of the files."""
        return {name: value for name, value in super().settings().items() if name != "cache"}

    def conditions(self) -> Sequence[Condition]:
        """Return a condition for each corruption and severity."""
        return [
            Condition(f"{corruption} {severity}", float(severity), "severity", corruption)
            for corruption in self.corruptions
            for severity in self.severities
        ]

    def prepare(self, data: LabelledImages, rows: NDArray[np.int64], on_progress: OnProgress) -> Perturb:
        """Corrupt the images into files, unless they are there."""
        folder = self.cache or platformdirs.user_cache_path("defensemble") / "corruptions"
        shape = (len(data), *data.images.shape[1:])
        conditions = self.conditions()
        _check_channels(shape[1])
        _functions()
        common = {
            "images": data.digest,
            "rows": digest_of_all(rows),
            "seed": self.seed,
            "libraries": {name: importlib.import_module(name).__version__ for name in _LIBRARIES},
        }
        origins = {condition.name: {"condition": condition.name, **common} for condition in conditions}
        missing = [condition for condition in conditions if not cache_path(folder, _file_name(condition), origins[condition.name]).exists()]
        check_space(folder, len(missing) * data.images.size)
        files: dict[str, NDArray[np.uint8]] = {}
        for number, condition in enumerate(conditions):

            def make(index: int, condition: Condition = condition) -> NDArray[np.uint8]:
                row = int(rows[index])
                return _corrupted(data.images[index], condition, self.rng(condition, row))

            def on_done(done: int, before: int = number * len(data)) -> None:
                on_progress("corrupting images", before + done, len(conditions) * len(data))

            files[condition.name] = cached_images(folder, _file_name(condition), origins[condition.name], shape, make, on_done)
        positions = {int(row): index for index, row in enumerate(rows)}
        return lambda image, condition, rng: floats_from_pixels(np.asarray(files[condition.name][positions[image.row]]))

    def perturb(self, image: ProbeImage, condition: Condition, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the corrupted image, without the files."""
        _check_channels(len(image.pixels))
        return floats_from_pixels(_corrupted(image.pixels, condition, rng))

    @classmethod
    def summary(
        cls, source: Mapping[str, Any], rows: NDArray[np.int64], labels: NDArray[np.int64], predicted: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, Any]:
        """Return the mean errors: per corruption over its severities, and of the corruptions.

        The mean is not divided by the errors of AlexNet, as the mCE of the paper is. Its 95 % interval is that of a mean over images.
        """
        wrong: dict[str, list[NDArray[np.bool_]]] = {}
        for name, classes in predicted.items():
            if name != CLEAN:
                wrong.setdefault(name.rpartition(" ")[0], []).append(classes != labels)
        by_corruption = {name: np.mean(values, axis=0) for name, values in wrong.items()}
        means = {name: _mean(values) for name, values in by_corruption.items()}
        return {"mean_error": _mean(np.mean(list(by_corruption.values()), axis=0)), "mean_error_by_corruption": means} if means else {}


def _mean(values: NDArray[np.floating[Any]]) -> dict[str, float | int]:
    """Return the mean over images with a normal 95 % interval, which counts the conditions of one image as dependent."""
    mean, n = float(values.mean()), len(values)
    half = 1.96 * float(values.std(ddof=1)) / n**0.5 if n > 1 else 1.0
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "n": n}


def _file_name(condition: Condition) -> str:
    return condition.name.replace(" ", "-")


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise InputError(f"corruptions need images with 1 or 3 channels, got {channels}")


def _corrupted(image: NDArray[np.float32], condition: Condition, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Corrupt an image, float32 (C, H, W). Returns uint8 (C, H, W)."""
    severity = int(condition.value or 0)
    pixels: NDArray[np.uint8] = np.rint(image * np.float32(255)).astype(np.uint8)
    if condition.group == "impulse_noise":
        is_hit = rng.random(pixels.shape) < _IMPULSES[severity - 1]
        pixels[is_hit] = 255 * rng.integers(0, 2, int(is_hit.sum()), np.uint8)
        return pixels
    colour = np.ascontiguousarray(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0))
    function = _functions()[condition.group]
    with _seeded(int(rng.integers(1 << 32))):
        try:
            result = np.asarray(function(colour, severity))
        except (ValueError, ZeroDivisionError, IndexError) as error:  # it needs larger images
            raise InputError(f"{condition.name} cannot be applied to images of {image.shape[1]} x {image.shape[2]}: {error}") from error
    corrupted: NDArray[np.uint8] = np.rint(np.clip(result, 0, 255)).astype(np.uint8).transpose(2, 0, 1)
    return corrupted if len(pixels) == 3 else corrupted[[_GREEN]]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, from which the package draws, and restore its state."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


@cache
def _functions() -> dict[str, Callable[[NDArray[np.uint8], int], NDArray[Any]]]:
    """Return the corruptions of the package by name.

    Raises:
        MissingExtraError: The package or a library that it needs is missing.
    """
    try:
        from corrupt_tta import corruption_dict
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the corruptions need the probes extra ({error}): pip install 'defensemble[probes]'") from error
    except ImportError as error:  # a shared library
        raise MissingExtraError(
            f"OpenCV, which the corruptions use, cannot be loaded ({error}): install the system's libgl1 and libglib2.0-0 (apt-get install "
            "libgl1 libglib2.0-0), or replace it: pip uninstall opencv-python, then pip install opencv-python-headless"
        ) from error
    frost = resources.files("corrupt_tta") / "assets" / "frost"
    missing = [name for name in (f"frost{n}.{'png' if n <= 3 else 'jpg'}" for n in range(1, 7)) if not (frost / name).is_file()]
    if missing:  # the package would return the images without frost
        raise MissingExtraError(f"the package corrupt-tta lacks {', '.join(missing)}: pip install --force-reinstall corrupt-tta")
    return dict(corruption_dict)

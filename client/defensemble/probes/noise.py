"""The noise probe: accuracy under Gaussian noise of increasing strength.

Source: "Defective Convolutional Networks", arXiv 1911.08432, figure 4. There is no attacker.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from ..results.intervals import Rate, rate
from .base import LabelledImages, Target, TargetRunner

SCHEMA = "defensemble.probe.noise/1"
PAPER_SIGMAS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0)
"""In 1/255, as in figure 4 of the paper."""
MAX_SIGMA = 2550.0
"""In 1/255: ten times the range of a pixel, which leaves almost nothing of an image."""
THREAT_MODEL = (
    "no attacker: Gaussian noise of standard deviation sigma, clipped to +-2 sigma, added to the float32 image, then clipped to [0, 1]; "
    "one draw for each image and sigma, the same for every target"
)


def noisy_images(images: NDArray[np.float32], sigma: float, seed: int) -> NDArray[np.float32]:
    """Add Gaussian noise of standard deviation `sigma`/255, clipped to +-2 sigma/255, to images, and clip the result to [0, 1].

    The noise depends only on `seed`, `sigma` and the shape. Source: arXiv 1911.08432, figure 4.

    Args:
        images: float32 (n, C, H, W) in [0, 1].
        sigma: Standard deviation in 1/255.
        seed: Seed of the noise.
    """
    scale = np.float32(sigma / 255)
    generator = np.random.default_rng([seed, int.from_bytes(struct.pack("<d", sigma), "little")])
    noise = generator.standard_normal(images.shape, dtype=np.float32)
    np.clip(noise, -2, 2, out=noise)
    noise *= scale
    noise += images
    return np.clip(noise, 0, 1, out=noise)


@dataclass(frozen=True)
class NoiseRates:
    """The rates of one target at one sigma; None if a target failed.

    Attributes:
        sigma: Standard deviation of the noise in 1/255.
        accuracy: Over all images.
        defense_rate: Over the images that this target classifies correctly without noise.
        accuracy_on_common: Over the images that all targets classify correctly without noise.
    """

    sigma: float
    accuracy: Rate | None
    defense_rate: Rate | None
    defense_rate_source_fooled: None = field(default=None, init=False)  # there is no source network
    accuracy_on_common: Rate | None


@dataclass(frozen=True)
class TargetRates:
    """The rates of one target: without noise, and at each sigma. They end where it failed, for the reason in `failure`."""

    name: str
    clean: Rate | None
    noise: tuple[NoiseRates, ...]
    queries: int
    failure: str | None


@dataclass(frozen=True)
class NoiseResult:
    """The result of the noise probe.

    Attributes:
        seed: Seed of the noise.
        sigmas: Standard deviations in 1/255.
        n: Number of images.
        n_common: Number of images that all targets classify correctly without noise; None if a target failed.
        data_digest: SHA-256 of images and labels.
        duration_s: Duration in seconds.
        targets: The rates of each target.

    Example:
        >>> [(target.name, target.noise[0].accuracy) for target in result.targets if target.failure is None]
    """

    seed: int
    sigmas: tuple[float, ...]
    n: int
    n_common: int | None
    data_digest: str
    duration_s: float
    targets: tuple[TargetRates, ...]

    @property
    def failures(self) -> dict[str, str]:
        """Why targets failed, by name; empty if none failed."""
        return {target.name: target.failure for target in self.targets if target.failure is not None}

    def json(self) -> dict[str, Any]:
        """Return the result as JSON, with a `schema` field. Values that could not be measured are None."""
        return {
            "schema": SCHEMA,
            "probe": "noise",
            "threat_model": THREAT_MODEL,
            "paper": "arXiv:1911.08432, figure 4",
            "seed": self.seed,
            "sigma_unit": "1/255",
            "sigmas": list(self.sigmas),
            "interval": "Wilson, 95 %",
            "data": {"n": self.n, "n_common": self.n_common, "sha256": self.data_digest},
            "duration_s": round(self.duration_s, 3),
            "targets": [{**asdict(target), "noise": [asdict(rates) for rates in target.noise]} for target in self.targets],
        }


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Check standard deviations.

    Raises:
        InputError: They are not distinct, positive, and at most `MAX_SIGMA`, in 1/255.
    """
    for sigma in sigmas:
        if not 0 < sigma <= MAX_SIGMA:
            raise InputError(f"sigmas must be positive and at most {MAX_SIGMA:g}, in 1/255, such as 8; got {sigma:g}")
    if not sigmas or len(set(sigmas)) != len(sigmas):
        raise InputError(f"sigmas must be one or more different numbers, in 1/255; got {list(sigmas)}")


def probe_noise(
    targets: Mapping[str, Target],
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    sigmas: Sequence[float] = PAPER_SIGMAS,
    seed: int = 0,
    *,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> NoiseResult:
    """Measure the accuracy of targets, without and with Gaussian noise. Every target sees the same noise.

    Args:
        targets: The targets by name. After a server error, a target is not called again (see `NoiseResult.failures`).
        images: float32 (n, C, H, W) in [0, 1].
        labels: Class indices (n,).
        sigmas: Standard deviations of the noise in 1/255.
        seed: Seed of the noise.
        batch_size: Images per call.
        on_batch: Called after each call with its number of images.

    Raises:
        InputError: Images, labels, sigmas, the seed or the result of a target are invalid.

    Example:
        >>> targets = {name: target_from_model(client, name) for name in ("ensemble", "alpha")}
        >>> result = probe_noise(targets, images, labels, sigmas=(8, 16, 32))
        >>> result.targets[0].noise[0].accuracy.value
    """
    data = LabelledImages(images, labels)
    check_sigmas(sigmas)
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}")
    started = time.monotonic()
    runner = TargetRunner(dict(targets), batch_size, on_batch)
    clean = {name: _correct(runner, name, data.images, data.labels) for name in targets}
    responded = [correct for correct in clean.values() if correct is not None]
    # None if a target failed: "all targets" then means nothing.
    common = np.logical_and.reduce(responded) if len(responded) == len(clean) else None
    rates: dict[str, list[NoiseRates]] = {name: [] for name in targets}
    for sigma in sigmas:
        noisy = noisy_images(data.images, sigma, seed)
        for name in targets:
            correct = _correct(runner, name, noisy, data.labels)
            rates[name].append(
                NoiseRates(
                    float(sigma),
                    accuracy=None if correct is None else rate(correct),
                    defense_rate=_rate_on(correct, clean[name]),
                    accuracy_on_common=_rate_on(correct, common),
                )
            )
        del noisy  # before the next is created, or there would be three copies of the images
    return NoiseResult(
        seed=seed,
        sigmas=tuple(float(sigma) for sigma in sigmas),
        n=len(data),
        n_common=None if common is None else int(common.sum()),
        data_digest=data.digest,
        duration_s=time.monotonic() - started,
        targets=tuple(
            TargetRates(
                name,
                clean=_rate_on(clean[name], np.ones(len(data), np.bool_)),
                noise=tuple(rates[name]),
                queries=runner.queries[name],
                failure=runner.failures.get(name),
            )
            for name in targets
        ),
    )


def _correct(runner: TargetRunner, name: str, images: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    classes = runner.predict(name, images)
    return None if classes is None else np.asarray(classes == labels)


def _rate_on(correct: NDArray[np.bool_] | None, counted: NDArray[np.bool_] | None) -> Rate | None:
    return None if correct is None or counted is None else rate(correct[counted])

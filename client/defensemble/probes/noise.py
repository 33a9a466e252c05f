"""Gaussian noise: how accuracy falls as it grows.

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
from .base import Data, Target, TargetRunner

SCHEMA = "defensemble.probe.noise/1"
PAPER_SIGMAS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0)
"""In 1/255, as in figure 4 of the paper."""
LARGEST_SIGMA = 2550.0
"""In 1/255: ten times the range of a pixel, where next to nothing is left of an image."""
THREAT_MODEL = (
    "no attacker: Gaussian noise of standard deviation sigma, clipped to +-2 sigma, added to the float32 image, then clipped to [0, 1]; "
    "one draw for each image and sigma, the same for every target"
)


def noisy_images(images: NDArray[np.float32], sigma: float, seed: int) -> NDArray[np.float32]:
    """Images plus Gaussian noise of standard deviation `sigma`/255, clipped to +-2 sigma/255, then to [0, 1]; float32, same shape.

    The noise depends on (seed, sigma) and the shape alone. Source: arXiv 1911.08432, figure 4.
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
    """The rates of one target at one sigma (in 1/255); None where a target failed.

    `accuracy` counts all images, `defense_rate` those that this target gets right when clean, `accuracy_on_common` those that all do.
    """

    sigma: float
    accuracy: Rate | None
    defense_rate: Rate | None
    defense_rate_source_fooled: None = field(default=None, init=False)  # there is no source network
    accuracy_on_common: Rate | None


@dataclass(frozen=True)
class TargetRates:
    """The rates of one target: clean, and at each sigma; `failure` is why there are none from some point on."""

    name: str
    clean: Rate | None
    noise: tuple[NoiseRates, ...]
    queries: int
    failure: str | None


@dataclass(frozen=True)
class NoiseResult:
    """What the noise probe found; sigmas are in 1/255, `n_common` counts the images that all targets get right when clean."""

    seed: int
    sigmas: tuple[float, ...]
    n: int
    n_common: int | None
    data_digest: str
    duration_s: float
    targets: tuple[TargetRates, ...]

    @property
    def failures(self) -> dict[str, str]:
        """Why targets failed, by name; empty where all answered to the end."""
        return {target.name: target.failure for target in self.targets if target.failure is not None}

    def json(self) -> dict[str, Any]:
        """As JSON, with a `schema` field; what could not be measured is None."""
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
            "targets": [{**asdict(target), "noise": [asdict(one) for one in target.noise]} for target in self.targets],
        }


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Raise an `InputError` unless these are different standard deviations, in 1/255, positive and at most `LARGEST_SIGMA`."""
    for sigma in sigmas:
        if not 0 < sigma <= LARGEST_SIGMA:
            raise InputError(f"sigmas must be positive and at most {LARGEST_SIGMA:g}, in 1/255, such as 8, got {sigma:g}")
    if not sigmas or len(set(sigmas)) != len(sigmas):
        raise InputError(f"sigmas must be one or more different numbers, in 1/255, got {list(sigmas)}")


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
    """Asks every target about the images, clean and with noise; images float32 (n, C, H, W) in [0, 1], labels (n,), sigmas in 1/255.

    Every target sees the same noise. A target whose server fails is called no more (see `NoiseResult.failures`); `on_batch` is
    called with the number of images of each answer.

    Raises:
        InputError: Images, labels, sigmas, the seed or a target's answer are not what they must be.
    """
    data = Data(images, labels)
    check_sigmas(sigmas)
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}")
    started = time.monotonic()
    questioner = TargetRunner(dict(targets), batch_size, on_batch)
    clean = {name: _right(questioner, name, data.images, data.labels) for name in targets}
    answered = [right for right in clean.values() if right is not None]
    # None where a target did not answer, since "all" then means nothing.
    common = np.logical_and.reduce(answered) if len(answered) == len(clean) else None
    rates: dict[str, list[NoiseRates]] = {name: [] for name in targets}
    for sigma in sigmas:
        noisy = noisy_images(data.images, sigma, seed)
        for name in targets:
            right = _right(questioner, name, noisy, data.labels)
            rates[name].append(
                NoiseRates(
                    float(sigma),
                    accuracy=None if right is None else rate(right),
                    defense_rate=_rate_on(right, clean[name]),
                    accuracy_on_common=_rate_on(right, common),
                )
            )
        del noisy  # before the next is made: there would be three copies of the images
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
                queries=questioner.queries[name],
                failure=questioner.failures.get(name),
            )
            for name in targets
        ),
    )


def _right(questioner: TargetRunner, name: str, images: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    classes = questioner.classes(name, images)
    return None if classes is None else np.asarray(classes == labels)


def _rate_on(right: NDArray[np.bool_] | None, counted: NDArray[np.bool_] | None) -> Rate | None:
    return None if right is None or counted is None else rate(right[counted])

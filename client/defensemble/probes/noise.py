"""The noise probe: accuracy under random noise of increasing strength, without an attacker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from .base import Condition, PerturbationProbe, ProbeImage

NoiseKind = Literal["gaussian", "uniform", "salt-and-pepper"]
NOISE_KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)
PAPER_SIGMAS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0)
"""In 1/255, as in figure 4 of the paper."""
MAX_SIGMA = 2550.0
"""In 1/255: ten times the range of a pixel, which leaves almost nothing of an image."""
_THREATS = {
    "gaussian": "Gaussian noise of standard deviation sigma, clipped to +-2 sigma, is added to the float32 image",
    "uniform": "uniform noise in +-sqrt(3) sigma, of standard deviation sigma, is added to the float32 image",
    "salt-and-pepper": "pixels become black or white, all channels alike, so many that the mean squared change is about that of sigma",
}


@dataclass(frozen=True)
class Noise(PerturbationProbe):
    """Accuracy under noise. Source of the Gaussian one: arXiv 1911.08432, figure 4.

    Attributes:
        sigmas: Standard deviations in 1/255, positive and different.
        kind: `gaussian` (clipped to +-2 sigma), `uniform`, or `salt-and-pepper`, where a pixel changes with the probability
            `min(1, 3 * (sigma / 255)**2)`: the mean squared change of a uniformly grey pixel that becomes black or white is 1/3.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> measure(Noise((8, 16, 32)), targets, data)
    """

    sigmas: tuple[float, ...] = PAPER_SIGMAS
    kind: NoiseKind = "gaussian"

    name: ClassVar[str] = "noise"
    paper: ClassVar[str | None] = "arXiv:1911.08432, figure 4"

    def __post_init__(self) -> None:
        if self.kind not in NOISE_KINDS:
            raise InputError(f"kind must be one of {', '.join(NOISE_KINDS)}, got {self.kind!r}")
        for sigma in self.sigmas:
            if not 0 < sigma <= MAX_SIGMA:
                raise InputError(f"sigmas must be positive and at most {MAX_SIGMA:g}, in 1/255, such as 8; got {sigma:g}")
        if not self.sigmas or len(set(self.sigmas)) != len(self.sigmas):
            raise InputError(f"sigmas must be one or more different numbers, in 1/255; got {list(self.sigmas)}")

    @property
    def title(self) -> str:
        """The kind of noise."""
        return f"{self.kind.capitalize()} noise"

    @property
    def threat_model(self) -> str:
        """How the noise is made."""
        return f"No attacker: {_THREATS[self.kind]}, then clipped to [0, 1]; one draw for each image and sigma, the same for every target."

    def conditions(self) -> Sequence[Condition]:
        """Return a condition for each sigma."""
        return [self._condition(sigma) for sigma in self.sigmas]

    def extreme(self) -> Condition:
        """Return noise that leaves almost nothing of an image."""
        return self._condition(MAX_SIGMA)

    def _condition(self, sigma: float) -> Condition:
        return Condition(f"sigma {sigma:g}", float(sigma), "1/255", self.kind)

    def perturb(self, image: ProbeImage, condition: Condition, rng: np.random.Generator) -> NDArray[np.float32]:
        """Add the noise of a condition to an image."""
        sigma = np.float32((condition.value or 0.0) / 255)
        shape = image.pixels.shape
        if self.kind == "salt-and-pepper":
            draws = rng.random((1, *shape[1:]), dtype=np.float32)
            share = min(1.0, 3 * float(sigma) ** 2)
            salted = np.where(draws < share / 2, np.float32(0), image.pixels)
            return np.where(draws >= 1 - share / 2, np.float32(1), salted)
        if self.kind == "uniform":
            noise = (2 * rng.random(shape, dtype=np.float32) - 1) * np.float32(3**0.5)
        else:
            noise = np.clip(rng.standard_normal(shape, dtype=np.float32), -2, 2)
        perturbed: NDArray[np.float32] = np.clip(image.pixels + sigma * noise, 0, 1)
        return perturbed

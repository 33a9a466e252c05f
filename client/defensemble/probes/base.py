"""What a probe is: its settings, its conditions, and the one method that perturbs or attacks an image.

A probe is a frozen dataclass, whose fields are its settings. `measure` calls its method, sends the images to the targets in batches, counts
the queries, and computes the rates. A `PerturbationProbe` asks each target once per image and condition. A `QueryAttack` asks it many
times per image, and each query depends on the responses before.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from defensemble_images import image_problem

from .._exceptions import InputError

if TYPE_CHECKING:
    from .outcome import Check
    from .targets import Target

CLEAN = "clean"
"""Name of the condition without a perturbation, which every probe has."""
ADVERSARIAL = "adversarial"
"""Name under which a query attack keeps the responses for its adversarial examples."""
NOISE = "random noise"
"""Group of the conditions with random noise of the norm of the attacks: their baseline, and no attack."""
Answer = Literal["class", "margin"]
OnProgress = Callable[[str, int, int | None], None]
InputType = Literal["float32", "8bit"]
Norm = Literal["l2", "linf"]


@dataclass(frozen=True)
class LabelledImages:
    """Labelled images: float32 (n, C, H, W) in [0, 1], class indices (n,), and names of all classes; no names if they are unknown.

    Raises:
        InputError: The images are no such array, or the labels are no class indices, one per image.

    Example:
        >>> data = LabelledImages(dataset.test.images(), dataset.test.labels, tuple(dataset.class_names))
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problem = image_problem(self.images)
        if problem is not None:
            raise InputError(problem)
        if not isinstance(self.labels, np.ndarray):
            raise InputError(f"labels must be a numpy array, got {type(self.labels).__name__}: pass numpy.asarray(labels)")
        if self.labels.shape != (len(self.images),) or self.labels.dtype.kind not in "iu":
            raise InputError(f"labels must be {len(self.images)} integers; got {self.labels.dtype} of shape {self.labels.shape}")
        if self.labels.min() < 0:
            raise InputError(f"labels must be class indices from 0 on; got {self.labels.min()}")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digests(self) -> NDArray[np.int64]:
        """A digest of each image with its label, (n,): the first 8 bytes of a SHA-256."""
        found = np.empty(len(self), np.int64)
        for number, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            digest = hashlib.sha256(repr((image.shape, int(label))).encode())
            digest.update(np.ascontiguousarray(image, "<f4").data)
            found[number] = int.from_bytes(digest.digest()[:8], "little", signed=True)
        return found

    @property
    def digest(self) -> str:
        """SHA-256 over the images and labels in order. The same digest means the same images in the same order."""
        return digest_of_all(self.digests)


def digest_of_all(digests: NDArray[np.int64]) -> str:
    """Return the digest of images from the digests of each, (n,)."""
    return hashlib.sha256(digests.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class ProbeImage:
    """One image of a probe.

    Attributes:
        pixels: float32 (C, H, W) in [0, 1]. Do not change them.
        label: Its class.
        row: Its position in the dataset, which does not depend on the sample or the shard.

    Example:
        >>> probe.perturb(ProbeImage(pixels, label=3, row=17), condition, np.random.default_rng(0))
    """

    pixels: NDArray[np.float32]
    label: int
    row: int


@dataclass(frozen=True)
class Condition:
    """One column of a probe's table: a setting at which the accuracy is measured.

    Attributes:
        name: Unique name within the probe, such as `sigma 8`.
        value: Position on the axis of a curve, in `unit`; None if it has none.
        unit: Unit of `value`, such as `1/255`.
        group: Conditions of one group make one curve, such as the severities of one corruption.

    Example:
        >>> Condition("sigma 8", 8.0, "1/255", "gaussian")
    """

    name: str
    value: float | None = None
    unit: str = ""
    group: str = ""


@dataclass(frozen=True)
class Probe(ABC):
    """Base class of all probes. Its fields are its settings, and two probes with the same settings measure the same.

    Attributes:
        seed: Seed of everything that is random, at least 0.

    Example:
        >>> result = measure(Noise(sigmas=(8, 16)), [target], data)
    """

    seed: int = field(default=0, kw_only=True)

    name: ClassVar[str]
    """Name of the probe on the command line."""
    paper: ClassVar[str | None] = None
    """Source of the method."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Title for reports, such as `Gaussian noise`."""

    @property
    @abstractmethod
    def threat_model(self) -> str:
        """What the attacker knows and may do, in one or two sentences."""

    @abstractmethod
    def conditions(self) -> Sequence[Condition]:
        """Return the conditions, without `CLEAN`, in the order of the table."""

    def extreme(self) -> Condition | None:
        """Return a condition under which the accuracy of each model should be that of chance, as a sanity check; None if there is none."""
        return None

    def target_checks(self, target: Target, identity: Mapping[str, Any]) -> Sequence[Check]:
        """Return the probe's sanity checks of one target, before a run. Only images for sanity checks may be sent.

        Args:
            target: The target.
            identity: What identifies it, as `Target.identity` returns it.
        """
        return ()

    def checks(self) -> Sequence[Check]:
        """Return the probe's own sanity checks, after a run."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON. A run is only resumed with the same ones."""
        return dataclasses.asdict(self)

    @classmethod
    def summary(
        cls, source: Mapping[str, Any], rows: NDArray[np.int64], labels: NDArray[np.int64], predicted: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, Any]:
        """Return values of one target that only this probe has, as JSON. They follow from what a result file holds for each image.

        Args:
            source: Where the images are from, as JSON: `ProbeOutcome.data`.
            rows: int64 (n,): positions of the images in the dataset.
            labels: int64 (n,): their classes.
            predicted: int64 (n,) classes by the name of the condition; conditions that were not completed are missing.
        """
        return {}

    @classmethod
    def conclude(cls, details: Mapping[str, Any], checks: Sequence[Check]) -> Mapping[str, Any]:
        """Return what `summary` returned, corrected for what the checks of the run show.

        Args:
            details: What `summary` returned.
            checks: All sanity checks.
        """
        return details

    def rng(self, condition: Condition, row: int) -> np.random.Generator:
        """Return the generator for one image under one condition. It depends on nothing else, so that shards and resumed runs agree.

        Args:
            condition: The condition.
            row: Position of the image in the dataset.
        """
        key = hashlib.sha256(f"{self.name}/{condition.name}".encode()).digest()
        return np.random.default_rng([self.seed, row, int.from_bytes(key[:8], "little")])


def norm_condition(norm: str, bound: float) -> Condition:
    """Return the condition that perturbations have at most a norm: for linf in 1/255, as `linf 8/255`.

    Args:
        norm: `l2` or `linf`.
        bound: The largest norm, for images in [0, 1].
    """
    if norm == "linf":
        return Condition(f"linf {255 * bound:.4g}/255", 255 * bound, "1/255", norm)
    return Condition(f"{norm} {bound:.4g}", bound, norm, norm)


def random_noise(pixels: NDArray[np.float32], norm: Norm, size: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return an image with random noise, float32 of the image's shape, clipped to [0, 1], which can make the noise smaller.

    Args:
        pixels: float32 image of any shape, in [0, 1].
        norm: `linf`: each value goes up or down by `size`; `l2`: Gaussian noise that is scaled to the norm `size`.
        size: Norm of the noise.
        rng: Draws it.
    """
    noise = rng.choice((-1.0, 1.0), pixels.shape) if norm == "linf" else rng.standard_normal(pixels.shape)
    scale = size if norm == "linf" else size / np.linalg.norm(noise)
    noisy: NDArray[np.float32] = np.clip(pixels + scale * noise, 0, 1).astype(np.float32)
    return noisy


class PerturbationProbe(Probe):
    """A probe that does not depend on responses: each target classifies each image once per condition.

    `perturb` is called in several threads.

    Example:
        >>> class Darkness(PerturbationProbe):
        ...     name, title, threat_model = "darkness", "Darker images", "No attacker."
        ...     def conditions(self):
        ...         return [Condition("half", 0.5, "factor", "darkness")]
        ...     def perturb(self, image, condition, rng):
        ...         return image.pixels * np.float32(condition.value)
    """

    def cost_of_preparing(self, rows: NDArray[np.int64]) -> str | None:
        """Return what `prepare` will compute before the first query, as a line to print; None if that does not take long.

        Args:
            rows: Positions of the images in the dataset.
        """
        return None

    def prepare(self, data: LabelledImages, rows: NDArray[np.int64], on_progress: OnProgress) -> Perturb:
        """Return the function that `measure` calls for each image and condition: `perturb`, unless it is slow and its images are kept.

        Args:
            data: All images of this run.
            rows: Their positions in the dataset.
            on_progress: Called with the current step, the number of images done, and the number of all images.
        """
        return self.perturb

    @abstractmethod
    def perturb(self, image: ProbeImage, condition: Condition, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the perturbed image, float32 (C, H, W) in [0, 1].

        Args:
            image: The image.
            condition: The condition.
            rng: A generator for this image and condition.
        """

    def is_source_fooled(self, rows: NDArray[np.int64], input: InputType) -> Mapping[str, NDArray[np.bool_]]:
        """Return which of transferred examples fool their source, bool (n,) by the name of the condition; empty if there is no source.

        Args:
            rows: Positions of the images in the dataset.
            input: What the targets receive, and the source.
        """
        return {}


Perturb = Callable[[ProbeImage, Condition, np.random.Generator], NDArray[np.float32]]
"""Returns the perturbed image, as `PerturbationProbe.perturb` does."""
Query = Callable[[NDArray[np.float32]], NDArray[Any]]
"""Asks the target about images float32 (k, C, H, W) in [0, 1].

Returns (k,): the classes, as int64, or the margins, as float64: the probability of the true class minus the highest of the others, which is
negative if the image is misclassified. Ends the attack by raising an exception when the budget of the image is spent.
"""


class QueryAttack(Probe):
    """A probe that searches an adversarial example for each image by queries.

    The closest misclassified image among all queries is the result, however the attack ends. Images that are misclassified without an
    attack are skipped.

    Example:
        >>> outcome = measure(Square(queries=2500), targets, data)
        >>> outcome.attack_rates(outcome.targets[0]).success.value
    """

    answer: ClassVar[Answer]
    """What the attack needs to know about an image: its class or its margin."""
    norm: Norm
    """The norm by which `closest` is meant."""

    @property
    def bound(self) -> float | None:
        """The largest norm of a perturbation that counts; None if any norm does."""
        return None

    def extreme(self) -> Condition:
        """Return noise of the largest linf norm, which makes each value black or white."""
        return norm_condition("linf", 1.0)

    def perturb(self, image: ProbeImage, condition: Condition, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return an image with the noise of `extreme`."""
        return random_noise(image.pixels, "linf", 1.0, rng)

    @abstractmethod
    def most_queries(self, budget: int | None) -> int:
        """Return the most queries for one image, or an estimate if there is no limit; `budget` is that of the run."""

    @abstractmethod
    def attack(self, image: ProbeImage, query: Query, seed: int) -> NDArray[np.float32] | None:
        """Search an adversarial example. Runs in a worker process, in turn with the attacks of other images.

        Everything must follow from the arguments and the responses, because a killed run is resumed with its stored responses: draw from a
        generator of `seed`, not from the global one of `numpy.random`.

        Args:
            image: An image that the target classifies correctly.
            query: Asks the target.
            seed: Seed of this image, below 2**32.

        Returns:
            The attack's own result, float32 (C, H, W); None if it found none. It is only a candidate like every query.
        """

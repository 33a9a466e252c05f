"""Decision-based attacks by Foolbox, the only module of the client that uses it. Foolbox is imported on first use.

Each image is one run of Foolbox at batch 1. It asks the same queries as Foolbox after `numpy.random.seed(seed)`, but draws from a generator
of its own, so that the attacks of many images can run in turn.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError, MissingExtraError
from .base import Condition, Norm, ProbeImage, Query, QueryAttack, norm_condition

_START_QUERIES = 53
"""One random image, 51 steps towards the original, and the result once more."""


@dataclass(frozen=True)
class _FoolboxAttack(QueryAttack):
    """An attack of Foolbox that needs only the class of an image."""

    answer = "class"

    def __post_init__(self) -> None:
        if find_spec("foolbox") is None:  # before the first query
            raise _missing_foolbox("it is not installed")

    @property
    def threat_model(self) -> str:
        """What the attacker knows and may do."""
        return (
            "Black box, labels only: the attacker sends images and sees the predicted class, without weights or probabilities, and "
            f"minimises the {self.norm} norm of the perturbation within the budget of queries."
        )

    def conditions(self) -> Sequence[Condition]:
        """Return one condition for each epsilon."""
        return [norm_condition(self.norm, value) for value in self._epsilons()]

    def _epsilons(self) -> tuple[float, ...]:
        raise NotImplementedError

    def _foolbox_attack(self, attacks: Any) -> Any:
        raise NotImplementedError

    def attack(self, image: ProbeImage, query: Query, seed: int) -> NDArray[np.float32] | None:
        """Run Foolbox on one image; None if it finds no starting point. See `QueryAttack.attack`."""
        if image.pixels.size < 2:
            raise InputError(f"{self.name} needs images of at least 2 values, because it walks on a sphere; got {image.pixels.shape}")
        foolbox, eagerpy = _foolbox()
        tensor: Any = eagerpy.NumPyTensor
        generator = np.random.RandomState(seed)

        class Tensor(tensor):  # type: ignore[misc]
            """Draws what `numpy.random` would draw after `numpy.random.seed(seed)`."""

            __slots__ = ()

            def uniform(self, shape: Any, low: float = 0.0, high: float = 1.0) -> Tensor:
                return Tensor(generator.uniform(low, high, size=shape))

            def normal(self, shape: Any, mean: float = 0.0, stddev: float = 1.0) -> Tensor:
                return Tensor(generator.normal(mean, stddev, size=shape))

        was_wrong: dict[bytes, bool] = {}

        def is_right_or_wrong(images: NDArray[Any]) -> NDArray[np.float32]:
            """The logits of two classes: classified correctly, or misclassified."""
            pixels = np.asarray(images, np.float32)
            wrong = query(pixels) != image.label
            # Foolbox asserts that an image stays misclassified when it is asked again. On the decision boundary this may depend on the
            # other images of a served batch, so that the first response stands.
            # Digests: the images of 5,560 queries at 3 x 32 x 32 would be 68 MB for each of up to 128 attacks.
            digests = [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in pixels]
            wrong = [was_wrong.setdefault(digest, bool(is_wrong)) for digest, is_wrong in zip(digests, wrong, strict=True)]
            logits: NDArray[np.float32] = np.eye(2, dtype=np.float32)[np.asarray(wrong, int)]
            return logits

        attack = self._foolbox_attack(foolbox.attacks)
        start = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(steps=50)
        attack.init_attack = start  # Foolbox's default, without its line in the log of the whole process
        model = foolbox.models.NumPyModel(is_right_or_wrong, bounds=(0, 1))
        labels = Tensor(np.zeros(1, np.int64))
        try:
            example = attack.run(model, Tensor(image.pixels[None]), foolbox.criteria.Misclassification(labels))
        except ValueError as error:
            if "init_attack failed" not in str(error):
                raise
            return None
        return np.asarray(example.numpy()[0], np.float32)


@dataclass(frozen=True)
class Boundary(_FoolboxAttack):
    """The boundary attack of Brendel et al., with the steps of arXiv 1911.08432 and the other settings of Foolbox 3.3.4.

    5,000 steps are about 5,560 queries an image.

    Attributes:
        steps: Largest number of steps.
        spherical_step: Initial size of the step along the sphere, relative to the distance.
        source_step: Initial size of the step towards the image, relative to the distance.
        source_step_convergence: The attack ends when the step towards the image is smaller than this.
        step_adaptation: Factor by which the step sizes grow and shrink.
        update_stats_every_k: Steps between two adaptations.
        epsilons: Norms at which the accuracy is reported. They do not change the attack.

    Example:
        >>> Boundary(steps=1000, seed=1)
    """

    steps: int = 5000
    spherical_step: float = 1e-2
    source_step: float = 1e-2
    source_step_convergence: float = 1e-7
    step_adaptation: float = 1.5
    update_stats_every_k: int = 10
    epsilons: tuple[float, ...] = (0.25, 0.5, 1.0)

    name: ClassVar[str] = "boundary"
    paper: ClassVar[str | None] = "arXiv:1712.04248"
    norm: Literal["l2"] = field(default="l2", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "steps", "spherical_step", "source_step", "step_adaptation", "update_stats_every_k", "epsilons")

    @property
    def title(self) -> str:
        """The name of the attack."""
        return "Boundary attack"

    def most_queries(self, budget: int | None) -> int:
        """Return the queries of all steps, with a starting point at the first try."""
        return _at_most(budget, _START_QUERIES + self.steps + self.steps // self.update_stats_every_k)

    def _epsilons(self) -> tuple[float, ...]:
        return self.epsilons

    def _foolbox_attack(self, attacks: Any) -> Any:
        return attacks.BoundaryAttack(
            steps=self.steps,
            spherical_step=self.spherical_step,
            source_step=self.source_step,
            source_step_convergance=self.source_step_convergence,
            step_adaptation=self.step_adaptation,
            update_stats_every_k=self.update_stats_every_k,
        )


EPSILONS = {"l2": (0.25, 0.5, 1.0), "linf": (2 / 255, 4 / 255, 8 / 255)}
"""Norms at which the accuracy is reported, by the name of the norm."""


@dataclass(frozen=True)
class HopSkipJump(_FoolboxAttack):
    """HopSkipJump of Chen et al., with the settings of Foolbox 3.3.4.

    10 steps are about 2,530 queries an image of 3 x 32 x 32.

    Attributes:
        norm: Norm that is minimised.
        steps: Number of steps. Foolbox's 64 need about 37,000 queries.
        initial_gradient_eval_steps: Queries of the first estimate of the gradient.
        max_gradient_eval_steps: Most queries of an estimate of the gradient.
        stepsize_search: How the step size is searched.
        gamma: Factor of the threshold at which a binary search ends.
        epsilons: Norms at which the accuracy is reported; None for those of `EPSILONS`. They do not change the attack.

    Example:
        >>> HopSkipJump(norm="linf", steps=5, seed=1)
    """

    norm: Norm = "l2"
    steps: int = 10
    initial_gradient_eval_steps: int = 100
    max_gradient_eval_steps: int = 10000
    stepsize_search: Literal["geometric_progression", "grid_search"] = "geometric_progression"
    gamma: float = 1.0
    epsilons: tuple[float, ...] | None = None

    name: ClassVar[str] = "hopskipjump"
    paper: ClassVar[str | None] = "arXiv:1904.02144"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in EPSILONS:
            raise InputError(f"norm must be l2 or linf; got {self.norm!r}")
        if self.stepsize_search not in ("geometric_progression", "grid_search"):
            raise InputError(f"stepsize_search must be geometric_progression or grid_search; got {self.stepsize_search!r}")
        _check_positive(self, "steps", "initial_gradient_eval_steps", "max_gradient_eval_steps", "gamma", "epsilons")

    @property
    def title(self) -> str:
        """The name of the attack and the norm."""
        return f"HopSkipJump, {self.norm}"

    def most_queries(self, budget: int | None) -> int:
        """Return the queries of all steps, with about 30 for the step size and the binary search of each."""
        first, most = self.initial_gradient_eval_steps, self.max_gradient_eval_steps
        growing = min(self.steps, math.ceil((most / first) ** 2))  # the others have the most evaluations
        gradients = sum(int(min(first * math.sqrt(step + 1), most)) for step in range(growing)) + most * (self.steps - growing)
        return _at_most(budget, _START_QUERIES + gradients + 30 * self.steps)

    def _epsilons(self) -> tuple[float, ...]:
        return EPSILONS[self.norm] if self.epsilons is None else self.epsilons

    def _foolbox_attack(self, attacks: Any) -> Any:
        return attacks.HopSkipJumpAttack(
            steps=self.steps,
            initial_gradient_eval_steps=self.initial_gradient_eval_steps,
            max_gradient_eval_steps=self.max_gradient_eval_steps,
            stepsize_search=self.stepsize_search,
            gamma=self.gamma,
            constraint=self.norm,
        )


def _at_most(budget: int | None, queries: int) -> int:
    return queries if budget is None else min(budget, queries)


def _check_positive(attack: QueryAttack, *names: str) -> None:
    """Raise `InputError` if one of these fields is not positive."""
    for name in names:
        value = getattr(attack, name)
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(0 < one < float("inf") for one in values):
            raise InputError(f"{name} of the {attack.name} attack must be positive and finite; got {value}")


def _foolbox() -> tuple[Any, Any]:
    # Foolbox imports GitPython for its model zoo, which raises an error without the program git if this is not set.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        with warnings.catch_warnings():
            # Foolbox 3.3.4 imports from a namespace that scipy deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            foolbox = import_module("foolbox")
    except ImportError as error:
        raise _missing_foolbox((str(error).strip() or "no reason given").splitlines()[0]) from error
    # Foolbox warns when it finds no starting point, which is a result here.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"foolbox\.attacks\.blended_noise")
    return foolbox, import_module("eagerpy")


def _missing_foolbox(cause: str) -> MissingExtraError:
    return MissingExtraError(
        f"the attacks boundary and hopskipjump need Foolbox, which cannot be imported ({cause}): pip install 'defensemble[probes]'"
    )

"""How a probe is run, and what its caller is notified of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from .._exceptions import InputError
from .base import InputType


@dataclass(frozen=True)
class Preview:
    """What a run will cost, before its first counted query.

    Attributes:
        queries: Images that are still to be sent, by target; the budget of a query attack is an upper limit.
        images_per_s: The measured throughput of each target at the largest batch, one request at a time.
        is_limit: Whether `queries` are an upper limit.

    Example:
        >>> Preview({"ensemble": 5000}, {"ensemble": 500.0}, is_limit=False).seconds
        10.0
    """

    queries: dict[str, int]
    images_per_s: dict[str, float]
    is_limit: bool

    @property
    def seconds(self) -> float:
        """The time that the queries take."""
        return sum(count / self.images_per_s[name] for name, count in self.queries.items())


@dataclass(frozen=True)
class RunOptions:
    """How a probe is run.

    Attributes:
        input: What the targets receive: `float32`, or `8bit` for images that are rounded to k/255.
        budget: The most queries of an attack for one image; None for those of the attack itself.
        batch_size: The most images of one request; None for what a target accepts, at most 64.
        workers: Processes that run a query attack; None for one per core.
        lanes: Images that a query attack works on at the same time.
        shard: (number from 1, count): which part of the images this is.

    Example:
        >>> measure(Noise(), targets, data, options=RunOptions(input="8bit"))
    """

    input: InputType = "float32"
    budget: int | None = None
    batch_size: int | None = None
    workers: int | None = None
    lanes: int = 128
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.input not in get_args(InputType):
            raise InputError(f"input must be one of {', '.join(get_args(InputType))}, got {self.input!r}")
        for name in ("budget", "batch_size", "workers", "lanes"):
            value = getattr(self, name)
            if not (value is None and name != "lanes") and not (isinstance(value, (int, np.integer)) and value >= 1):
                raise InputError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise InputError(f"shard must be (k, n) with k from 1 to n, got {self.shard}")


class Progress:
    """Called while a probe runs; the methods do nothing. Override what you need.

    Example:
        >>> class Printing(Progress):
        ...     def on_images(self, target, done, total):
        ...         print(target, done, total)
    """

    def on_step(self, name: str, done: int, total: int | None) -> None:
        """Take the number of finished and of all images of a step that sends nothing, such as crafting examples."""

    def on_preview(self, preview: Preview) -> None:
        """Take the cost, before the first counted query."""

    def on_images(self, target: str, done: int, total: int) -> None:
        """Take the number of finished and of all images of a target, each condition for itself; for a query attack, its queries."""

"""The Triton that a repository is judged for: which core it has, and whether it is the embedded runtime."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Core of nvidia-pytriton 0.7.0, which the embedded runtime is.
EMBEDDED_CORE = "2.51.0"
# Core of NVIDIA's container 26.07, which `serve --runtime docker` starts.
CONTAINER_CORE = "2.71.0"
# The first core in which a request that a step's queue refuses neither hangs nor crashes its ensemble: core PRs 466 and 470 (26.02), and
# 483 for steps that run in parallel, as members do (26.05; the releases are inferred from the dates of the pull requests).
FIRST_CORE_WITH_QUEUE_LIMITS = (2, 69, 0)
# Fields of tritonclient's schema (2.73) that the embedded core's lacks, each by the way to it: they were compared with the descriptor of
# model_config.proto inside `tritonserver`. Nothing else differs between the two but what these fields contain.
FIELDS_SINCE_EMBEDDED = (("model_metrics",), ("ensemble_scheduling", "max_inflight_requests"))


@dataclass(frozen=True)
class Target:
    """A Triton: `core` is the version of its core, None where that is not known; `embedded` is our runtime, with CPUs and one backend.

    Example:
        >>> EMBEDDED.allows_queue_limits
        False
    """

    name: str
    core: tuple[int, ...] | None = None
    embedded: bool = False

    @classmethod
    def from_core_version(cls, version: str) -> Target:
        """Some Triton whose server says this version, such as "2.51.0"; one that is no version leaves the core unknown."""
        numbers = re.match(r"\d+(\.\d+)+", version)
        return ANY if numbers is None else cls(f"Triton {version}", _numbers(numbers.group()))

    @property
    def allows_queue_limits(self) -> bool | None:
        """Whether steps of an ensemble may limit their queues; None where the core is not known."""
        return None if self.core is None else self.core >= FIRST_CORE_WITH_QUEUE_LIMITS

    @property
    def unknown_fields(self) -> tuple[tuple[str, ...], ...]:
        """The ways to fields that our schema has and this core does not know, so that it reads no configuration with one of them."""
        return FIELDS_SINCE_EMBEDDED if self.core is not None and self.core <= _numbers(EMBEDDED_CORE) else ()

    def __str__(self) -> str:
        core = "of an unknown version" if self.core is None else ".".join(map(str, self.core))
        return f"{self.name} (core {core})"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


EMBEDDED = Target("the embedded runtime", _numbers(EMBEDDED_CORE), embedded=True)
DOCKER = Target("NVIDIA's container", _numbers(CONTAINER_CORE))
# By the runtime that `defensemble serve --runtime` chooses.
TARGETS = {"embedded": EMBEDDED, "docker": DOCKER}
# Only what every Triton refuses.
ANY = Target("any Triton")

"""The Triton server for which a repository is checked: the version of its core, and whether it is the embedded runtime."""

from __future__ import annotations

import re
from dataclasses import dataclass

# The core of nvidia-pytriton 0.7.0, which is the embedded runtime.
EMBEDDED_CORE = "2.51.0"
# The core of NVIDIA's container 26.07, which `serve --runtime docker` starts.
CONTAINER_CORE = "2.71.0"
# The first core in which an ensemble neither hangs nor crashes if the queue of a step rejects a request: core PRs 466 and 470 (26.02), and
# 483 for steps that run in parallel, as members do (26.05). The releases are inferred from the dates of the pull requests.
FIRST_CORE_WITH_QUEUE_LIMITS = (2, 69, 0)
# The paths of fields in tritonclient's schema (2.73) that the embedded core does not have. The schema was compared with the descriptor of
# model_config.proto in `tritonserver`: these fields and their contents are the only differences.
FIELDS_SINCE_EMBEDDED = (("model_metrics",), ("ensemble_scheduling", "max_inflight_requests"))


@dataclass(frozen=True)
class Target:
    """A Triton server.

    `core` is the version of its core, or None if it is unknown. `embedded` is true for the embedded runtime, which has one backend and
    runs on CPUs.

    Example:
        >>> EMBEDDED.allows_queue_limits
        False
    """

    name: str
    core: tuple[int, ...] | None = None
    embedded: bool = False

    @classmethod
    def from_core_version(cls, version: str) -> Target:
        """Return the target for the version that a server reports, such as "2.51.0". For other texts, the core is unknown."""
        numbers = re.match(r"\d+(\.\d+)+", version)
        return ANY if numbers is None else cls(f"Triton {version}", _numbers(numbers.group()))

    @property
    def allows_queue_limits(self) -> bool | None:
        """Whether the models of an ensemble may limit their queues, or None if the core is unknown."""
        return None if self.core is None else self.core >= FIRST_CORE_WITH_QUEUE_LIMITS

    @property
    def unknown_fields(self) -> tuple[tuple[str, ...], ...]:
        """The paths of fields that this core does not know. It cannot read a configuration that has one of them."""
        return FIELDS_SINCE_EMBEDDED if self.core is not None and self.core <= _numbers(EMBEDDED_CORE) else ()

    def __str__(self) -> str:
        core = "unknown core" if self.core is None else f"core {'.'.join(map(str, self.core))}"
        return f"{self.name} ({core})"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


EMBEDDED = Target("the embedded runtime", _numbers(EMBEDDED_CORE), embedded=True)
DOCKER = Target("NVIDIA's container", _numbers(CONTAINER_CORE))
# By the value of `defensemble serve --runtime`.
TARGETS = {"embedded": EMBEDDED, "docker": DOCKER}
# For findings that apply to every Triton.
ANY = Target("any Triton")

"""Limits of a queue that make Triton's scheduler refuse a request: allowed for a model by itself, fatal on parts of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator

from ..pbtxt import schema
from ..target import Target
from .finding import Step

_FIRST_RELEASE = "26.05 (core 2.69)"


def queue_limits(config: schema.ModelConfig) -> list[tuple[str, tuple[Step, ...]]]:
    """The limits by which a model's queue refuses requests, as text, each with the way to its field."""
    batching = config.dynamic_batching
    policies: list[tuple[str, schema.ModelQueuePolicy, tuple[Step, ...]]] = []
    if batching.HasField("default_queue_policy"):
        policies.append(("default_queue_policy", batching.default_queue_policy, ("default_queue_policy",)))
    for level, policy in sorted(batching.priority_queue_policy.items()):
        path: tuple[Step, ...] = (("priority_queue_policy", "key", str(level)), "value")
        policies.append((f"priority_queue_policy of level {level}", policy, path))
    return [
        (f"{name} with {limit}", ("dynamic_batching", *path)) for name, policy, path in policies if (limit := ", ".join(_limits(policy)))
    ]


def queue_limit_text(limit: str, ensemble: str, target: Target) -> str:
    """What is wrong with a limit on a step of `ensemble`."""
    return (
        f"has {limit}, and is a step of '{ensemble}': before Triton {_FIRST_RELEASE} a call whose request a step refuses is never "
        f"answered, or crashes the server (core PRs 466, 470 and 483); judged for {target}. Remove the limit, and bound the load before "
        "it reaches the ensemble (connections in a proxy, deadlines of callers), or serve it with --runtime docker"
    )


def _limits(policy: schema.ModelQueuePolicy) -> Iterator[str]:
    if policy.max_queue_size > 0:
        yield f"max_queue_size: {policy.max_queue_size}"
    # A delayed request is answered later; without a default, `allow_timeout_override` has no effect (both seen in core 2.51).
    if policy.timeout_action == schema.ModelQueuePolicy.REJECT and policy.default_timeout_microseconds > 0:
        yield f"default_timeout_microseconds: {policy.default_timeout_microseconds}"

"""Queue limits, by which Triton's scheduler rejects requests. They are safe for single models, but not for models of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator

from ..pbtxt import schema
from ..target import Target
from .finding import Step

_FIRST_RELEASE = "26.05 (core 2.69)"


def queue_limits(config: schema.ModelConfig) -> list[tuple[str, tuple[Step, ...]]]:
    """Return the limits by which a model's queue rejects requests: the text and the path to the field of each."""
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
    """Return the text of a finding about a queue limit.

    Args:
        limit: A limit from `queue_limits`.
        ensemble: The ensemble that uses the model.
        target: The Triton server that will serve it.
    """
    return (
        f"has {limit}, but is a step of '{ensemble}': before Triton {_FIRST_RELEASE}, a call whose request is rejected by a step is never "
        f"answered, or crashes the server (core PRs 466, 470 and 483); checked for {target}. Remove the limit and limit the load before it "
        "reaches the ensemble (connections in a proxy, deadlines of callers), or serve it with --runtime docker."
    )


def _limits(policy: schema.ModelQueuePolicy) -> Iterator[str]:
    if policy.max_queue_size > 0:
        yield f"max_queue_size: {policy.max_queue_size}"
    # A delayed request is answered later. Without a default, `allow_timeout_override` has no effect. Both were observed in core 2.51.
    if policy.timeout_action == schema.ModelQueuePolicy.REJECT and policy.default_timeout_microseconds > 0:
        yield f"default_timeout_microseconds: {policy.default_timeout_microseconds}"

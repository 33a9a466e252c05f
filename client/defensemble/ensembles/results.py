"""The results of edits and of `Ensembles.show`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defensemble_repository.ensemble import Ensemble

if TYPE_CHECKING:
    from defensemble_export.editing import Edit, MemberInfo

    from .._client.client import Client


@dataclass(frozen=True)
class Replica:
    """A model repository and clients of the servers that read it.

    Attributes:
        repository: The folder.
        clients: One client per server, each with its admin key.

    Example:
        >>> replica = Replica(Path("model_repository"), (Client("grpc://127.0.0.1:8001", admin_key=key),))
    """

    repository: Path
    clients: tuple[Client, ...] = ()


@dataclass(frozen=True)
class Applied:
    """What an edit did or, with `dry_run`, would do.

    Attributes:
        ensemble: The ensemble's name.
        edit: The entry of the history; None if the history records no edit.
        changes: The changes in words; empty if there was nothing to do.
        remarks: What is allowed but worth knowing.
        servers: The URLs of the servers that have the new state.
        loaded: The models that were loaded, by server.
        unloaded: The models that were unloaded, by server.
        left_loaded: The models that are no longer needed but still loaded, with the reasons.
        seconds: The time by kind of work: checks, writes, loads, inferences, drain, and total.
        dry_run: Whether the edit was only planned.

    Example:
        >>> ensembles.remove("ensemble", ["keep0.5"], dry_run=True).changes
        ('removes keep0.5@1',)
    """

    ensemble: str
    edit: Edit | None
    changes: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    loaded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unloaded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_loaded: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    dry_run: bool = False


@dataclass(frozen=True)
class MemberState:
    """The state of a member.

    Attributes:
        info: The facts about its files.
        served: By server, `"yes"` if it serves what is on disk, or the reason why not.

    Example:
        >>> [member.info.weight for member in ensembles.show("ensemble")[0].members]
        [1.0, 2.0]
    """

    info: MemberInfo
    served: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EnsembleState:
    """The state of an ensemble on disk and on its servers.

    Attributes:
        name: The ensemble's name.
        ensemble: Its members and average; None if it is not wired the way an export wires it.
        max_batch_size: The largest batch.
        input_shape: (C, H, W) of the images.
        num_classes: The number of classes.
        members: The state of each member.
        served: By server, `"yes"` if it serves what is on disk, or the reason why not.
        problems: What is wrong with it.
        preprocessing: How images are resized, as JSON values; None if the configuration does not state it.

    Example:
        >>> (state,) = ensembles.show("ensemble")
        >>> state.served
        {'grpc://127.0.0.1:8001': 'yes'}
    """

    name: str
    ensemble: Ensemble | None
    max_batch_size: int
    input_shape: tuple[int, ...]
    num_classes: int
    members: tuple[MemberState, ...]
    served: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] | None = None

"""What edits and looks at ensembles return."""

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
    """A folder, and the clients of the servers that read it, each with its admin key."""

    repository: Path
    clients: tuple[Client, ...] = ()


@dataclass(frozen=True)
class Applied:
    """What an edit did, or, where it was only planned (`dry_run`), what it would do.

    `changes` are in words, empty where there was nothing to do; `remarks` what is allowed, but worth knowing; `servers` those that were
    told; `unloaded` models by server; `left_loaded` models that are not needed, and why they stay; `seconds` by kind of work: checks,
    writes, loads, inferences, drain, and total.
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
    """A member's vote, what is known of its network, and by server whether that serves what lies on disk: "yes", or why not."""

    info: MemberInfo
    served: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EnsembleState:
    """An ensemble as it lies on disk; `votes` is None where it is not wired as ours are, and `served` as of a member.

    `preprocessing` is the rule by which images are brought to size, as its configuration states it (JSON); None where it states none.
    """

    name: str
    votes: Ensemble | None
    max_batch_size: int
    input_shape: tuple[int, ...]
    num_classes: int
    members: tuple[MemberState, ...]
    served: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] | None = None

"""An edit that is being carried out, written down before its first change, so that it can be finished or undone where it was cut short."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from defensemble_repository.filesystem.atomic_write import remove_temporaries, shared_mode, sync, write_atomic
from defensemble_repository.filesystem.regular_files import read_regular
from defensemble_repository.names import CONFIG_FILE, HISTORY_FILE, PENDING_FILE
from defensemble_repository.records import checked_schema, parse_json, record_from_values
from defensemble_repository.transaction import remove_files, write_files
from defensemble_repository.view import RepositoryView

from ..entries.ensemble import PLACEHOLDER, PLACEHOLDER_TEXT
from ..errors import HistoryError
from .history import Edit, edit_from_line, line_from_edit
from .plan import EditPlan

_SCHEMA = "defensemble.pending-edit/1"


@dataclass(frozen=True)
class EditJournal:
    """An edit under way in one repository; what cannot be read or written on disk is an OSError.

    ``group`` are all repositories that it changes, or none of them; ``urls`` the servers that are told. ``before`` are the files that
    change, as they were (path relative to the repository, to bytes; None: not there), ``after`` the digests that they will have (None: it
    goes); ``new_models`` are the averaging models that were not there, ``loads`` the models that servers lacked, ``released``
    those that nobody will need. ``rejected`` is a hand edit, and ``before`` then what was served until it: where a server refuses it, it is
    kept beside, as ``config.pbtxt.rejected``.
    """

    repository: Path
    edit: Edit
    group: tuple[str, ...]
    urls: tuple[str, ...]
    before: Mapping[str, bytes | None]
    after: Mapping[str, str | None]
    new_models: tuple[str, ...]
    loads: tuple[str, ...]
    released: tuple[str, ...]
    rejected: bytes | None = None

    def __post_init__(self) -> None:
        for path in (*self.before, *self.after, *self.new_models, *self.loads, *self.released):
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"{path!r} leads out of the repository")

    @classmethod
    def of(
        cls,
        plan: EditPlan,
        edit: Edit,
        *,
        group: Sequence[str],
        urls: Sequence[str],
        loads: Sequence[str] = (),
        released: Sequence[str] = (),
        served_before: bytes | None = None,
    ) -> EditJournal:
        """What is to be written down before ``plan`` is carried out; ``served_before`` is the configuration that a hand edit replaced."""
        disk, outcome = plan.disk(), plan.outcome()
        config = f"{plan.name}/{CONFIG_FILE}"
        folder = plan.repository / plan.name
        there = [path.relative_to(plan.repository).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        rewritten = [path for path in plan.averaging if disk.exists(path)]
        before = {path: disk.content(path) for path in (*rewritten, *(there if plan.deletes else plan.files))}
        if plan.deletes:  # files are put back, and Triton wants a version folder, which somebody may have left empty
            empty = [number for number in disk.versions(plan.name) if not any((folder / str(number)).iterdir())]
            before |= {f"{plan.name}/{number}/{PLACEHOLDER}": PLACEHOLDER_TEXT for number in empty}
        rejected = None
        if served_before is not None:
            rejected, before[config] = disk.content(config), served_before
        return cls(
            repository=plan.repository,
            edit=edit,
            group=tuple(group),
            urls=tuple(urls),
            before=before,
            after={path: outcome.digest(path) for path in (*plan.averaging, config)},
            new_models=tuple(model for model in plan.new_models if not disk.has(model)),
            loads=tuple(loads),
            released=tuple(released),
            rejected=rejected,
        )

    @property
    def is_applied(self) -> bool:
        """Whether all of it is there on disk; the ensemble's configuration changes last."""
        return all(self._disk.digest(path) == digest for path, digest in self.after.items())

    def write(self) -> None:
        """Write it down, durably: nothing may change before."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "repository"}
        values = {"schema": _SCHEMA, **values, "edit": line_from_edit(self.edit).decode()}
        _write(self.repository / PENDING_FILE, json.dumps(msgspec.to_builtins(values), indent=1).encode() + b"\n")

    def clear(self) -> None:
        """Delete it, durably: one that came back after a power cut would undo what was done since."""
        (self.repository / PENDING_FILE).unlink(missing_ok=True)
        sync([self.repository])

    def sync_files(self) -> None:
        """Flush the files of the edit and their folders: those that another process, or an operator, wrote may be in memory only."""
        models = {path.partition("/")[0] for path in (*self.before, *self.after)}
        folders = [folder for model in sorted(models) if (folder := self.repository / model).is_dir()]
        sync([path for folder in folders for path in (*folder.rglob("*"), folder) if path.is_file() or path.is_dir()])
        sync([self.repository])

    def changed_meanwhile(self) -> Path | None:
        """A file of the ensemble's that somebody else has changed since this was written down, or this note itself; else None."""
        config = f"{self.edit.ensemble}/{CONFIG_FILE}"
        known = {**self.before, **({} if self.rejected is None else {config: self.rejected})}
        for path, content in known.items():
            if path.startswith(f"{self.edit.ensemble}/") and self._disk.content(path) != content:
                return self.repository / path
        noted = read_journal(self.repository)
        return None if noted is not None and noted.edit.id == self.edit.id else self.repository / PENDING_FILE

    def conflicting_config(self) -> bytes | None:
        """The ensemble's configuration on disk where it is neither that before nor that after, so somebody else's since; else None."""
        path = f"{self.edit.ensemble}/{CONFIG_FILE}"
        content = self._disk.content(path)
        if content is None or content in (self.before.get(path), self.rejected) or path not in self.before:
            return None
        return None if self._disk.digest(path) == self.after.get(path) else content

    @property
    def is_rolled_back(self) -> bool:
        """Whether its hand edit is no longer on disk: a server had refused it, and putting back what was served has begun."""
        path = f"{self.edit.ensemble}/{CONFIG_FILE}"
        return self.rejected is not None and self.before[path] != self.rejected and self._disk.content(path) == self.before[path]

    @property
    def rejected_file(self) -> Path:
        """Where a hand edit is kept that a server has refused."""
        return self.repository / self.edit.ensemble / f"{CONFIG_FILE}.rejected"

    def restore_ensemble(self, *, refused: bool = False, keep_conflicting: bool = False) -> None:
        """Put the ensemble's own files back, all at once; the averaging models stay, for a server may have them loaded.

        A hand edit goes where a server has ``refused`` it; else it stays as the operator wrote it. What somebody else has made of the
        configuration since stays where that is wanted (``keep_conflicting``); else it is kept beside, as a hand edit that is refused.
        """
        name = self.edit.ensemble
        config = f"{name}/{CONFIG_FILE}"
        before = dict(self.before)
        if (other := self.conflicting_config()) is not None and keep_conflicting:
            del before[config]
        elif other is not None:
            _write(self.rejected_file, other)
        if self.rejected is not None:
            if refused:
                _write(self.rejected_file, self.rejected)
            else:
                before[config] = self.rejected
        writes = {path: content for path, content in before.items() if content is not None and self._disk.content(path) != content}
        gone = [path for path, content in before.items() if content is None and (self.repository / path).exists()]
        folder = self.repository / name
        there = {path.relative_to(self.repository).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        if there and there <= set(gone):
            remove_files(self.repository, [name])  # nobody else's file is there: as it came, by one rename
        else:
            for path in sorted(gone, key=lambda path: path != config):
                (self.repository / path).unlink()
                sync([(self.repository / path).parent])  # the configuration is gone before what it needs
        if writes:
            write_files(self.repository, writes)

    def remove_new_models(self) -> None:
        """Remove the averaging models that it had written."""
        remove_files(self.repository, [model for model in self.new_models if (self.repository / model).exists()])

    @property
    def _disk(self) -> RepositoryView:
        return RepositoryView(self.repository)


class _Note(msgspec.Struct):
    """What `EditJournal` does not ask of its file: the edit is a line of a history, and `rejected` is there."""

    edit: str
    rejected: str | None


def remove_stale_temporaries(repository: Path) -> list[Path]:
    """Remove and return the temporary files that killed edits have left; hold `locked`.

    Raises:
        OSError: one cannot be removed.
    """
    models = [folder for folder in sorted(repository.iterdir()) if folder.is_dir()]
    own = [folder / f"{CONFIG_FILE}{end}" for folder in models for end in ("", ".rejected")]
    return [left for target in (repository / PENDING_FILE, repository / HISTORY_FILE, *own) for left in remove_temporaries(target)]


def _write(target: Path, content: bytes) -> None:
    write_atomic(target, content, mode=shared_mode(target))


def read_journal(repository: Path) -> EditJournal | None:
    """The edit that was under way, None where none is.

    Raises:
        HistoryError: its file is damaged.
        OSError: it cannot be read.
    """
    path = repository / PENDING_FILE
    try:
        values = parse_json(read_regular(path))
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != _SCHEMA and str(schema).startswith("defensemble.pending-edit/"):
            raise HistoryError(f"{path} is of another version of defensemble ({schema}): finish or undo its edit with that one")
        note = record_from_values(checked_schema(values, _SCHEMA), _Note)
        edit = edit_from_line(note.edit.encode(), str(path))
        return record_from_values({**values, "repository": repository, "edit": edit}, EditJournal)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise HistoryError(
            f"{path} is damaged ({error}): it says how an edit that was cut short is undone. Look at what "
            "`defensemble ensemble check` says of the repository as it is, and then move that file away"
        ) from error

"""The journal of an edit in progress, written before the first change, so that an interrupted edit can be finished or undone."""

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
from defensemble_repository.transaction import remove_files, write_files, write_journaled
from defensemble_repository.view import RepositoryView

from ..entries.ensemble import PLACEHOLDER, PLACEHOLDER_TEXT
from ..errors import HistoryError
from .history import Edit, edit_from_line, line_from_edit
from .plan import EditPlan

_SCHEMA = "defensemble.pending-edit/1"


@dataclass(frozen=True)
class EditJournal:
    """An edit in progress in one repository. All methods raise OSError if a file cannot be read or written.

    Attributes:
        repository: The repository.
        edit: The edit, as the history will record it.
        group: All repositories of the edit; it changes all of them or none.
        urls: The servers of this repository that the edit updates.
        before: The content of the files that change, by path relative to the repository; None for a file that did not exist.
        after: The digests that these files will have; None for a file that is deleted.
        new_models: The averaging models that did not exist before.
        loads: The models that servers had not loaded before.
        released: The models that no ensemble will need.
        new_versions: The folders of new versions of members, as MODEL/VERSION.
        rejected: The configuration that was edited by hand; `before` then contains the one that was served. If a server refuses the hand
            edit, it is saved as `config.pbtxt.rejected`.

    Raises:
        ValueError: A path leads out of the repository.

    Example:
        >>> journal = read_journal(Path("model_repository"))
        >>> journal is None or journal.is_applied
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
    new_versions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for path in (*self.before, *self.after, *self.new_models, *self.new_versions, *self.loads, *self.released):
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"{path!r} leads out of the repository")

    @classmethod
    def from_plan(
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
        """Return the journal to write before `plan` is executed.

        Args:
            plan: The plan.
            edit: The edit, as the history will record it.
            group: All repositories of the edit.
            urls: The servers of this repository.
            loads: The models that servers have not loaded yet.
            released: The models that no ensemble will need.
            served_before: The configuration that a hand edit replaced.
        """
        disk, outcome = plan.disk(), plan.outcome()
        config = f"{plan.name}/{CONFIG_FILE}"
        folder = plan.repository / plan.name
        existing = [path.relative_to(plan.repository).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        rewritten = [path for path in plan.unused_files if disk.exists(path)]
        before = {path: disk.content(path) for path in (*rewritten, *(existing if plan.deletes else plan.files))}
        if plan.deletes:  # only files are restored, and Triton needs the version folder even if it is empty
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
            after={path: outcome.digest(path) for path in (*plan.unused_files, config)},
            new_models=tuple(model for model in plan.new_models if not disk.has(model)),
            loads=tuple(loads),
            released=tuple(released),
            rejected=rejected,
            new_versions=tuple(dict.fromkeys("/".join(path.split("/")[:2]) for path in plan.copies if not disk.exists(path))),
        )

    @property
    def is_applied(self) -> bool:
        """Whether all changes are on disk; the ensemble's configuration changes last."""
        return all(self._disk.digest(path) == digest for path, digest in self.after.items())

    def write(self, unused: Mapping[str, bytes] | None = None) -> None:
        """Write the journal durably, before anything else changes; then `unused`, files that no ensemble uses yet, by their paths."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "repository"}
        values = {"schema": _SCHEMA, **values, "edit": line_from_edit(self.edit).decode()}
        journal = json.dumps(msgspec.to_builtins(values), indent=1).encode() + b"\n"
        write_journaled(self.repository, {PENDING_FILE: journal, **(unused or {})})

    def clear(self, *, is_recorded: bool = False) -> None:
        """Delete the journal durably; one that reappeared after a power cut would undo later changes.

        Args:
            is_recorded: The history has the edit, so that a journal that reappears only finishes the edit again. Nothing is flushed then.
        """
        (self.repository / PENDING_FILE).unlink(missing_ok=True)
        if not is_recorded:
            sync([self.repository])

    def sync_files(self) -> None:
        """Flush the files of the edit and their folders; files of another process or an operator may be only in memory."""
        models = {path.partition("/")[0] for path in (*self.before, *self.after)}
        folders = [folder for model in sorted(models) if (folder := self.repository / model).is_dir()]
        sync([path for folder in folders for path in (*folder.rglob("*"), folder) if path.is_file() or path.is_dir()])
        sync([self.repository])

    def changed_meanwhile(self) -> Path | None:
        """Return a file of the ensemble, or the journal itself, that another program has changed since; None if there is none."""
        config = f"{self.edit.ensemble}/{CONFIG_FILE}"
        known = {**self.before, **({} if self.rejected is None else {config: self.rejected})}
        for path, content in known.items():
            if path.startswith(f"{self.edit.ensemble}/") and self._disk.content(path) != content:
                return self.repository / path
        current = read_journal(self.repository)
        return None if current is not None and current.edit.id == self.edit.id else self.repository / PENDING_FILE

    def conflicting_config(self) -> bytes | None:
        """Return the ensemble's configuration on disk if it is neither the old nor the new one, so another program's; else None."""
        path = f"{self.edit.ensemble}/{CONFIG_FILE}"
        content = self._disk.content(path)
        if content is None or content in (self.before.get(path), self.rejected) or path not in self.before:
            return None
        return None if self._disk.digest(path) == self.after.get(path) else content

    @property
    def is_rolled_back(self) -> bool:
        """Whether a server refused the hand edit and the served configuration is on disk again."""
        path = f"{self.edit.ensemble}/{CONFIG_FILE}"
        return self.rejected is not None and self.before[path] != self.rejected and self._disk.content(path) == self.before[path]

    @property
    def rejected_file(self) -> Path:
        """The file that keeps a hand edit that a server refused."""
        return self.repository / self.edit.ensemble / f"{CONFIG_FILE}.rejected"

    def restore_ensemble(self, *, refused: bool = False, keep_conflicting: bool = False) -> None:
        """Restore the ensemble's own files in one step; the averaging models stay, because a server may have loaded them.

        Args:
            refused: A server refused the hand edit, so it is moved to `rejected_file`; otherwise it stays in place.
            keep_conflicting: A configuration that another program wrote meanwhile stays in place; otherwise it is moved to `rejected_file`.
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
        removals = [path for path, content in before.items() if content is None and (self.repository / path).exists()]
        folder = self.repository / name
        existing = {path.relative_to(self.repository).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        if existing and existing <= set(removals):
            remove_files(self.repository, [name])  # the folder contains only files of the edit: remove it by one rename
        else:
            for path in sorted(removals, key=lambda path: path != config):
                (self.repository / path).unlink()
                sync([(self.repository / path).parent])  # the configuration is removed before the files that it needs
        if writes:
            write_files(self.repository, writes)
        # After the configurations that describe them, and as whole folders: Triton does not load a model with an empty version.
        remove_files(self.repository, [version for version in self.new_versions if (self.repository / version).exists()])

    def remove_new_models(self) -> None:
        """Remove the averaging models that the edit wrote."""
        remove_files(self.repository, [model for model in self.new_models if (self.repository / model).exists()])

    @property
    def _disk(self) -> RepositoryView:
        return RepositoryView(self.repository)


class _JournalFile(msgspec.Struct):
    """The fields whose form in the file differs from `EditJournal`: the edit is a line of a history, and `rejected` is required."""

    edit: str
    rejected: str | None


def remove_stale_temporaries(repository: Path) -> list[Path]:
    """Remove and return the temporary files that killed edits have left. Hold `locked` meanwhile.

    Raises:
        OSError: A file cannot be removed.
    """
    models = [folder for folder in sorted(repository.iterdir()) if folder.is_dir()]
    configs = [folder / f"{CONFIG_FILE}{end}" for folder in models for end in ("", ".rejected")]
    return [stale for target in (repository / PENDING_FILE, repository / HISTORY_FILE, *configs) for stale in remove_temporaries(target)]


def _write(target: Path, content: bytes) -> None:
    write_atomic(target, content, mode=shared_mode(target))


def read_journal(repository: Path) -> EditJournal | None:
    """Read the journal of the edit in progress; return None if there is none.

    Raises:
        HistoryError: The journal is damaged, or another version of this package wrote it.
        OSError: The journal cannot be read.
    """
    path = repository / PENDING_FILE
    try:
        values = parse_json(read_regular(path))
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != _SCHEMA and str(schema).startswith("defensemble.pending-edit/"):
            raise HistoryError(
                f"{path} was written by another version of defensemble ({schema}); finish or undo its edit with that version"
            )
        journal = record_from_values(checked_schema(values, _SCHEMA), _JournalFile)
        edit = edit_from_line(journal.edit.encode(), str(path))
        return record_from_values({**values, "repository": repository, "edit": edit}, EditJournal)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise HistoryError(
            f"{path} is damaged ({error}). It describes how to undo an interrupted edit. Run `defensemble ensemble check` to see the state "
            "of the repository, then move that file away"
        ) from error

"""A model of a disk that loses power: writes survive only if `fsync` flushed the file and its folder.

Between two flushes, a file system may write changes of folders in any order. So several states are possible at any time: without any
unflushed change, with all of them, and with each single one. The content of a file that was not flushed is lost in all states.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.support.system_calls import Call

Tree = dict[str, "bytes | Tree"]


class _File:
    def __init__(self, content: bytes = b"", flushed: bytes = b"") -> None:
        self.content = content
        self.flushed = flushed


class _Folder:
    def __init__(self) -> None:
        self.entries: dict[str, _File | _Folder] = {}
        self.flushed: dict[str, _File | _Folder] = {}

    def changes(self) -> list[str]:
        """Return the names whose entries are not flushed."""
        names = sorted({*self.entries, *self.flushed})
        return [name for name in names if self.entries.get(name) is not self.flushed.get(name)]


class Disk:
    """A folder, in memory and on disk."""

    def __init__(self, place: Path) -> None:
        """Start with the content of `place`, which counts as flushed."""
        self._place = place
        self._root = _loaded(place)

    def holds(self, path: str) -> bool:
        """Return whether a path is in the folder."""
        return Path(path).is_relative_to(self._place)

    def apply(self, call: Call) -> None:
        """Apply a system call."""
        paths = [path for path in call.paths if self.holds(path)]
        if not paths or any(Path(path).name.startswith("#") for path in paths):  # elsewhere, or a file without a name (O_TMPFILE)
            return
        parent, name = self._parent(paths[-1])
        if call.name == "openat":
            if "O_CREAT" in call.flags:
                parent.entries.setdefault(name, _File())
            if "O_TRUNC" in call.flags:
                self._file(paths[0]).content = b""
        elif call.name == "write":
            self._file(paths[0]).content += call.content
        elif call.name in ("fsync", "fdatasync"):
            entry = self._find(paths[0])
            if isinstance(entry, _File):
                entry.flushed = entry.content
            elif entry is not None:
                entry.flushed = dict(entry.entries)
        elif call.name in ("mkdir", "mkdirat"):
            parent.entries[name] = _Folder()
        elif call.name in ("rename", "renameat", "renameat2"):
            source, old = self._parent(paths[0])
            parent.entries[name] = source.entries.pop(old)
        elif call.name in ("link", "linkat"):
            parent.entries[name] = self._file(paths[0])
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            del parent.entries[name]
        else:
            raise AssertionError(f"unknown system call {call.name}")

    def is_flushed(self, path: str) -> bool:
        """Return whether a path and everything below it would survive a power cut; also for a deleted path."""
        now, then = self._find(path), self._find(path, flushed=True)
        return now is then and (now is None or _is_flushed(now))

    def has_flushed_content(self, path: str) -> bool:
        """Return whether the content of a file, or of all files of a folder, is flushed; its own name need not be."""
        entry = self._find(path)
        return entry is not None and _is_flushed(entry)

    def after_kill(self) -> Tree:
        """Return the content after the process is killed, but not the machine."""
        return _in_memory(self._root)

    def after_power_cut(self) -> Iterator[Tree]:
        """Return all possible contents after a power cut."""
        yield _remaining(self._root, None, everything=False)
        yield _remaining(self._root, None, everything=True)
        for folder in _folders(self._root):
            for name in folder.changes():
                yield _remaining(self._root, (folder, name), everything=False)

    def _find(self, path: str, *, flushed: bool = False) -> _File | _Folder | None:
        entry: _File | _Folder | None = self._root
        for part in Path(path).relative_to(self._place).parts:
            if not isinstance(entry, _Folder):
                return None
            entry = (entry.flushed if flushed else entry.entries).get(part)
        return entry

    def _file(self, path: str) -> _File:
        entry = self._find(path)
        assert isinstance(entry, _File), path
        return entry

    def _parent(self, path: str) -> tuple[_Folder, str]:
        if Path(path) == self._place:
            return self._root, ""
        entry = self._find(str(Path(path).parent))
        assert isinstance(entry, _Folder), path
        return entry, Path(path).name


def write_tree(place: Path, tree: Tree) -> None:
    """Write a tree into a folder that does not exist yet."""
    place.mkdir(parents=True)
    for name, content in tree.items():
        if isinstance(content, bytes):
            (place / name).write_bytes(content)
        else:
            write_tree(place / name, content)


def _loaded(place: Path) -> _Folder:
    folder = _Folder()
    for path in place.iterdir():
        folder.entries[path.name] = _loaded(path) if path.is_dir() else _File(path.read_bytes(), path.read_bytes())
    folder.flushed = dict(folder.entries)
    return folder


def _is_flushed(entry: _File | _Folder) -> bool:
    if isinstance(entry, _File):
        return entry.content == entry.flushed
    return not entry.changes() and all(map(_is_flushed, entry.entries.values()))


def _folders(folder: _Folder) -> Iterator[_Folder]:
    yield folder
    for below in {**folder.entries, **folder.flushed}.values():
        if isinstance(below, _Folder):
            yield from _folders(below)


def _in_memory(folder: _Folder) -> Tree:
    return {name: node.content if isinstance(node, _File) else _in_memory(node) for name, node in folder.entries.items()}


def _remaining(folder: _Folder, only: tuple[_Folder, str] | None, *, everything: bool) -> Tree:
    entries = dict(folder.entries if everything else folder.flushed)
    if only is not None and only[0] is folder:
        if only[1] in folder.entries:
            entries[only[1]] = folder.entries[only[1]]
        else:
            del entries[only[1]]
    return {
        name: node.flushed if isinstance(node, _File) else _remaining(node, only, everything=everything) for name, node in entries.items()
    }

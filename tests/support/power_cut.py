"""A model of a disk that loses power: what is written is kept only when it was flushed, by `fsync` of the file and of its folder.

Between two flushes a file system may write changes of folders in any order. So of each moment several disks can be left: one without any
unflushed change, one with all of them, and one with each of them only. The content of a file that was not flushed is lost in all.
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
        """The names whose entries are not flushed."""
        names = sorted({*self.entries, *self.flushed})
        return [name for name in names if self.entries.get(name) is not self.flushed.get(name)]


class Disk:
    """A folder as it is in memory, and as it is on disk."""

    def __init__(self, place: Path) -> None:
        """Begin with what lies in `place`, all of it flushed."""
        self._place = place
        self._root = _loaded(place)

    def holds(self, path: str) -> bool:
        """Whether a path is in the folder."""
        return Path(path).is_relative_to(self._place)

    def apply(self, call: Call) -> None:
        """Carry a system call out."""
        paths = [path for path in call.paths if self.holds(path)]
        if not paths or any(Path(path).name.startswith("#") for path in paths):  # elsewhere, or a file that never has a name (O_TMPFILE)
            return
        above, name = self._above(paths[-1])
        if call.name == "openat":
            if "O_CREAT" in call.flags:
                above.entries.setdefault(name, _File())
            if "O_TRUNC" in call.flags:
                self._file(paths[0]).content = b""
        elif call.name == "write":
            self._file(paths[0]).content += call.content
        elif call.name in ("fsync", "fdatasync"):
            found = self._found(paths[0])
            if isinstance(found, _File):
                found.flushed = found.content
            elif found is not None:
                found.flushed = dict(found.entries)
        elif call.name in ("mkdir", "mkdirat"):
            above.entries[name] = _Folder()
        elif call.name in ("rename", "renameat", "renameat2"):
            source, old = self._above(paths[0])
            above.entries[name] = source.entries.pop(old)
        elif call.name in ("link", "linkat"):
            above.entries[name] = self._file(paths[0])
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            del above.entries[name]
        else:
            raise AssertionError(f"the model knows no {call.name}")

    def is_flushed(self, path: str) -> bool:
        """Whether a path, and all below it, would be the same after a power cut; also where it is gone."""
        now, then = self._found(path), self._found(path, flushed=True)
        return now is then and (now is None or _is_whole(now))

    def has_whole_content(self, path: str) -> bool:
        """Whether the content of a file, or of all files of a folder, is flushed, whatever its own name is."""
        found = self._found(path)
        return found is not None and _is_whole(found)

    def after_kill(self) -> Tree:
        """What is left of it where a process is killed, and not the machine."""
        return _in_memory(self._root)

    def after_power_cut(self) -> Iterator[Tree]:
        """What may be left of it."""
        yield _left(self._root, None, everything=False)
        yield _left(self._root, None, everything=True)
        for folder in _folders(self._root):
            for name in folder.changes():
                yield _left(self._root, (folder, name), everything=False)

    def _found(self, path: str, *, flushed: bool = False) -> _File | _Folder | None:
        found: _File | _Folder | None = self._root
        for part in Path(path).relative_to(self._place).parts:
            if not isinstance(found, _Folder):
                return None
            found = (found.flushed if flushed else found.entries).get(part)
        return found

    def _file(self, path: str) -> _File:
        found = self._found(path)
        assert isinstance(found, _File), path
        return found

    def _above(self, path: str) -> tuple[_Folder, str]:
        if Path(path) == self._place:
            return self._root, ""
        found = self._found(str(Path(path).parent))
        assert isinstance(found, _Folder), path
        return found, Path(path).name


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


def _is_whole(found: _File | _Folder) -> bool:
    if isinstance(found, _File):
        return found.content == found.flushed
    return not found.changes() and all(map(_is_whole, found.entries.values()))


def _folders(folder: _Folder) -> Iterator[_Folder]:
    yield folder
    for below in {**folder.entries, **folder.flushed}.values():
        if isinstance(below, _Folder):
            yield from _folders(below)


def _in_memory(folder: _Folder) -> Tree:
    return {name: one.content if isinstance(one, _File) else _in_memory(one) for name, one in folder.entries.items()}


def _left(folder: _Folder, only: tuple[_Folder, str] | None, *, everything: bool) -> Tree:
    entries = dict(folder.entries if everything else folder.flushed)
    if only is not None and only[0] is folder:
        if only[1] in folder.entries:
            entries[only[1]] = folder.entries[only[1]]
        else:
            del entries[only[1]]
    return {name: one.flushed if isinstance(one, _File) else _left(one, only, everything=everything) for name, one in entries.items()}

"""Messages for errors of the operating system, with a fix for each."""

from __future__ import annotations

import errno
from pathlib import Path

from .paths import similar_paths

# Options and arguments of a verb that name a place to write to.
_PLACES = {
    "train": "OUTPUT, --run or --tensorboard",
    "export": "--repository",
    "import-onnx": "--repository",
    "fuse": "--repository",
    "build-engine": "--repository, --timing-cache or --log",
    "profile": "--repository",
    "ensemble": "--repository or FILE",
    "serve": "XDG_STATE_HOME, for logs and the list of servers, or XDG_CACHE_HOME, for the backend",
    "predict": "--contact-sheet",
    "probe": "--out, --examples, --folder or --cache",
    "report": "--out or --charts",
    "demo": "--folder",
}
_OTHER_PLACE = "choose another place"
_FREE_SPACE = "free some space there, or " + _OTHER_PLACE
_CHANGE_PERMISSIONS = "change the permissions there (chmod, chown), or " + _OTHER_PLACE
_FIXES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EROFS: "the file system is read-only: " + _OTHER_PLACE,
    errno.EACCES: _CHANGE_PERMISSIONS,
    errno.EPERM: _CHANGE_PERMISSIONS,
    errno.ENOENT: "check the spelling; a path without a leading / starts in the current folder",
    errno.EISDIR: "it is a folder: pass a file",
    errno.ENOTDIR: "a part of the path is a file: pass a folder",
    errno.EEXIST: "it exists: move it away, or " + _OTHER_PLACE,
    errno.ELOOP: "the link leads back to itself: correct it",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "raise the limit of open files per process (ulimit -n)",
}


def text_from_os_error(error: OSError, verb: str | None) -> str:
    """Return the system's text, the files and a fix.

    Args:
        error: The error.
        verb: The command that was running, whose options name places to write to.
    """
    if error.strerror is None:
        return str(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    fix = _FIXES.get(error.errno or 0)
    similar = similar_paths(Path(names[0])) if error.errno == errno.ENOENT and len(names) == 1 else []
    if similar:
        fix = f"did you mean {' or '.join(map(str, similar))}?"
    if fix is not None and fix.endswith(_OTHER_PLACE) and verb in _PLACES:
        fix += f" ({_PLACES[verb]})"
    return ": ".join([error.strerror, *names, *([fix] if fix is not None else [])])

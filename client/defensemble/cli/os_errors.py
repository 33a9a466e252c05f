"""What the operating system refuses, and how a user mends it."""

from __future__ import annotations

import errno

# Where a verb writes, in the words of its command line.
_PLACES = {
    "train": "OUTPUT, --run or --tensorboard, whichever lies there",
    "export": "--repository",
    "build-engine": "REPOSITORY, --timing-cache or --log, whichever lies there",
    "profile": "REPOSITORY",
    "ensemble": "--repository or FILE, whichever lies there",
    "serve": "XDG_STATE_HOME, for logs and the list of servers, or XDG_CACHE_HOME, for the backend",
    "probe": "--out",
    "demo": "--folder",
}
_ANOTHER_PLACE = "name another place"
_FULL = "free some space there, or " + _ANOTHER_PLACE
_MENDS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: "nothing can be written there: " + _ANOTHER_PLACE,
    errno.EACCES: "let this user do that there (chmod, chown), or " + _ANOTHER_PLACE,
    errno.EPERM: "let this user do that there (chmod, chown), or " + _ANOTHER_PLACE,
    errno.ENOENT: "look at how it is spelt and where it begins; without a leading / it is looked for in the current folder",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOTDIR: "a part of that path is a file: name a folder",
    errno.EEXIST: "it is there already: move it away, or " + _ANOTHER_PLACE,
    errno.ENAMETOOLONG: "name it shorter",
    errno.EMFILE: "raise the number of files that a process may open (ulimit -n)",
}


def text_from_os_error(error: OSError, verb: str | None) -> str:
    """What the system says, of which files, and the mend; `verb` is the command that was running."""
    if error.strerror is None:
        return str(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    mend = _MENDS.get(error.errno or 0)
    if mend is not None and mend.endswith(_ANOTHER_PLACE) and verb in _PLACES:
        mend += f" ({_PLACES[verb]})"
    return ": ".join([error.strerror, *names, *([mend] if mend is not None else [])])

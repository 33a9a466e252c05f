"""The entry of the `defensemble` script: from its first line on, Ctrl-C ends the command with exit status 130 and no traceback.

Import this module in the script only: it replaces the process's handler of SIGINT.
"""

import _signal  # type: ignore[import-not-found]  # built in; `signal` would import `enum` first
import os

TYPE_CHECKING = False  # as in `typing`, which is not imported here
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def _exit(number: int, frame: "FrameType | None") -> "NoReturn":
    """End the process now: nothing has begun that needs a cleanup, or the last of it is over."""
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # show the cursor, which a progress bar hides
    os._exit(130)


def _raise(number: int, frame: "FrameType | None") -> None:
    """Raise `KeyboardInterrupt`, but end the process during an import.

    An extension module that is interrupted while it loads prints tracebacks, or hides the interrupt in an ImportError. A command that has
    something to clean up calls `cli.interrupts.clean_up_on_sigint` first; files are written atomically or with a journal.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _exit(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt


# For `defensemble_repository.filesystem.signals`, which treats Python's own handler in the same way.
_raise.raises_keyboard_interrupt = True  # type: ignore[attr-defined]

# A shell starts background jobs with SIGINT ignored, and they keep ignoring it.
_is_ours = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
if _is_ours:
    _signal.signal(_signal.SIGINT, _exit)


def main() -> None:
    """Run the command line."""
    import atexit
    import sys

    from .cli import main as run

    def raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
        """Deliver an interrupt again that came during a destructor or a callback, where Python would print and drop it."""
        if unraisable.exc_type is KeyboardInterrupt:
            _signal.raise_signal(_signal.SIGINT)
        else:
            sys.__unraisablehook__(unraisable)

    if _is_ours:
        # Called last: while the interpreter is torn down, Python gives SIGINT its default action, which would change the exit status.
        atexit.register(_signal.signal, _signal.SIGINT, _signal.SIG_IGN)
        sys.unraisablehook = raise_again
        _signal.signal(_signal.SIGINT, _raise)
    try:
        run()
    finally:
        if _is_ours:
            _signal.signal(_signal.SIGINT, _exit)

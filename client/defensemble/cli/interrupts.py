"""Handle SIGINT in commands that have something to clean up."""

from __future__ import annotations

import signal


def clean_up_on_sigint() -> None:
    """From now on let SIGINT raise `KeyboardInterrupt` during imports too, where it would end the process (`defensemble._entry`).

    Call it before a server is started or edited. A handler that is not the entry module's stays.
    """
    if getattr(signal.getsignal(signal.SIGINT), "raises_keyboard_interrupt", False):
        signal.signal(signal.SIGINT, signal.default_int_handler)

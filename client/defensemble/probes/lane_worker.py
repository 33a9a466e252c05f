"""A worker process of an `AttackPool`. Imports numpy only when its libraries have been limited to one thread."""

from __future__ import annotations

import os
import pickle
import queue
import threading
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from .._exceptions import DefensembleError

if TYPE_CHECKING:
    from .lanes import Lanes

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def work(connection: Connection, settings: bytes) -> None:
    """Run attacks until the parent closes the connection.

    Args:
        connection: To the parent.
        settings: A pickled `AttackSettings`.
    """
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        from .lanes import Lanes

        _run(connection, inbox, Lanes(pickle.loads(settings)))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the parent has ended
    except BaseException as error:
        # Errors of this package are for the user; every other one is a bug, whose traceback is needed.
        connection.send(error if isinstance(error, DefensembleError) else traceback.format_exc())
    # The threads of unfinished attacks wait for responses that will not come.
    os._exit(0)


def _read(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Receive messages at any time, so that the parent never waits to send. Ends the process when the parent has ended."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _run(connection: Connection, inbox: queue.SimpleQueue[Any], lanes: Lanes) -> None:
    import numpy as np

    from .lanes import AttackTask

    while True:
        messages = [inbox.get()]
        while not inbox.empty():
            messages.append(inbox.get())
        for message in messages:
            if isinstance(message, AttackTask):
                lanes.start(message)
            else:
                for position, answers in message:
                    lanes.answer(position, answers)
        questions, finished = lanes.run()
        connection.send(([(position, len(images)) for position, images in questions], finished))
        if questions:
            connection.send_bytes(np.concatenate([images for _, images in questions]).data)

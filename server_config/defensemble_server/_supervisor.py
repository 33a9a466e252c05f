"""Keeps Triton no longer than its parent: run as a script, with the standard library alone.

Standard input is a pipe that only the parent holds. Its first line is JSON: ``command`` and ``environment`` of the server, ``log``
(a file), ``state`` (a file to remove at the end), ``grace_s`` (how long the server may drain). Then a line ``detach`` lets the server
outlive the parent; end of file without it means that the parent ended or died. A signal is not used for that: PR_SET_PDEATHSIG fires
when the *thread* that forked ends. SIGTERM is an order to stop too; SIGINT one to do so at once, without draining. Standard output says
``started PID`` and, at the end, ``exited STATUS``.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import time

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Start the server, wait for its end or for the order to end it, and clean up."""
    wake, wake_writer = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer)
    stopping = at_once = False

    def stop(number: int, _: object) -> None:
        nonlocal stopping, at_once
        stopping = True
        at_once = at_once or number == signal.SIGINT

    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    settings = json.loads(_line(0))
    libc = ctypes.CDLL(None)
    # This process has one thread, so here the signal does mean its death.
    with open(settings["log"], "ab") as log:
        server = subprocess.Popen(
            settings["command"],
            env=settings["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    try:
        _say(f"started {server.pid}")
        watched = [0, wake]
        while server.poll() is None and not stopping:
            ready, _, _ = select.select(watched, [], [])
            if wake in ready:
                os.read(wake, 4096)
            if 0 in ready:
                order = _line(0)
                if order == "detach":
                    watched.remove(0)
                else:
                    stopping = True
        server.terminate()
        deadline = time.monotonic() + settings["grace_s"]
        while server.poll() is None and time.monotonic() < deadline and not at_once:
            time.sleep(0.005)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        _forget(settings["state"])
        _say(f"exited {server.returncode}")


def _forget(state: str) -> None:
    """Remove the file that says that we run; one of another server on the same port stays."""
    try:
        with open(state) as file:
            ours = json.load(file)["pid"] == os.getpid()
    except (OSError, ValueError, KeyError, TypeError):
        return  # there is none, or it is not ours to judge
    if ours:
        os.unlink(state)


def _line(descriptor: int) -> str:
    """Read one line, byte by byte: nothing behind it may be taken from the pipe. Empty at the end of file."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return ""
        line += byte
    return line.decode().rstrip("\n")


def _say(text: str) -> None:
    try:
        os.write(1, f"{text}\n".encode())
    except BrokenPipeError:
        pass  # the parent is gone: there is nobody to tell, and the server is ended all the same


if __name__ == "__main__":
    main()

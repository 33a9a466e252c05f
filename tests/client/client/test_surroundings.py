"""Many threads and tasks on one client, forks, event loops that close early, Ctrl-C and the interpreter's exit during calls."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from defensemble import AsyncClient, Client, ClientClosedError, ConnectionFailedError, DefensembleError
from tests.support.checkout import ROOT
from tests.support.clients import url_of
from tests.support.tcp_proxy import TcpProxy, connected_sockets, delay, proxied, slow, stall, until
from tests.support.tiny import Array, images, logits, softmax

if TYPE_CHECKING:
    from defensemble_server import Server

PROTOCOLS = ("grpc", "http")
# Against Triton before 2.59 a gRPC client lets calls under way run out, 2 s at most.
CLOSE_WAIT_S = {"grpc": 2.0, "http": 0.0}
MARGIN_S = 3.0  # a busy machine starts Python slowly


def expected(batch: Array) -> Array:
    return softmax(logits(1, batch))


def is_right(probabilities: Array, batch: Array) -> bool:
    return probabilities.shape == (len(batch), 3) and bool(np.abs(probabilities - expected(batch)).max() < 1e-6)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_24_threads_share_a_client(protocol: str, triton: Server) -> None:
    url = url_of(protocol, triton)
    before = connected_sockets(port_of(url))
    with Client(url, "alpha", timeout_s=30) as client:
        barrier = threading.Barrier(24)

        def call(seed: int) -> list[bool]:
            barrier.wait(20)
            batches = [images(1 + (seed + turn) % 20, 100 * seed + turn) for turn in range(3)]
            return [is_right(client.predict(batch).probabilities, batch) for batch in batches]

        with ThreadPoolExecutor(24) as pool:
            assert list(pool.map(call, range(24))) == [[True] * 3] * 24
        assert client.counters.calls == 72
        assert client.counters.failures == 0
    until(lambda: connected_sockets(port_of(url)) == before, 3)


@pytest.mark.parametrize("protocol", [pytest.param("grpc", marks=pytest.mark.slow), "http"])
def test_200_tasks_share_a_client_and_a_second_event_loop_uses_it(protocol: str, triton: Server) -> None:
    url = url_of(protocol, triton)
    before = connected_sockets(port_of(url))
    client = AsyncClient(url, "alpha", timeout_s=30)

    async def call_all(count: int, *, close: bool) -> list[bool]:
        batches = [images(1 + seed % 20, seed) for seed in range(count)]
        predictions = await asyncio.gather(*(client.predict(batch) for batch in batches))
        if close:
            await client.close()
        return [is_right(prediction.probabilities, batch) for prediction, batch in zip(predictions, batches, strict=True)]

    assert asyncio.run(call_all(200, close=False)) == [True] * 200
    assert asyncio.run(call_all(5, close=True)) == [True] * 5
    assert client.counters.failures == 0
    until(lambda: connected_sockets(port_of(url)) == before, 3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_is_cancelled_at_whatever_step_it_is(protocol: str, triton: Server) -> None:
    async def cancel_all(port: int) -> None:
        async with AsyncClient(f"{protocol}://localhost:{port}", "alpha", timeout_s=30) as client:
            await client.describe()
            for steps in range(40):
                task = asyncio.create_task(client.predict(images(20)))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if not task.cancel():
                    break  # it was over
                await asyncio.wait([task], timeout=10)
                assert task.cancelled()
            assert is_right((await client.predict(images(20))).probabilities, images(20))

    with proxied(url_of(protocol, triton)) as proxy:
        asyncio.run(cancel_all(proxy.port))
        proxy.assert_no_socket_left()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_that_is_closed_during_calls_ends_them(protocol: str, triton: Server) -> None:
    with proxied(url_of(protocol, triton)) as proxy:
        client = Client(url_of(protocol, triton, proxy.port), "alpha", timeout_s=30)
        client.describe()
        under_way = threading.Barrier(9)

        def call() -> type[Exception]:
            client.predict(images(20))
            under_way.wait(20)
            try:
                while True:
                    client.predict(images(20))
            except DefensembleError as error:
                return type(error)

        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(call) for _ in range(8)]
            under_way.wait(20)
            client.close()
            assert {each.result(10) for each in calls} <= {ClientClosedError, ConnectionFailedError}
        proxy.assert_no_socket_left()


PREAMBLE = """
import asyncio, os, signal, sys, threading, time
import numpy as np
from defensemble import AsyncClient, Client, ConnectionFailedError, RetryPolicy
from tests.support.tcp_proxy import connected_sockets, until
from tests.support.tiny import images, logits, softmax

url, port = sys.argv[1], int(sys.argv[1].rpartition(":")[2])
batch = images(20)

def check(prediction):
    assert np.abs(prediction.probabilities - softmax(logits(1, batch))).max() < 1e-6
"""


@contextmanager
def script(text: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in which each warning is an error."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", PREAMBLE + text, url]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def go_on(process: subprocess.Popen[str]) -> None:
    """End the script's `input()`."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def noise(errors: str) -> str:
    """The standard error without the lines on slow steps of an event loop that the development mode writes on a busy machine."""
    return "".join(line for line in errors.splitlines(keepends=True) if not line.startswith("Executing <"))


def run_script(text: str, url: str, timeout_s: float = 30) -> str:
    """Return what a script prints; it has to succeed, with nothing on its standard error."""
    with script(text, url) as process:
        output, errors = process.communicate(timeout=timeout_s)
        assert (process.returncode, noise(errors)) == (0, "")
        return output


@pytest.mark.slow
def test_forked_children_call_over_http(triton: Server) -> None:
    output = run_script(
        """
client = Client(url, "alpha", timeout_s=20)
check(client.predict(batch))
over = threading.Event()

def call():
    while not over.is_set():
        check(client.predict(batch))

threads = [threading.Thread(target=call) for _ in range(4)]
for thread in threads:
    thread.start()
statuses = []
for number in range(20):
    child = os.fork()  # while the threads are in calls, and hold the locks of the client
    if child == 0:
        signal.alarm(10)
        check(client.predict(batch))
        if number % 2:
            client.close()
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
over.set()
for thread in threads:
    thread.join()
check(client.predict(batch))
assert client.counters.failures == 0
client.close()
until(lambda: connected_sockets(port) == 0)
print(set(statuses))
""",
        triton.http_url,
    )
    assert output == "{0}\n"


@pytest.mark.slow
def test_forked_children_call_over_http_in_an_event_loop(triton: Server) -> None:
    output = run_script(
        """
client = AsyncClient(url, "alpha", timeout_s=20)

async def call(close):
    check(await client.predict(batch))
    if close:
        await client.close()

asyncio.run(call(False))
child = os.fork()
if child == 0:
    signal.alarm(10)
    asyncio.run(call(True))
    os._exit(0)
status = os.waitpid(child, 0)[1]
asyncio.run(call(True))
print(status)
""",
        triton.http_url,
    )
    assert output == "0\n"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["Client", "AsyncClient"])
def test_a_forked_child_gets_a_clear_error_over_grpc_and_the_parent_goes_on(form: str, triton: Server) -> None:
    output = run_script(
        f"""
client = {form}(url, "alpha", timeout_s=20)

def run(result):
    return asyncio.run(result) if asyncio.iscoroutine(result) else result

check(run(client.predict(batch)))
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(10)
    started = time.monotonic()
    try:
        run(client.predict(batch))
    except ConnectionFailedError as error:
        os.write(writer, f"{{error}} {{time.monotonic() - started < 1}}".encode())
    run(client.close())
    os._exit(0)
status = os.waitpid(child, 0)[1]
print(status, os.read(reader, 10_000).decode())
check(run(client.predict(batch)))
run(client.close())
until(lambda: connected_sockets(port) == 0)
""",
        triton.grpc_url,
    )
    assert output.startswith("0 ")
    assert "fork" in output
    assert output.endswith("True\n")


LOOPS_THAT_END_EARLY = {
    "a task is left behind": """
async def main():
    task = asyncio.create_task(client.predict(batch))
    await asyncio.sleep(0.2)

asyncio.run(main())
""",
    "a task is cancelled": """
async def main():
    tasks = [asyncio.create_task(client.predict(batch)) for _ in range(20)]
    await asyncio.sleep(0.2)
    started = time.monotonic()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    assert time.monotonic() - started < 0.5

asyncio.run(main())
""",
    "a timeout ends the loop": """
async def main():
    await asyncio.wait_for(client.predict(batch), 0.2)

try:
    asyncio.run(main())
except (TimeoutError, asyncio.TimeoutError):
    pass
""",
    "an iterator is left behind": """
async def first():
    iterator = client.predict_iter(images(1000))
    await asyncio.wait_for(iterator.__anext__(), 0.2)

try:
    asyncio.run(first())
except (TimeoutError, asyncio.TimeoutError):
    pass
""",
    "a loop is closed during a call": """
loop = asyncio.new_event_loop()
task = loop.create_task(client.predict(images(4)))  # one request: asyncio complains about each task that is left on a closed loop
loop.run_until_complete(asyncio.sleep(0.2))
loop.close()
task._log_destroy_pending = False
del task
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", LOOPS_THAT_END_EARLY)
def test_an_event_loop_that_ends_during_calls(protocol: str, name: str, triton: Server) -> None:
    text = f"""
client = AsyncClient(url, "alpha", timeout_s=60)
asyncio.run(client.describe())
print("ready", flush=True)
input()
{LOOPS_THAT_END_EARLY[name]}
print("ended", flush=True)
input()

async def again():
    check(await client.predict(batch, timeout_s=10))
    await client.close()

asyncio.run(again())
until(lambda: connected_sockets(port) == 0, 5)
"""
    with proxied(url_of(protocol, triton)) as proxy, script(text, url_of(protocol, triton, proxy.port)) as process:
        assert read_line(process) == "ready\n"
        proxy.always = delay(0.6)  # the call lasts longer than the loop
        go_on(process)
        assert read_line(process) == "ended\n"
        proxy.always = None
        go_on(process)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, noise(errors)) == (0, "")
        proxy.assert_no_socket_left()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", ["Client", "AsyncClient"])
def test_the_interpreter_exits_during_calls(protocol: str, form: str, triton: Server) -> None:
    text = f"""
client = {form}(url, "alpha", timeout_s=60)

def call():
    asyncio.run(client.predict(batch)) if {form == "AsyncClient"} else client.predict(batch)

for _ in range(3):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.5)
print(time.monotonic(), flush=True)
"""
    with proxied(url_of(protocol, triton)) as proxy, script(text, url_of(protocol, triton, proxy.port)) as process:
        proxy.always = stall()
        ended = float(read_line(process))
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - ended < CLOSE_WAIT_S[protocol] + MARGIN_S
        assert (process.returncode, noise(errors)) == (0, "")
        until(lambda: proxy.open == 0)


def interrupted(process: subprocess.Popen[str], proxy: TcpProxy, ready: int) -> tuple[float, float]:
    """Send Ctrl-C when the proxy has seen `ready` exchanges. Returns the seconds to the exception and to the exit."""
    until(lambda: proxy.exchanges >= ready or process.poll() is not None, 20)
    time.sleep(0.3)  # gRPC's own frames count as well
    sent = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    exited = time.monotonic() - sent
    assert process.returncode == -signal.SIGINT, errors
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert "Warning" not in errors
    return float(output) - sent, exited


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "call",
    [
        "client.predict(images(4000))",
        "list(client.predict_iter(images(4000)))",
        "asyncio.run(aclient.predict(images(4000)))",
        "client.predict(images(4))",
    ],
)
@pytest.mark.parametrize("is_silent", [False, True])
def test_ctrl_c_ends_a_call_at_once(protocol: str, call: str, is_silent: bool, triton: Server) -> None:
    text = f"""
client, aclient = Client(url, "alpha", timeout_s=60), AsyncClient(url, "alpha", timeout_s=60)
client.describe()
asyncio.run(aclient.describe())
print("ready", flush=True)
input()
try:
    {call}
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
    raise
"""
    with proxied(url_of(protocol, triton)) as proxy, script(text, url_of(protocol, triton, proxy.port)) as process:
        assert read_line(process) == "ready\n"
        ready = proxy.exchanges + (1 if is_silent or "4)" in call else 8)
        proxy.always = stall() if is_silent or "4)" in call else slow(0.05)
        go_on(process)
        raised, exited = interrupted(process, proxy, ready)
        assert raised < 1.0
        assert exited < 1.5 + CLOSE_WAIT_S[protocol]
        until(lambda: proxy.open == 0)

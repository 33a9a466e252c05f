"""The fault table: one entry per fault, from which benchmark, page and tests follow."""

from __future__ import annotations

from benchmarks.faulting import clients, in_members, processes, requests, storage
from benchmarks.faulting.fault import BEGIN, DETECTION, Fault

_REFUSED = "each is refused, or its connection closed; others notice nothing"
_RESTARTED = "core 2.51 may die, and is restarted"

FAULTS = (
    Fault("killed", "SIGKILL to Triton", "it is restarted", processes.kill, BEGIN),
    Fault("frozen", "SIGSTOP to Triton", "it is found, killed and restarted", processes.freeze, DETECTION),
    Fault(
        "replica_killed",
        "SIGKILL to one of two servers of the same models; callers have the URLs of both, and the default retry policy",
        "no call fails",
        processes.kill,
        BEGIN,
        replicas=2,
        may_fail=False,
    ),
    Fault("member_hangs", "an image for which a member runs for ever", "it is found, and the server restarted", in_members.hang, DETECTION),
    Fault(
        "member_fails",
        "images for which a member fails, for a while",
        "only their calls fail; others have at least half of their calls per second",
        in_members.fail,
        may_fail=False,
        keeps_rate=True,
    ),
    Fault(
        "member_nan",
        "a member's last bias becomes NaN in the server's memory",
        "it is found, and a fresh copy of the member is loaded by an edit; the client rejects the answers meanwhile",
        in_members.compute_nan,
        DETECTION,
    ),
    Fault(
        "member_wrong",
        "a member's last bias becomes another one in the server's memory",
        "it is found, and a fresh copy of the member is loaded by an edit; this cannot be noticed before",
        in_members.compute_wrong,
        DETECTION,
        may_answer_wrong=True,
    ),
    Fault("shm_full", "`/dev/shm` is full for a while", "nobody notices", storage.fill_shm, small_shm=True, may_fail=False),
    Fault(
        "disk_full",
        "the disk of repository, log and state is full for a while; an edit meanwhile",
        "the edit fails as a whole; callers notice nothing",
        storage.fill_disk,
        small_disk=True,
        may_fail=False,
    ),
    Fault(
        "killed_disk_full",
        "SIGKILL while that disk is full",
        "it is restarted",
        storage.kill_on_full_disk,
        BEGIN,
        small_disk=True,
    ),
    Fault(
        "entry_damaged",
        "files of the repository are damaged in six ways, and reloaded",
        "each reload is refused, and the old model serves on",
        storage.reload_damaged,
        may_fail=False,
    ),
    Fault("slow_clients", "500 slow and half-open clients on all ports", "no call fails", clients.hold_slow_clients, may_fail=False),
    Fault("connection_flood", "up to 3,000 open connections on all ports", "the server is there when they end", clients.flood_connections),
    Fault("request_flood", "inferences over HTTP, 256 at once", "calls take longer", clients.flood_requests),
    Fault("stream_flood", "1,000 calls at once on one HTTP/2 connection", "calls take longer", clients.flood_streams),
    Fault("random_bytes", "random bytes, heads of requests and HTTP/2 frames on every port", _REFUSED, requests.send_random_bytes),
    Fault("truncated", "requests that are cut off at a random byte, on every port", _REFUSED, requests.send_truncated),
    Fault("oversized", "oversized paths, headers, bodies, frames and messages on every port", _REFUSED, requests.send_oversized),
    Fault("bad_tensors", "wrong types, shapes and huge declared sizes over both protocols", _REFUSED, requests.send_bad_tensors),
    Fault("path_tricks", "names that mean paths, in calls and, with the admin key, in loads", _REFUSED, requests.send_path_tricks),
    Fault("deep_json", "120 kB of `[` over HTTP", _RESTARTED, requests.send_deep_json, BEGIN),
    Fault("inflating_body", "a small gzip body that inflates to gigabytes", _RESTARTED, requests.send_inflating_body),
    Fault("chunk_flood", "two million HTTP chunks of one byte", _RESTARTED, requests.send_chunks),
    Fault("closed_channels", "gRPC channels that close during calls", _RESTARTED, clients.close_channels),
)


def fault_by_name(name: str) -> Fault:
    """Return the fault of a name.

    Raises:
        KeyError: There is no such fault.
    """
    return {fault.name: fault for fault in FAULTS}[name]

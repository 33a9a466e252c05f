"""Known vulnerabilities and faults of Triton's core and front ends: one table, shown by `doctor` and docs/security.md.

The core's minor version counts NVIDIA's monthly releases: 2.51 is 24.10, 2.59.0 is 25.06, 2.59.1 is 25.07, 2.60 is 25.08, and so on.
NVIDIA's security bulletins name the release that fixes a CVE. The other releases are derived from the dates of merged pull requests and
have not been tested here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ServerError

Version = tuple[int, int, int]

_CONTAINER = "NVIDIA's container, 26.07 or later, behind a proxy"
_PROXY = "the proxy of docs/how-to/proxy.md"
_NO_QUEUE_LIMITS = f"no queue limits on members: limit the calls in {_PROXY}"


@dataclass(frozen=True)
class Weakness:
    """A vulnerability or fault that callers can exploit or trigger.

    Args:
        ids: CVEs, or upstream issues and pull requests; empty if there are none.
        title: What happens, and its cause.
        advice: What to do on an affected core.
        fixed_in: The first fixed core; None if no fix is known.
        release: NVIDIA's release with that core, such as 25.07; empty if no fix is known.
        seen_in: The newest affected core that is known, if no fix is known.
    """

    ids: tuple[str, ...]
    title: str
    advice: str
    fixed_in: Version | None = None
    release: str = ""
    seen_in: Version = (2, 51, 0)

    @property
    def affected(self) -> str:
        """The affected versions in words."""
        if self.fixed_in is None:
            return f"{_text(self.seen_in)}; no fix is known"
        return f"before {_text(self.fixed_in)} ({self.release})"

    def affects(self, core: Version) -> bool:
        """Return whether a core is affected."""
        return core <= self.seen_in if self.fixed_in is None else core < self.fixed_in

    def __str__(self) -> str:
        known_as = f"{', '.join(self.ids)}; " if self.ids else ""
        fixed = "no fix is known" if self.fixed_in is None else f"fixed in {self.release}"
        return f"{self.title} ({known_as}{fixed})"


KNOWN_CVES = (
    Weakness(
        ("CVE-2025-23310", "CVE-2025-23311"),
        "a request of many HTTP chunks overflows the stack; no login is needed",
        _CONTAINER,
        (2, 59, 1),
        "25.07",
    ),
    Weakness(
        ("CVE-2025-23319", "CVE-2025-23320", "CVE-2025-23334"),
        "shared memory of the Python backend leads to remote code execution",
        "no Python backend: `defensemble serve` leaves it out",
        (2, 59, 1),
        "25.07",
    ),
    Weakness(
        ("CVE-2025-23316",),
        "model names in the model control API lead to code execution",
        "an admin key for that API: `defensemble serve` sets one",
        (2, 60, 0),
        "25.08",
    ),
    Weakness(
        ("CVE-2026-24206", "CVE-2026-24207"),
        "authentication is bypassed through an alternate path",
        "no SageMaker and Vertex AI front ends: `defensemble serve` leaves them off",
        (2, 67, 0),
        "26.03",
    ),
    Weakness(("several CVEs",), "more faults in each of NVIDIA's bulletins for 26.04 to 26.07", _CONTAINER, (2, 71, 0), "26.07"),
)

# Other faults that can stop a server or leak its memory.
KNOWN_FAULTS = (
    Weakness(
        ("server issues 7368, 7877, 8034", "server PRs 7840, 8078, 8220"),
        "a gRPC channel that closes while a call is under way, as when a caller is killed, can end the server",
        "call over HTTP",
        (2, 59, 0),
        "25.06",
    ),
    Weakness(
        (),
        "an ensemble whose last two steps fail for the same request, as in repositories of older versions, can end the server",
        "`defensemble ensemble reload` converts old repositories to one last step",
    ),
    Weakness(
        (),
        "a member that fails while Triton still starts the other members of the ensemble ends the server",
        "`defensemble serve`, whose backend delays errors by 50 ms",
    ),
    Weakness((), "an unload of a model that is still being loaded can end the server", "wait for a load to end first"),
    Weakness(
        ("server issue 7795",), "Triton's own trace of HTTP requests under load can end the server", "trace few calls, or calls over gRPC"
    ),
    Weakness(
        ("core PRs 466, 470",),
        "a queue limit on a member of an ensemble leaves calls without an answer",
        _NO_QUEUE_LIMITS,
        (2, 66, 0),
        "26.02",
    ),
    Weakness(
        ("core PR 483",),
        "a queue limit on a member of an ensemble ends the server when it refuses a call",
        _NO_QUEUE_LIMITS,
        (2, 69, 0),
        "26.05",
    ),
    Weakness(
        ("core PRs 466, 470, 483",),
        "`serve` accepts calls without limit, since members of an ensemble can have no queue limit: under overload all callers wait",
        f"{_PROXY}, which limits the calls in flight",
        (2, 69, 0),
        "26.05",
    ),
    Weakness(
        ("server PR 8172", "common PR 156"),
        "an HTTP request of deeply nested JSON ends the server",
        f"{_PROXY}, or only trusted callers",
        (2, 69, 0),
        "26.05",
    ),
    Weakness(
        ("server PR 8570",),
        "a compressed HTTP body that inflates to gigabytes ends the server; the memory of smaller ones is not returned",
        _PROXY,
        (2, 65, 0),
        "26.01",
    ),
    Weakness(("server PR 8770",), "a request of very many HTTP chunks takes memory without limit", _PROXY, (2, 70, 0), "26.06"),
    Weakness((), "a gRPC message of a gigabyte is refused, but its memory is not returned", _PROXY),
)


def known_weaknesses(version: str, table: Sequence[Weakness] = (*KNOWN_CVES, *KNOWN_FAULTS)) -> list[Weakness]:
    """Return the entries of `table` that affect a Triton core of this version, such as "2.51.0".

    Raises:
        ServerError: `version` is not a version.
    """
    try:
        major, minor, patch = (*(int(part) for part in version.split(".")[:3]), 0, 0)[:3]
    except ValueError as error:
        raise ServerError(f"{version!r} is not a version of Triton's core; expected three numbers such as 2.51.0") from error
    return [weakness for weakness in table if weakness.affects((major, minor, patch))]


def _text(version: Version) -> str:
    return ".".join(str(number) for number in version)

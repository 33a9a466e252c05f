"""Compute the ratios and figures from the timings. The functions are pure, so that tests can cover every case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.figures import Figure, at_least_figure, at_most_figure, round_ratios, spread, zero_figure

CLIENT, TWO_SERVERS, TRANSPORT = "Client", "Client of two servers", "transport"
TRITONCLIENT, STUB, SOCKET = "tritonclient", "stub", "socket"
ASYNC_CLIENT = "AsyncClient"
PROTOCOLS = {"grpc": "gRPC", "http": "HTTP"}
P50, RATE = "p50_ms", "images_per_s"
IMPORT_GOAL_S = 0.3


@dataclass(frozen=True)
class Comparison:
    """The ratio of two forms, round by round.

    Attributes:
        key: Name in the result and of the figure.
        title: Name in tables.
        quantity: What is compared: `P50` with one caller and one image, or `RATE` with many callers.
        ours: Name of the compared form.
        theirs: Name of the form to compare with.
        goal: Upper limit of the ratio for `P50`, lower limit for `RATE`; None: the ratio is only shown.
    """

    key: str
    title: str
    quantity: str
    ours: str
    theirs: str
    goal: float | None


def form_name(protocol: str, kind: str) -> str:
    """Return the name of a form in results and tables."""
    return f"{PROTOCOLS[protocol]}, {kind}"


def _comparisons() -> list[Comparison]:
    made = []
    for quantity, goal, what in ((P50, 1.05, "p50"), (RATE, 0.97, "throughput")):
        for protocol, peer in (("grpc", TRITONCLIENT), ("http", SOCKET)):
            made.append(_comparison(f"{protocol}_{what}_to_{peer}", what, quantity, protocol, CLIENT, peer, goal))
        made.append(_comparison(f"grpc_{what}_to_stub", what, quantity, "grpc", CLIENT, STUB, None))
    for protocol in PROTOCOLS:
        made.append(_comparison(f"{protocol}_async_to_threads", "throughput", RATE, protocol, ASYNC_CLIENT, CLIENT, 1.0))
    over_http, over_grpc = form_name("http", CLIENT), form_name("grpc", CLIENT)
    made.append(Comparison("http_to_grpc", "throughput: HTTP to gRPC", RATE, over_http, over_grpc, 0.9))
    for protocol in PROTOCOLS:
        made.append(_comparison(f"{protocol}_balancing", "p50", P50, protocol, TWO_SERVERS, CLIENT, 1.02))
        made.append(_comparison(f"{protocol}_client_to_transport", "p50", P50, protocol, CLIENT, TRANSPORT, None))
    return made


def _comparison(key: str, what: str, quantity: str, protocol: str, ours: str, theirs: str, goal: float | None) -> Comparison:
    title = f"{what}, {PROTOCOLS[protocol]}: {ours} to {theirs}"
    return Comparison(key, title, quantity, form_name(protocol, ours), form_name(protocol, theirs), goal)


COMPARISONS = tuple(_comparisons())
TITLES = {comparison.key: comparison.title for comparison in COMPARISONS} | {
    "import_s": "`import defensemble`, in seconds",
    "first_http_call_s": "import of `Client` and its first prediction over HTTP, in seconds",
    "unwanted_modules": "modules that these load and should not",
}


def compute_ratios(timings: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, Any]]:
    """Return the spread of each comparison's ratio over the rounds, by its key.

    Args:
        timings: By quantity and form, the value of each round.
    """
    return {
        comparison.key: spread(round_ratios(timings[comparison.quantity][comparison.ours], timings[comparison.quantity][comparison.theirs]))
        for comparison in COMPARISONS
    }


def compute_figures(ratios: Mapping[str, Mapping[str, Any]], imports: Mapping[str, Any]) -> dict[str, Figure]:
    """Compute the figures: the median of each ratio and of each import, and the number of modules that should not be loaded.

    Args:
        ratios: From `compute_ratios`.
        imports: From `time_imports`.
    """
    figures = {}
    for comparison in COMPARISONS:
        if comparison.goal is not None:
            figure = at_most_figure if comparison.quantity == P50 else at_least_figure
            figures[comparison.key] = figure(ratios[comparison.key]["median"], comparison.goal)
    figures["import_s"] = at_most_figure(imports["import_s"]["median"], IMPORT_GOAL_S, " s")
    figures["unwanted_modules"] = zero_figure(len(imports["unwanted_modules"]), measured=True)
    return figures

"""The page of an overload, generated only from the result's JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.figures import spread
from benchmarks.common.markdown import figures_table, format_spread, format_triton_measurement, note_paragraph, quick_warning, table
from benchmarks.faulting.overload_figures import DIRECT, PROXY

_HEADERS = (
    "rate",
    "calls/s",
    "sent",
    "answered",
    "refused or failed",
    "goodput/s",
    "p50 in ms",
    "p99 in ms",
    "peak memory, MB",
    "to recover, s",
)
_FIGURES = {
    "goodput_ratio": "goodput at the highest rate / largest goodput",
    "p99_ms": "99th percentile of the answered calls at the highest rate",
    "memory_gained_mb": "memory of Triton (PSS) gained at any rate",
    "recovery_s": "seconds to recover from the highest rate",
    "unanswered": "calls without an answer or a refusal in time",
    "deaths": "deaths and hangs of Triton",
}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    protocols = list(dict.fromkeys(record["protocol"] for record in result["records"]))
    titles = {f"{protocol}.{name}": f"{_title(protocol)}: {title}" for protocol in protocols for name, title in _FIGURES.items()}
    return f"""# Overload
{quick_warning(result)}
{_how(result, json_name)}

{figures_table(result["figures"], titles, _ratios(result["records"]))}

All figures are through the proxy: the median of the rounds for goodput, with minimum and maximum, the worst round for the others.

{_sections(result["records"], protocols)}
- **goodput** is the number of answers per second within {result["objective_ms"]:g} ms.
- **to recover** counts from the end of the load until a call of one image, again and again, is answered within that time; "never" is
  longer than a minute.
- Times are those of answered calls, from the intended start. Each number is the median of the rounds.
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    lines = [
        f"{format_triton_measurement(result, json_name, 'faults', 'overload', ' --overload')}.",
        "",
        f"{result['members']} networks at {'x'.join(map(str, result['image_shape']))}, averaged, get calls of {result['batch_size']} "
        "images at random times (a Poisson process),",
        f"{result['step_s']:g} s at each rate, through [the proxy](../how-to/proxy.md) and directly, in {result['rounds']} rounds, "
        "each with a new server for each protocol.",
        "Rates are multiples of the throughput of a closed loop in the same round. The proxy allows as many requests in flight as the",
        f"server computes in half of {result['objective_ms']:g} ms, at least 8. Nothing is repeated.",
    ]
    return "\n".join([*lines, *note_paragraph(result)])


def _sections(records: Sequence[Mapping[str, Any]], protocols: Sequence[str]) -> str:
    parts = []
    for protocol in protocols:
        own = [record for record in records if record["protocol"] == protocol]
        capacity = spread([record["capacity_per_s"] for record in own])
        limits = sorted({record["in_flight"] for record in own})
        parts.append(
            f"## {_title(protocol)}\n\nCapacity: {format_spread(capacity, '.1f')} calls per second. Requests in flight through the proxy: "
            f"{' or '.join(map(str, limits))}.\n"
        )
        for path, title in ((PROXY, "Through the proxy"), (DIRECT, "Directly")):
            rows = [[record[path]["rows"][index] for record in own] for index in range(len(own[0][path]["rows"]))] if path in own[0] else []
            if rows:
                parts.append(f"{title}:\n\n{table(_HEADERS, map(_row, rows))}\n")
    return "\n".join(parts)


def _row(rounds: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    failures = {name for row in rounds for name in row["failures"]}
    deaths = sum(row["deaths"] for row in rounds)
    failed = ", ".join(f"{statistics.median([row['failures'].get(name, 0) for row in rounds]):,.0f} {name}" for name in sorted(failures))
    return (
        f"{rounds[0]['factor']:g}" + f" (Triton died: {deaths})" * bool(deaths),
        _median(rounds, "rate_per_s", ".1f"),
        _median(rounds, "sent", ",.0f"),
        _median(rounds, "answered", ",.0f"),
        failed or "none",
        _median(rounds, "goodput_per_s", ".1f"),
        _median(rounds, "p50_ms", ".0f"),
        _median(rounds, "p99_ms", ".0f"),
        f"{statistics.median([row['pss_peak_bytes'] for row in rounds]) / 1e6:.0f}",
        "never" if any(row["recovery_s"] is None for row in rounds) else _median(rounds, "recovery_s", ".2f"),
    )


def _median(rounds: Sequence[Mapping[str, Any]], name: str, form: str) -> str:
    """Return the median of the rounds; `-` if one has no value, because the load generator missed its schedule or nothing was answered."""
    values = [row[name] for row in rounds]
    return "-" if None in values else f"{statistics.median(values):{form}}"


def _ratios(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratios: dict[str, list[float | None]] = {}
    for record in records:
        ratios.setdefault(f"{record['protocol']}.goodput_ratio", []).append(record[PROXY]["goodput_ratio"])
    return {name: spread([value for value in values if value is not None]) for name, values in ratios.items() if None not in values}


def _title(protocol: str) -> str:
    return {"http": "HTTP", "grpc": "gRPC"}[protocol]

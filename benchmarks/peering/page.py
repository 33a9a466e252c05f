"""The page of the benchmark of other servers, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.markdown import (
    figures_table,
    format_spread,
    quick_warning,
    served_members_paragraphs,
    table,
)
from benchmarks.peering.figures import IN_PROCESS, OPEN_LOOP


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    titles, forms = result["setting_titles"], result["forms"]
    closed = {key: forms[key] for key in titles}
    return f"""# Against other servers
{quick_warning(result)}
{served_members_paragraphs(result, json_name, "peers")}

No other server runs at the same time. Each has all of its processes on the same two cores as its callers, one thread per ONNX Runtime
session, and two threads that run sessions, which its workers share. Requests were made before and are sent by bare sockets and stubs,
so that a call costs the caller the same everywhere. In each round ({result["rounds"]} in all) every server is started, its outputs are
compared, it is timed for {result["seconds"]:g} s in each setting, and it is stopped. The order is random.

{figures_table(result["figures"], _figure_titles(result))}

A figure is the ratio of images per second of this project's best form to the best form of all other servers: median of the rounds.

{_best(result)}

## Images per second

Callers x batch; each caller calls again as soon as it has a response. Median of the rounds, with minimum and maximum. The best form in the
caller's process is the limit; it is bold.

{_table(closed, titles, _rate(result))}

## Duration of a call

50th and 99th percentile in ms: medians of the rounds.

{_table(closed, titles, _latency)}

## Fixed rate

{result["open_loop_per_s"]:.0f} calls per second with one image, at random times (a Poisson process), by at most 8 callers: the same rate
for all, {result["open_loop_fraction"]:.0%} of the best form in process. The duration counts from the time at which a call should have
started. Calls that were sent more than 1 ms late although a caller was free are the callers' own fault; if these are more than 1 %, the
99th percentile is partly theirs.

{_open_loop(result)}

## Memory and start

PSS of all processes of a server; the start ends with the first correct answer. Medians of the rounds.

{_servers(result)}

## Configurations

{_configurations(result)}
{_failures(result["failures"])}"""


def _figure_titles(result: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for key, title in result["setting_titles"].items():
        figure = f"{key}_to_best_peer"
        names[figure] = f"{title}: best of ours / best peer ({result['figures'][figure]['best_peer']})"
    return names


def _best(result: Mapping[str, Any]) -> str:
    rows = []
    for key, title in result["setting_titles"].items():
        comparison = result["comparisons"][key]
        ratios = [comparison[name] for name in ("ours_to_peer", "ours_to_in_process")]
        cells = ("-" if ratio is None else format_spread(ratio) for ratio in ratios)
        rows.append((title, *(comparison["best"][kind] or "-" for kind in ("ours", "peer", IN_PROCESS)), *cells))
    return table(("", "best of ours", "best peer", "best in process", "ours / peer", "ours / in process"), rows)


def _table(settings: Mapping[str, Any], titles: Mapping[str, str], cell: Callable[[str, str, Mapping[str, Any]], str]) -> str:
    names = next(iter(settings.values()))
    rows = [(name, *(cell(key, name, settings[key][name]) for key in settings)) for name in names]
    return table(("form", *(titles[key] for key in settings)), rows)


def _rate(result: Mapping[str, Any]) -> Callable[[str, str, Mapping[str, Any]], str]:
    def cell(key: str, name: str, form: Mapping[str, Any]) -> str:
        if form["images_per_s"] is None:
            return "failed"
        text = format_spread(form["images_per_s"], ".0f")
        return f"**{text}**" if name == result["comparisons"][key]["best"][IN_PROCESS] else text

    return cell


def _latency(key: str, name: str, form: Mapping[str, Any]) -> str:
    return "-" if form["p50"] is None else f"{form['p50']['median']:.1f}, {form['p99']['median']:.1f}"


def _open_loop(result: Mapping[str, Any]) -> str:
    formats = {"images_per_s": ".0f", "p50": ".1f", "p99": ".1f", "late_share": ".2%"}
    rows = []
    for name, form in result["forms"][OPEN_LOOP].items():
        failed = form["p50"] is None
        rows.append((name, *("failed" if failed else format_spread(form[quantity], digits) for quantity, digits in formats.items())))
    return table(("form", "answered per second", "p50 in ms", "p99 in ms", "sent late"), rows)


def _servers(result: Mapping[str, Any]) -> str:
    rows = []
    for key, server in result["servers"].items():
        memory = [f"{server[when]['median'] / 1e6:.0f} MB" for when in ("idle_bytes", "loaded_bytes")]
        rows.append((result["titles"][key], str(server["processes"]), *memory, format_spread(server["start_s"])))
    return table(("server", "processes", "idle", "after load", "start in s"), rows)


def _configurations(result: Mapping[str, Any]) -> str:
    rows = []
    for key, configuration in result["configurations"].items():
        version = result["peer_versions"].get(key)
        rows.append((result["titles"][key], version or "this project", configuration))
    return table(("server", "version", "configuration"), rows)


def _failures(failures: Mapping[str, str]) -> str:
    return "".join(f"\n{name} failed: {text}\n" for name, text in failures.items())

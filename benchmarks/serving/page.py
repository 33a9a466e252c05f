"""The page of the benchmark of serving, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.common.markdown import (
    figures_table,
    format_spread,
    quick_warning,
    served_members_paragraphs,
    table,
)

_TITLES = {
    "http_to_in_process": "HTTP / best form in process",
    "http_to_fastapi": "HTTP / FastAPI",
    "http_to_fastapi_p99": "HTTP / FastAPI, 99th percentile of a call",
    "grpc_to_http": "gRPC / HTTP",
}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    settings = result["settings"]
    ensemble = {key: setting for key, setting in settings.items() if not setting["one_member"]}
    one_member = {key: setting for key, setting in settings.items() if setting["one_member"]}
    return f"""# Cost of serving: Triton, FastAPI and the caller's process
{quick_warning(result)}
{served_members_paragraphs(result, json_name, "serving_overhead")}

The ensemble is served by Triton with this project's backend; by a short FastAPI application
(`benchmarks/serving/fastapi_app.py`, FastAPI {result["versions"]["fastapi"]}, uvicorn {result["versions"]["uvicorn"]} with uvloop and
httptools); or run in the callers' process.
Requests were made before and are sent by bare sockets and stubs: what a client costs is on [another page](client.md).

{figures_table(result["figures"], _figure_titles(settings))}

Ratios of images per second are medians of {result["rounds"]} rounds; percentiles are those of all calls.

## Images per second

Median of {result["rounds"]} rounds, in which all forms take turns, with minimum and maximum. Columns are callers x batch. The best
form in the caller's process is bold; for one caller, threads that spin do not count.

{_rates(ensemble)}

## Duration of a call

Median and 99th percentile of all calls, in ms.

{_calls(ensemble)}

## One small member

{result["one_member"]["arch"]} of width {result["one_member"]["width"]}, without an ensemble.

{_rates(one_member)}

## The server

{_server(result["server_process"])}
{_failures(result["failures"])}"""


def _figure_titles(settings: Mapping[str, Any]) -> dict[str, str]:
    return {f"{key}_{kind}": f"{setting['title']}: {title}" for key, setting in settings.items() for kind, title in _TITLES.items()}


def _rates(settings: Mapping[str, Any]) -> str:
    def cells(name: str) -> Iterator[str]:
        yield name
        for setting in settings.values():
            rates = setting["forms"][name]["images_per_s"]
            cell = "failed" if rates is None else format_spread(rates, ".0f")
            yield f"**{cell}**" if name == setting["best_in_process"] else cell

    return _by_form(settings, cells)


def _calls(settings: Mapping[str, Any]) -> str:
    def cells(name: str) -> Iterator[str]:
        yield name
        for setting in settings.values():
            call = setting["forms"][name]["call_ms"]
            yield "-" if call is None else f"{call['p50']:.1f}, {call['p99']:.1f}"

    return _by_form(settings, cells)


def _by_form(settings: Mapping[str, Any], cells: Callable[[str], Iterator[str]]) -> str:
    return table(("form", *(setting["title"] for setting in settings.values())), map(cells, next(iter(settings.values()))["forms"]))


def _server(server: Mapping[str, Any]) -> str:
    idle, loaded, starts = server["memory_idle"], server["memory_after_load"], server["start"]
    rows = [
        ("memory (PSS) of Triton with all models", f"{_mb(idle, 'triton')} idle, {_mb(loaded, 'triton')} after load"),
        ("memory (PSS) of its guard process", _mb(loaded, "supervisor")),
        ("from start to Triton's first response", f"{starts['triton_answers_s']['median']:.2f} s"),
        ("until `serve` has verified its outputs", f"{starts['serve_s']['median']:.2f} s"),
    ]
    return table((f"median of {len(starts['serve_s']['rounds'])} starts", ""), rows)


def _failures(failures: Mapping[str, str]) -> str:
    return "".join(f"\n{name} failed: {text}\n" for name, text in failures.items())


def _mb(memory: Mapping[str, int] | None, process: str) -> str:
    return "-" if memory is None else f"{memory[f'{process}_pss_bytes'] / 1e6:.0f} MB"

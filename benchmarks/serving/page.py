"""The page of the benchmark of serving, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.common.markdown import format_measurement, format_spread, note_paragraph, quick_warning, served_members_lines, table


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    return f"""# Cost of serving compared with the best form in the caller's process
{quick_warning(result)}
{_how(result, json_name)}

## Images per second

Median of {result["rounds"]} rounds, in which all forms take turns, with minimum and maximum. Columns are callers x batch. The best
form in the caller's process is bold.

{_rates(result["settings"])}

## Ratios

Triton's images per second divided by those of the best form in the caller's process, and by those of the best form whose threads do not
spin. The goal for one caller refers to the latter.

{_ratios(result["settings"], result["figures"])}

## The server

{_server(result["server_process"])}
{_failures(result["failures"])}"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    how = f"{format_measurement(result, json_name, 'serving_overhead')}ONNX Runtime {result['versions']['onnxruntime']}, "
    first, *others = served_members_lines(result)
    return "\n".join([how + first, *others, *note_paragraph(result)])


def _rates(settings: Mapping[str, Any]) -> str:
    def cells(name: str) -> Iterator[str]:
        yield name
        for setting in settings.values():
            rates = setting["forms"][name]["images_per_s"]
            cell = "failed" if rates is None else format_spread(rates, ".0f")
            yield f"**{cell}**" if name == setting["best_in_process"] else cell

    titles = (f"{setting['callers']} x {setting['batch']}" for setting in settings.values())
    return table(("form", *titles), map(cells, next(iter(settings.values()))["forms"]))


def _ratios(settings: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    rows = []
    for key, setting in settings.items():
        for protocol, ratios in setting["ratios"].items():
            figure = figures[f"{protocol}_{key}"]
            call = next(form["call_ms"] for form in setting["forms"].values() if form["protocol"] == protocol)
            rows.append(
                (
                    f"{setting['callers']} x {setting['batch']}, {protocol}",
                    *("failed" if ratios is None else format_spread(ratios[kind]) for kind in ("to_best", "to_best_without_spinning")),
                    "-" if call is None else f"{call['p50']:.1f} ms",
                    figure["goal"],
                    "holds" if figure["holds"] else "**missed**",
                )
            )
    return table(("callers x batch", "to the best", "to the best without spinning", "call", "goal", ""), rows)


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

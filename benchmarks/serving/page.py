"""The page about what serving costs: made of the result's JSON and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.common.markdown import commit, look, measured_on, note, ranged, table


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Markdown; the same result gives the same text."""
    return f"""# What serving costs compared with the best form in the caller's own process
{look(result)}
{_how(result, json_name)}

## Images a second

Median of {result["rounds"]} rounds, in which all forms take turns; smallest and largest in brackets. Columns are callers x batch; bold is
the best form in the caller's process.

{_rates(result["settings"])}

## Ratios

Triton's images a second by those of the best form in the caller's process, and by the best of those whose threads do not spin, which is
what one caller's goal is set against.

{_ratios(result["settings"], result["figures"])}

## The server

{_server(result["server_process"])}
{_failures(result["failures"])}"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    spec = result["member_spec"]
    lines = [
        f"{measured_on(result, json_name, 'serving_overhead')}ONNX Runtime {result['versions']['onnxruntime']}, "
        f"Triton core {result['server']['version']} with this project's backend, commit {commit(result)}, seed {result['seed']}.",
        "",
        f"{len(result['members'])} defective networks ({spec['arch']}, width {spec['width']}, keep {spec['keep']}) at "
        f"{'x'.join(map(str, result['image_shape']))}, untrained, which changes no time, averaged. Every form's answers were first",
        f"compared with numpy's average; the largest difference is {result['largest_difference']:.2g}.",
    ]
    return "\n".join([*lines, *note(result)])


def _rates(settings: Mapping[str, Any]) -> str:
    def cells(name: str) -> Iterator[str]:
        yield name
        for setting in settings.values():
            rates = setting["forms"][name]["images_per_s"]
            cell = "failed" if rates is None else ranged(rates, ".0f")
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
                    *("failed" if ratios is None else ranged(ratios[kind]) for kind in ("to_best", "to_best_without_spinning")),
                    "-" if call is None else f"{call['p50']:.1f} ms",
                    figure["goal"],
                    "holds" if figure["holds"] else "**missed**",
                )
            )
    return table(("callers x batch", "to the best", "to the best that does not spin", "a call", "goal", ""), rows)


def _server(server: Mapping[str, Any]) -> str:
    idle, loaded, starts = server["memory_idle"], server["memory_after_load"], server["start"]
    rows = [
        ("memory (PSS) of Triton with all models", f"{_mb(idle, 'triton')} idle, {_mb(loaded, 'triton')} after load"),
        ("of its supervisor", _mb(loaded, "supervisor")),
        ("from start until Triton answers", f"{starts['triton_answers_s']['median']:.2f} s"),
        ("until `serve` has compared its answers", f"{starts['serve_s']['median']:.2f} s"),
    ]
    return table((f"median of {len(starts['serve_s']['rounds'])} starts", ""), rows)


def _failures(failures: Mapping[str, str]) -> str:
    return "".join(f"\n{name} failed: {text}\n" for name, text in failures.items())


def _mb(memory: Mapping[str, int] | None, whose: str) -> str:
    return "-" if memory is None else f"{memory[f'{whose}_pss_bytes'] / 1e6:.0f} MB"

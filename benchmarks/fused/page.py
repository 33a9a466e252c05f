"""The page of the benchmark of fused graphs, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import format_measurement, format_spread, note_paragraph, quick_warning, short_commit
from benchmarks.fused.in_process import GOAL, GOAL_BATCHES, GOAL_WIDTH
from benchmarks.fused.served import FUSED, IN_PROCESS, PIPELINE


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    return f"""# One fused graph compared with the pipeline of its members
{quick_warning(result)}
{_how(result, json_name)}

## Served: latency of one caller

Median time of a call in ms over gRPC, width {result["served_width"]}. "in process" is the fused graph in the caller's process on two
threads, the lower bound. The ratio is images per second, fused / pipeline, with minimum and maximum of the rounds: above 1, the fused graph
is faster.

{_table(result["served"], 1, _latency)}

## Served: throughput of eight callers

Images per second, measured in the same way; "in process" has one thread per caller.

{_table(result["served"], 8, _throughput)}

## Served: processor time

Processor time of the Triton process, ms per image, all cores together; unlike the tables above, it excludes other processes. The ratio is
fused / pipeline: below 1, the fused graph needs less.

{_processor(result["served"])}

## Memory

Proportional set size of Triton with only one form loaded, MB, idle and after the load above (batches of up to 64 images).

{_memory(result["served"])}

## In process: cost of M members as one graph

Processor time of a call on one thread, divided by M times that of a call of one member: median of {result["rounds"]} rounds, with minimum
and maximum. Goal: at most {GOAL} at width {GOAL_WIDTH} and batch {" and ".join(map(str, GOAL_BATCHES))}; {_held(result["figures"])}.

{_costs(result["in_process"])}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    spec = result["member_spec"]
    lines = [
        f"{format_measurement(result, json_name, 'pipeline_vs_fused')}ONNX Runtime {result['versions']['onnxruntime']}, "
        f"the embedded Triton, commit {short_commit(result)}, seed {result['seed']}.",
        "",
        f"Defective networks ({spec['arch']}, keep {spec['keep']}, blocks {', '.join(map(str, spec['blocks']))}) at "
        f"{'x'.join(map(str, result['image_shape']))}, untrained, which does not affect the speed. The outputs of",
        "every form were first compared with numpy's average of torch's logits, within 1e-5. "
        f"{result['rounds']} round{'s' * (result['rounds'] > 1)}, in which the forms take turns, {result['seconds']:g} s each.",
    ]
    return "\n".join([*lines, *note_paragraph(result)])


def _table(served: Sequence[Mapping[str, Any]], callers: int, cell: Any) -> str:
    lines = [f"| members | batch | {PIPELINE} | {FUSED} | {IN_PROCESS} | fused / pipeline |", "|---|---|---|---|---|---|"]
    for entry in served:
        for setting in entry["settings"]:
            if setting["callers"] == callers:
                cells = " | ".join(cell(setting["forms"][name]) for name in (PIPELINE, FUSED, IN_PROCESS))
                lines.append(f"| {entry['members']} | {setting['batch']} | {cells} | {format_spread(setting['fused_by_pipeline'])} |")
    return "\n".join(lines)


def _latency(form: Mapping[str, Any]) -> str:
    duration = form["call_ms"]["p50"]
    return "-" if duration is None else f"{duration:.2f}"


def _throughput(form: Mapping[str, Any]) -> str:
    return f"{form['images_per_s']['median']:,.0f}"


def _processor(served: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| members | callers | batch | {PIPELINE} | {FUSED} | fused / pipeline |", "|---|---|---|---|---|---|"]
    for entry in served:
        for setting in entry["settings"]:
            duration = " | ".join(f"{setting['server_processor_ms_per_image'][name]['median']:.2f}" for name in (PIPELINE, FUSED))
            ratio = format_spread(setting["fused_by_pipeline_processor"])
            lines.append(f"| {entry['members']} | {setting['callers']} | {setting['batch']} | {duration} | {ratio} |")
    return "\n".join(lines)


def _memory(served: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| members | pipeline, idle | fused, idle | pipeline, after load | fused, after load |", "|---|---|---|---|---|"]
    for entry in served:
        cells = [f"{entry['memory'][name][f'{when}_pss_bytes'] / 1e6:.0f}" for when in ("idle", "after_load") for name in (PIPELINE, FUSED)]
        lines.append(f"| {entry['members']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _costs(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = ["| width | members | batch | fused, ms | one member, ms | by M times one |", "|---|---|---|---|---|---|"]
    for width, costs_of_width in costs.items():
        for cost in sorted(costs_of_width, key=lambda entry: (entry["members"], entry["batch"])):
            lines.append(
                f"| {width} | {cost['members']} | {cost['batch']} | {cost['fused_ms']:.2f} | {cost['single_ms']:.2f} | "
                f"{format_spread(cost['fused_by_singles'])} |"
            )
    return "\n".join(lines)


def _held(figures: Mapping[str, Mapping[str, Any]]) -> str:
    missed = [name for name, figure in figures.items() if not figure["holds"]]
    worst = max(figure["value"] for figure in figures.values())
    return f"the largest is {worst:.2f}: {'missed' if missed else 'it holds'}"

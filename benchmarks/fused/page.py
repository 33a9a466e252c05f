"""The page about pipelines and fused graphs: made of the result's JSON and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import commit, look, measured_on, note, ranged
from benchmarks.fused.in_process import GOAL, GOAL_BATCHES, GOAL_WIDTH
from benchmarks.fused.served import FUSED, IN_PROCESS, PIPELINE


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Markdown; the same result gives the same text."""
    return f"""# One fused graph beside the pipeline of its members
{look(result)}
{_how(result, json_name)}

## Served: latency of one caller

Median time of a call in ms over gRPC, width {result["served_width"]}. "in process" is the fused graph in the caller's own process on two
threads, the limit. The ratio is of images a second, fused by pipeline: above 1 the fused graph is faster. Smallest and largest round in
brackets.

{_table(result["served"], 1, _latency)}

## Served: throughput of eight callers

Images a second, the same way; "in process" runs on one thread for each caller.

{_table(result["served"], 8, _throughput)}

## Served: processor time

Of the Triton process, ms an image, all cores together; unlike the tables above, it does not hold what other processes took of the machine.
The ratio is fused by pipeline: below 1 the fused graph takes less.

{_processor(result["served"])}

## Memory

Proportional set size of Triton with one form and nothing else, MB, idle and after the load above (batches of up to 64 images).

{_memory(result["served"])}

## In process: what M members cost as one graph

Processor time of a call on one thread, by M times that of a call of one member: median of {result["rounds"]} rounds, smallest and largest
in brackets. Goal: at most {GOAL} at width {GOAL_WIDTH} and batch {" and ".join(map(str, GOAL_BATCHES))}; {_held(result["figures"])}.

{_costs(result["in_process"])}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    spec = result["member_spec"]
    lines = [
        f"{measured_on(result, json_name, 'pipeline_vs_fused')}ONNX Runtime {result['versions']['onnxruntime']}, the embedded Triton, "
        f"commit {commit(result)}, seed {result['seed']}.",
        "",
        f"Defective networks ({spec['arch']}, keep {spec['keep']}, blocks {', '.join(map(str, spec['blocks']))}) at "
        f"{'x'.join(map(str, result['image_shape']))}, untrained, which changes no time. Every form's",
        "answers were first compared with numpy's average of torch's logits, within 1e-5. "
        f"{result['rounds']} round{'s' * (result['rounds'] > 1)}, in which the forms take turns, {result['seconds']:g} s each.",
    ]
    return "\n".join([*lines, *note(result)])


def _table(served: Sequence[Mapping[str, Any]], callers: int, cell: Any) -> str:
    lines = [f"| members | batch | {PIPELINE} | {FUSED} | {IN_PROCESS} | fused by pipeline |", "|---|---|---|---|---|---|"]
    for one in served:
        for setting in one["settings"]:
            if setting["callers"] == callers:
                cells = " | ".join(cell(setting["forms"][name]) for name in (PIPELINE, FUSED, IN_PROCESS))
                lines.append(f"| {one['members']} | {setting['batch']} | {cells} | {ranged(setting['fused_by_pipeline'])} |")
    return "\n".join(lines)


def _latency(form: Mapping[str, Any]) -> str:
    took = form["call_ms"]["p50"]
    return "-" if took is None else f"{took:.2f}"


def _throughput(form: Mapping[str, Any]) -> str:
    return f"{form['images_per_s']['median']:,.0f}"


def _processor(served: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| members | callers | batch | {PIPELINE} | {FUSED} | fused by pipeline |", "|---|---|---|---|---|---|"]
    for one in served:
        for setting in one["settings"]:
            took = " | ".join(f"{setting['server_processor_ms_per_image'][name]['median']:.2f}" for name in (PIPELINE, FUSED))
            ratio = ranged(setting["fused_by_pipeline_processor"])
            lines.append(f"| {one['members']} | {setting['callers']} | {setting['batch']} | {took} | {ratio} |")
    return "\n".join(lines)


def _memory(served: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| members | pipeline, idle | fused, idle | pipeline, after load | fused, after load |", "|---|---|---|---|---|"]
    for one in served:
        cells = [f"{one['memory'][name][f'{when}_pss_bytes'] / 1e6:.0f}" for when in ("idle", "after_load") for name in (PIPELINE, FUSED)]
        lines.append(f"| {one['members']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _costs(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = ["| width | members | batch | fused, ms | one member, ms | by M times one |", "|---|---|---|---|---|---|"]
    for width, of_width in costs.items():
        for cost in sorted(of_width, key=lambda one: (one["members"], one["batch"])):
            lines.append(
                f"| {width} | {cost['members']} | {cost['batch']} | {cost['fused_ms']:.2f} | {cost['single_ms']:.2f} | "
                f"{ranged(cost['fused_by_singles'])} |"
            )
    return "\n".join(lines)


def _held(figures: Mapping[str, Mapping[str, Any]]) -> str:
    missed = [name for name, figure in figures.items() if not figure["holds"]]
    worst = max(figure["value"] for figure in figures.values())
    return f"the largest is {worst:.2f}: {'missed' if missed else 'it holds'}"

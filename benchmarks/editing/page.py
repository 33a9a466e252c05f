"""The page of the benchmark of edits under load, generated only from the result's JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import figures_table, format_measurement, note_paragraph, quick_warning, short_commit, table
from benchmarks.editing.figures import KINDS, edits_without_member_loads
from benchmarks.editing.plan import ACTIONS

_FIGURES = {
    "failed_requests": "failed requests",
    "wrong_answers": "responses that match no ensemble in force between sending and arrival",
    "old_answers_after_new": "responses of an old ensemble to a caller that had seen the new one",
    "p99_during_edits_by_without": "99th percentile of a call, during / without edits",
    "own_work_of_an_edit_s": "an edit that loads no member: its writes and load calls, s, median",
    "edit_by_call": "total time of such an edit / a call without edits, medians",
    "memory_late_by_early": "memory of the server after the last / first edits",
}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    return f"""# Editing an ensemble while it serves
{quick_warning(result)}
{_how(result, json_name)}

{figures_table(result["figures"], _FIGURES)}

## Responses

{_answers(result)}

## Calls

Duration of a call in ms, around the first {result["timed_edits"]} edits: {result["calls"]["seconds_with"]:.0f} s with edits and
{result["calls"]["seconds_without"]:.0f} s without, before, between and after them. A call that overlaps an edit counts as during it.

{_calls(result["calls"])}

{_interval(result["calls"])}

## Edits

All {len(result["edits"])} edits, in ms: medians, with the maximum of the total. "Own work" is writes, loads and unloads. Most of the total
is waiting for responses behind the callers' requests.

{_edits(result["edits"])}

Time of an edit that loads no member, by part, ms, median: {_kinds(result["edits"])}.
{_trace(result.get("trace", ()))}
## Memory

{_memory(result)}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    versions, spec = result["versions"], result["member_spec"]
    lines = [
        f"{format_measurement(result, json_name, 'edit_under_load')}ONNX Runtime {versions['onnxruntime']}, "
        f"the embedded Triton {result['server']['version']}, commit {short_commit(result)}, seed {result['seed']}.",
        "",
        f"{result['members']} defective networks ({spec['arch']}, width {spec['width']}, keep {spec['keep']}, blocks "
        f"{', '.join(map(str, spec['blocks']))}) at {'x'.join(map(str, result['image_shape']))}, untrained, which does not affect the "
        "speed, in one ensemble;",
        f"{result['callers']} callers, each with its own client, half over gRPC, half over HTTP, in separate processes, send "
        f"{result['batch']} images in a loop.",
        f"{len(result['edits'])} edits, drawn from the seed: {_counts(result['edits'])}; `switch` replaces a member by another version.",
    ]
    return "\n".join([*lines, *note_paragraph(result)])


def _counts(edits: Sequence[Mapping[str, Any]]) -> str:
    actions = [edit["action"] for edit in edits]
    return ", ".join(f"{actions.count(action)} {action}" for action in ACTIONS if action in actions)


def _answers(result: Mapping[str, Any]) -> str:
    answers = result["answers"]
    right = sum(answers["by_state"].values())
    lines = [
        f"{answers['calls']:,} calls, {right:,} responses match an ensemble in force, within {answers['largest_difference']:.1g} of "
        f"numpy's (float64, from the logits of each network; allowed: {result['tolerance']:g}).",
        f"{answers['while_two_states_were_in_force']:,} of them were sent or answered during an edit. Outputs before and after an edit "
        f"differ by at least {result['least_apart']:.2g} in any batch.",
    ]
    for kind, label in (("failed", "failed"), ("wrong", "wrong"), ("old_after_new", "old after new")):
        lines += [f"- {label}: {text}" for text in answers[kind]["first"]]
    return "\n".join(lines)


def _calls(calls: Mapping[str, Any]) -> str:
    lines = ["| callers | | n | p50 | p99 | max |", "|---|---|---|---|---|---|"]
    for protocol, result in (("all", calls), *calls["by_protocol"].items()):
        for which in ("without", "during"):
            times_ms = result[which]
            times = " | ".join("-" if times_ms[key] is None else f"{times_ms[key]:.0f}" for key in ("p50_ms", "p99_ms", "max_ms"))
            lines.append(f"| {protocol} | {which} edits | {times_ms['n']:,} | {times} |")
    return "\n".join(lines)


def _interval(calls: Mapping[str, Any]) -> str:
    if calls["p99_interval"] is None:
        return "The percentiles could not be compared: there were no calls during edits, or none without."
    low, high = calls["p99_interval"]
    return (
        f"The ratio of the 99th percentiles is {calls['p99_during_by_without']:.2f}; its 95 % "
        f"bootstrap interval, over edits and intervals, is {low:.2f} to {high:.2f}."
    )


def _edits(edits: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| edits | n | own work | total |", "|---|---|---|---|"]
    kinds = [(action, [edit for edit in edits if edit["action"] == action]) for action in ACTIONS]
    loading = [edit for edit in edits if edit["members_loaded"]]
    for name, selected in (*kinds, ("that load no member", edits_without_member_loads(edits)), ("that load a member", loading)):
        if selected:
            work = statistics.median(edit["own_work_s"] for edit in selected)
            total_s = [edit["seconds"]["total"] for edit in selected]
            lines.append(
                f"| {name} | {len(selected)} | {1000 * work:.0f} | {1000 * statistics.median(total_s):,.0f} ({1000 * max(total_s):,.0f}) |"
            )
    return "\n".join(lines)


def _kinds(edits: Sequence[Mapping[str, Any]]) -> str:
    selected = edits_without_member_loads(edits)
    if not selected:
        return "there was none"
    return ", ".join(f"{kind} {1000 * statistics.median(edit['seconds'][kind] for edit in selected):.0f}" for kind in KINDS)


def _trace(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of flushes and requests; empty without a trace, which the oldest results do not have."""
    if not rows:
        return ""
    titles = {"flush": "flush of", "request": "request"}
    cells = [(f"{titles[row['kind']]} {row['name']}", f"{row['per_edit']:.2f}", f"{row['median_ms']:.1f}") for row in rows]
    return f"""
Where the time of such an edit goes: each flush to disk (fsync) and each kind of request to the server, with its number per edit and its
median duration in ms under load. The inferences of the ensemble and its members run concurrently; so do the flushes of
the files and folders of a new averaging model.

{table(("", "per edit", "ms"), cells)}
"""


def _memory(result: Mapping[str, Any]) -> str:
    memory = result["memory"]
    steps = [(0, memory["pss_bytes_before"]), *enumerate((edit["pss_bytes_after"] for edit in result["edits"]), start=1)]
    shown = [(number, size) for number, size in steps if number % 5 == 0 or number in memory["after_edits"]]
    lines = [
        "Proportional set size of Triton under load, MB, after the given number of edits. The numbers after edits "
        f"{' and '.join(map(str, memory['after_edits']))} are compared: the ensemble has the same models then.",
        "",
        "| edits | " + " | ".join(str(number) for number, _ in shown) + " |",
        "|---|" + "---|" * len(shown),
        "| MB | " + " | ".join(f"{size / 1e6:.0f}" for _, size in shown) + " |",
    ]
    return "\n".join(lines)

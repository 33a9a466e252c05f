"""The page about edits under load: made of the result's JSON and of nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import commit, figures_table, look, measured_on, note
from benchmarks.editing.figures import KINDS, among_loaded
from benchmarks.editing.plan import ACTIONS

_FIGURES = {
    "failed_requests": "requests that failed",
    "wrong_answers": "answers that are of no ensemble in force between sending and arrival",
    "old_answers_after_new": "answers of an old ensemble to a caller that had seen the new one",
    "p99_during_edits_by_without": "99th percentile of a call, during edits by without",
    "own_work_of_an_edit_s": "an edit among loaded members: its writes and load calls, s, median",
    "edit_by_call": "the whole of such an edit by a call without edits, medians",
    "memory_late_by_early": "memory of the server after the last edits by that after the first",
}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Markdown; the same result gives the same text."""
    return f"""# An ensemble that is edited while it serves
{look(result)}
{_how(result, json_name)}

{figures_table(result["figures"], _FIGURES)}

## Answers

{_answers(result)}

## Calls

Time of a call in ms, around the first {result["timed_edits"]} edits: {result["calls"]["seconds_with"]:.0f} s with edits and
{result["calls"]["seconds_without"]:.0f} s without, before, between and after them. A call that was under way at any time of an edit
counts as during it.

{_calls(result["calls"])}

{_interval(result["calls"])}

## Edits

All {len(result["edits"])}, in ms: medians, and of the whole edit the largest in brackets. "Own work" is writes, loads and unloads; most
of the whole is waiting for answers behind the callers.

{_edits(result["edits"])}

Where the time of an edit among loaded members goes, ms, median: {_kinds(result["edits"])}.

## Memory

{_memory(result)}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    versions, spec = result["versions"], result["member_spec"]
    lines = [
        f"{measured_on(result, json_name, 'edit_under_load')}ONNX Runtime {versions['onnxruntime']}, "
        f"the embedded Triton {result['server']['version']}, commit {commit(result)}, seed {result['seed']}.",
        "",
        f"{result['members']} defective networks ({spec['arch']}, width {spec['width']}, keep {spec['keep']}, blocks "
        f"{', '.join(map(str, spec['blocks']))}) at {'x'.join(map(str, result['image_shape']))}, untrained, which changes no time, in one "
        "ensemble;",
        f"{result['callers']} callers with a client each, half over gRPC, half over HTTP, in processes of their own, ask about "
        f"{result['batch']} images again and again.",
        f"{len(result['edits'])} edits, drawn from the seed: {_counts(result['edits'])}; `switch` moves a vote to another version.",
    ]
    return "\n".join([*lines, *note(result)])


def _counts(edits: Sequence[Mapping[str, Any]]) -> str:
    found = [edit["action"] for edit in edits]
    return ", ".join(f"{found.count(action)} {action}" for action in ACTIONS if action in found)


def _answers(result: Mapping[str, Any]) -> str:
    answers = result["answers"]
    right = sum(answers["by_state"].values())
    lines = [
        f"{answers['calls']:,} calls, {right:,} answers of an ensemble that was in force, within {answers['largest_difference']:.1g} of "
        f"numpy's (float64, of each network's own logits; allowed {result['tolerance']:g}).",
        f"{answers['while_two_states_were_in_force']:,} of them were asked while an edit was under way. Answers before and after an edit "
        f"differ by {result['least_apart']:.2g} at least, in any batch.",
    ]
    for kind, told in (("failed", "failed"), ("wrong", "wrong"), ("old_after_new", "old after new")):
        lines += [f"- {told}: {text}" for text in answers[kind]["first"]]
    return "\n".join(lines)


def _calls(calls: Mapping[str, Any]) -> str:
    lines = ["| callers | | n | p50 | p99 | max |", "|---|---|---|---|---|---|"]
    for whose, told in (("all", calls), *calls["by_protocol"].items()):
        for which in ("without", "during"):
            one = told[which]
            times = " | ".join("-" if one[key] is None else f"{one[key]:.0f}" for key in ("p50_ms", "p99_ms", "max_ms"))
            lines.append(f"| {whose} | {which} edits | {one['n']:,} | {times} |")
    return "\n".join(lines)


def _interval(calls: Mapping[str, Any]) -> str:
    if calls["p99_interval"] is None:
        return "The percentiles could not be compared: there were no calls with edits, or none without."
    low, high = calls["p99_interval"]
    return (
        f"The ratio of the 99th percentiles is {calls['p99_during_by_without']:.2f}; drawing edits and times between them anew, "
        f"it lies between {low:.2f} and {high:.2f} (95 %)."
    )


def _edits(edits: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| edits | n | own work | whole |", "|---|---|---|---|"]
    kinds = [(action, [edit for edit in edits if edit["action"] == action]) for action in ACTIONS]
    loading = [edit for edit in edits if edit["members_loaded"]]
    for name, some in (*kinds, ("among loaded members", among_loaded(edits)), ("that load a member", loading)):
        if some:
            work = statistics.median(edit["own_work_s"] for edit in some)
            whole = [edit["seconds"]["total"] for edit in some]
            lines.append(
                f"| {name} | {len(some)} | {1000 * work:.0f} | {1000 * statistics.median(whole):,.0f} ({1000 * max(whole):,.0f}) |"
            )
    return "\n".join(lines)


def _kinds(edits: Sequence[Mapping[str, Any]]) -> str:
    some = among_loaded(edits)
    if not some:
        return "there was none"
    return ", ".join(f"{kind} {1000 * statistics.median(edit['seconds'][kind] for edit in some):.0f}" for kind in KINDS)


def _memory(result: Mapping[str, Any]) -> str:
    memory = result["memory"]
    steps = [(0, memory["pss_bytes_before"]), *enumerate((edit["pss_bytes_after"] for edit in result["edits"]), start=1)]
    shown = [(number, size) for number, size in steps if number % 5 == 0 or number in memory["after_edits"]]
    lines = [
        "Proportional set size of Triton under load, MB, in the time after so many edits; the same models vote after edits "
        f"{' and '.join(map(str, memory['after_edits']))}, which are compared.",
        "",
        "| edits | " + " | ".join(str(number) for number, _ in shown) + " |",
        "|---|" + "---|" * len(shown),
        "| MB | " + " | ".join(f"{size / 1e6:.0f}" for _, size in shown) + " |",
    ]
    return "\n".join(lines)

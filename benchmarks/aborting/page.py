"""The page about aborted calls: made of the result's JSON and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import commit, figures_table, look, measured_on, note

_FIGURES = {
    "wrong_answers": "wrong answers",
    "lost_calls": "patient calls without an answer in 30 s",
    "aborts_not_made": "planned aborts that were not made",
    "left_behind": "processes, ports and shared memory left behind",
}
_KINDS = {
    "deadline": "deadline expires",
    "cancel": "cancelled",
    "close": "channel or socket closes",
    "kill": "caller killed",
    "expire": "timeout, then the socket closes",
}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Markdown; the same result gives the same text."""
    return f"""# Calls that are given up
{look(result)}
{_how(result, json_name)}

{figures_table(result["figures"], _FIGURES)}

## Aborts

Moments are random, up to 1.5 times a call's present time. A closed channel and a killed caller give up several calls at once. Those
"answered first" were given up too late; those that a server refused while it was away were repeated and do not count.

{_aborts(result["aborts"])}

## Patient callers

{_patient(result["patient"])}

## Outages

{_outages(result["availability"], result["seconds"])}

## Memory

{_memory(result["memory"])}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    spec = result["member_spec"]
    lines = [
        f"{measured_on(result, json_name, 'aborted_calls')}grpcio {result['versions']['grpcio']}, "
        f"the embedded Triton {result['server']['version']}, commit {commit(result)}, seed {result['seed']}, "
        f"{100 * result['effort']['scale']:g} % of the full number of aborts.",
        "",
        f"{result['members']} defective networks ({spec['arch']}, width {spec['width']}) at {'x'.join(map(str, result['image_shape']))}, "
        "untrained, in one ensemble. Calls ask about 1 to 8 images, for one, two or four outputs, or name none.",
        f"{result['patient_callers']} patient callers, half over gRPC, half over HTTP, repeat a call after a connection error, UNAVAILABLE "
        "or INTERNAL for up to 30 s,",
        f"and compare each answer with numpy's (float64, of each network's own logits), within {result['tolerance']:g}.",
    ]
    return "\n".join([*lines, *note(result)])


def _aborts(aborts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    lines = [
        "| protocol | abort | planned | made | in flight | calls in flight | answered first | after ms, p50 | refused, repeated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for protocol, kinds in aborts.items():
        for kind, one in kinds.items():
            numbers = [one[key] for key in ("planned", "made", "aborted", "calls_in_flight", "answered_first")]
            cells = [f"{number:,}" for number in numbers] + [_number(one["after_ms"]["p50"], 1), f"{one['refused_and_repeated']:,}"]
            lines.append(f"| {protocol} | {_KINDS[kind]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _patient(patient: Mapping[str, Any]) -> str:
    failed = ", ".join(f"{count:,} {kind}" for kind, count in patient["failed_attempts"].items()) or "none"
    lines = [
        f"{patient['calls']:,} calls, {patient['right']:,} right answers. {patient['calls_that_were_repeated']:,} calls were repeated; "
        f"failed attempts: {failed}.",
        "",
        "| protocol | n | p50 ms | p99 ms | max ms |",
        "|---|---|---|---|---|",
    ]
    for protocol, one in patient["answered_ms"].items():
        lines.append(f"| {protocol} | {one['n']:,} | {' | '.join(_number(one[key], 0) for key in ('p50', 'p99', 'max'))} |")
    texts = [f"- {kind}: {text}" for kind in ("wrong", "lost", "wrong_to_others") for text in patient[kind]["first"]]
    return "\n".join([*lines, *([""] if texts else []), *texts])


def _outages(found: Mapping[str, Any], seconds: float) -> str:
    quiet, outage, silent = found["silences"], found["outage_seconds"], found["silent_seconds"]
    lines = [
        f"{found['deaths']} deaths of Triton, {found['restarts']} restarts, {outage['total']:.1f} s of outage in {seconds:,.0f} s.",
        "An outage lasts from the death to the arrival of the first right answer to a patient call that was sent after it.",
        f"Silent seconds ({silent['total']:.1f} s) are from the last right answer before the death: Triton writes its stack to the log "
        "before its process ends.",
        f"Times of {quiet['least_s']:g} s or more without a right answer to any patient caller: {quiet['n']}, "
        f"{quiet['without_a_death']} of them without a death, the longest {quiet['longest_s']:.1f} s.",
    ]
    if found["causes"]:
        lines.append(
            "Causes, as the guard reports them: " + ", ".join(f"{count} x {cause}" for cause, count in found["causes"].items()) + "."
        )
    if found["exit_status"] is not None:
        lines.append(f"The server ended for good, with status {found['exit_status']}.")
    if found["outages"]:
        lines += ["", "| outage | after s | deaths | seconds | silent seconds |", "|---|---|---|---|---|"]
        for number, one in enumerate(found["outages"], start=1):
            took = " | ".join("not ended" if one[key] is None else f"{one[key]:.2f}" for key in ("seconds", "silent_seconds"))
            lines.append(f"| {number} | {one['at_s']:.0f} | {one['deaths']} | {took} |")
        lines.append(f"| median | | | {outage['median']:.2f} | {silent['median']:.2f} |")
        lines.append(f"| longest | | | {outage['longest']:.2f} | {silent['longest']:.2f} |")
    return "\n".join(lines)


def _memory(lives: list[Mapping[str, Any]]) -> str:
    lines = [
        "Each process of Triton at the first and at the last look, and the most that was seen: PSS in MB, and open files.",
        "",
        "| from s | to s | MB | most | open files | most |",
        "|---|---|---|---|---|---|",
    ]
    for life in lives:
        size = " to ".join(f"{one / 1e6:.0f}" for one in life["pss_bytes"])
        files = " to ".join(map(str, life["open_files"]))
        begin, end = life["at_s"]
        lines.append(f"| {begin:.0f} | {end:.0f} | {size} | {life['most_pss_bytes'] / 1e6:.0f} | {files} | {life['most_open_files']} |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

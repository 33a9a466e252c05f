"""The page of the benchmark of aborted calls, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import figures_table, format_triton_measurement, note_paragraph, quick_warning

_FIGURES = {
    "wrong_answers": "wrong responses",
    "lost_calls": "patient calls without a response in 30 s",
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
    """Return the page of a result as Markdown; the same result gives the same text."""
    return f"""# Aborted calls
{quick_warning(result)}
{_how(result, json_name)}

{figures_table(result["figures"], _FIGURES)}

## Aborts

Moments are random, up to 1.5 times the current duration of a call. A closed channel or a killed caller aborts several calls together.
"Responded first" counts aborts that came too late. Calls that failed because the server was down were repeated and do not count.

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
        f"{format_triton_measurement(result, json_name, 'aborted_calls')}, "
        f"{100 * result['effort']['scale']:g} % of the full number of aborts.",
        "",
        f"{result['members']} defective networks ({spec['arch']}, width {spec['width']}) at {'x'.join(map(str, result['image_shape']))}, "
        "untrained, in one ensemble. Calls have 1 to 8 images and request one, two or four outputs, or name none.",
        f"{result['patient_callers']} patient callers, half over gRPC, half over HTTP, repeat a call after a connection error, UNAVAILABLE "
        "or INTERNAL for up to 30 s,",
        f"and compare each response with numpy's (float64, from the logits of each network), within {result['tolerance']:g}.",
    ]
    return "\n".join([*lines, *note_paragraph(result)])


def _aborts(aborts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    lines = [
        "| protocol | abort | planned | made | in flight | calls in flight | responded first | after ms, p50 | failed, repeated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for protocol, kinds in aborts.items():
        for kind, counts in kinds.items():
            numbers = [counts[key] for key in ("planned", "made", "aborted", "calls_in_flight", "answered_first")]
            cells = [f"{number:,}" for number in numbers] + [_number(counts["after_ms"]["p50"], 1), f"{counts['refused_and_repeated']:,}"]
            lines.append(f"| {protocol} | {_KINDS[kind]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _patient(patient: Mapping[str, Any]) -> str:
    failed = ", ".join(f"{count:,} {kind}" for kind, count in patient["failed_attempts"].items()) or "none"
    lines = [
        f"{patient['calls']:,} calls, {patient['right']:,} correct responses. {patient['calls_that_were_repeated']:,} calls were repeated; "
        f"failed attempts: {failed}.",
        "",
        "| protocol | n | p50 ms | p99 ms | max ms |",
        "|---|---|---|---|---|",
    ]
    for protocol, times in patient["answered_ms"].items():
        lines.append(f"| {protocol} | {times['n']:,} | {' | '.join(_number(times[key], 0) for key in ('p50', 'p99', 'max'))} |")
    texts = [f"- {kind}: {text}" for kind in ("wrong", "lost", "wrong_to_others") for text in patient[kind]["first"]]
    return "\n".join([*lines, *([""] if texts else []), *texts])


def _outages(availability: Mapping[str, Any], seconds: float) -> str:
    silences, outage, silent = availability["silences"], availability["outage_seconds"], availability["silent_seconds"]
    lines = [
        f"{availability['deaths']} deaths of Triton, {availability['restarts']} restarts, "
        f"{outage['total']:.1f} s of outage in {seconds:,.0f} s.",
        "An outage lasts from the death to the first correct response to a patient call that was sent after it.",
        f"Silent seconds ({silent['total']:.1f} s) count from the last correct response before the death: Triton writes its stack to the "
        "log before its process ends.",
        f"Intervals of {silences['least_s']:g} s or more without any correct response: {silences['n']}, "
        f"{silences['without_a_death']} of them without a death, the longest {silences['longest_s']:.1f} s.",
    ]
    if availability["causes"]:
        lines.append(
            "Causes, as the guard reports them: " + ", ".join(f"{count} x {cause}" for cause, count in availability["causes"].items()) + "."
        )
    if availability["exit_status"] is not None:
        lines.append(f"The server ended permanently, with status {availability['exit_status']}.")
    if availability["outages"]:
        lines += ["", "| outage | after s | deaths | seconds | silent seconds |", "|---|---|---|---|---|"]
        for number, entry in enumerate(availability["outages"], start=1):
            durations = " | ".join("not ended" if entry[key] is None else f"{entry[key]:.2f}" for key in ("seconds", "silent_seconds"))
            lines.append(f"| {number} | {entry['at_s']:.0f} | {entry['deaths']} | {durations} |")
        lines.append(f"| median | | | {outage['median']:.2f} | {silent['median']:.2f} |")
        lines.append(f"| longest | | | {outage['longest']:.2f} | {silent['longest']:.2f} |")
    return "\n".join(lines)


def _memory(lives: list[Mapping[str, Any]]) -> str:
    lines = [
        "Each Triton process at its first and last sample, and the maxima: PSS in MB, and open files.",
        "",
        "| from s | to s | MB | maximum | open files | maximum |",
        "|---|---|---|---|---|---|",
    ]
    for life in lives:
        size = " to ".join(f"{size_bytes / 1e6:.0f}" for size_bytes in life["pss_bytes"])
        files = " to ".join(map(str, life["open_files"]))
        begin, end = life["at_s"]
        lines.append(f"| {begin:.0f} | {end:.0f} | {size} | {life['most_pss_bytes'] / 1e6:.0f} | {files} | {life['most_open_files']} |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

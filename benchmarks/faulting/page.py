"""The page of the fault table, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import format_triton_measurement, note_paragraph, quick_warning, table
from benchmarks.faulting.fault import DETECTION, TRUNCATED, outcomes_text

_HEADERS = (
    "fault",
    "calls",
    "right",
    "wrong",
    "rejected",
    "failed",
    "calls/s kept",
    "longest gap, s",
    "to recover, s",
    "from",
    "died",
    "goals",
)
# Why a goal is missed, where the cause is known.
_REASONS = {
    "closed_channels.recovered_s": "; core 2.51 computes the members of the calls whose callers are gone, and others wait. A rate at "
    "[the proxy](../how-to/proxy.md#choose-the-limits) bounds them"
}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    figures = result["figures"]
    return f"""# Faults
{quick_warning(result)}
{_how(result, json_name)}

{sum(figure["holds"] for figure in figures.values())} of {len(figures)} goals hold: nothing wrong is answered, hostile requests are refused,
no acknowledged edit is lost, the ensemble can be edited afterwards, nothing is left behind, and callers have correct answers within 2 s.

Known exceptions, which are no missed goals:

- `member_wrong`: answers are wrong until the supervisor detects it, and for at most 2 s afterwards: this cannot be noticed before.
- `replica_killed`: callers repeat failed calls at the other server, with the default retry policy. In all other rows, they repeat nothing.
- `bad_tensors`: core 2.51 keeps 32 bits of a declared batch over gRPC, and answers for the images that were sent to a call that declares
  2^62 images. Such calls are counted as "{TRUNCATED}".
- `path_tricks`: core 2.51 ends the name of a model at NUL over gRPC. No name with NUL at its end is sent.

{table(_HEADERS, (_row(row, figures) for row in result["rows"]))}

- **wrong** differs from numpy's; **rejected** is an answer that the client refuses, such as NaN; **failed** is a call without an answer.
- **calls/s kept** is the number of correct answers per second during a fault that lasts, as a fraction of that before it.
- **longest gap** is the longest time without a right answer, from the fault on, for the protocol with the longer one.
- **to recover** counts until a call over each protocol that was sent afterwards is answered right: from the fault, from its end, or from
  when the guard or the supervisor detects it.
{_missed(figures)}
## What was done

{table(("fault", "what is done", "what is expected", "hostile requests"), (_action(row) for row in result["rows"]))}
{_not_run(result["not_run"])}"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    lines = [
        f"{format_triton_measurement(result, json_name, 'faults')}.",
        "",
        f"Each fault has a server of its own with {result['members']} networks at {'x'.join(map(str, result['image_shape']))}, an ensemble "
        f"that was edited once, and {result['callers']} callers,",
        "half over gRPC, half over HTTP, which compare each answer with numpy's (float64, from the logits of each network), within "
        f"{result['tolerance']:g}.",
        "Random bytes, cuts and batches follow from the seed.",
    ]
    return "\n".join([*lines, *note_paragraph(result)])


def _row(row: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    missed = [name.partition(".")[2] for name, figure in figures.items() if name.partition(".")[0] == row["name"] and not figure["holds"]]
    gaps = row["longest_gap_s"].values()
    detected = f" ({row['detected_after_s']:.1f} s)" if row["counts_from"] == DETECTION and row["detected_after_s"] is not None else ""
    return (
        f"`{row['name']}`",
        *(f"{row[key]:,}" for key in ("calls", "right", "wrong", "rejected", "failed")),
        "-" if row["rate_kept"] is None else f"{row['rate_kept']:.2f}",
        f"{max(gaps):.2f}" if gaps else "-",
        "never" if row["recovered_s"] is None else f"{row['recovered_s']:.2f}",
        row["counts_from"] + detected,
        f"{row['deaths']}",
        "hold" if not missed else f"**missed**: {', '.join(missed)}",
    )


def _action(row: Mapping[str, Any]) -> tuple[str, ...]:
    return f"`{row['name']}`", row["action"], row["expected"], outcomes_text(row["requests"]) if row["requests"] else "-"


def _missed(figures: Mapping[str, Mapping[str, Any]]) -> str:
    missed = [(name, figure) for name, figure in figures.items() if not figure["holds"]]
    if not missed:
        return ""
    lines = [
        f"- `{name}`: {'none' if figure['value'] is None else figure['value']}, expected {figure['goal']}{_REASONS.get(name, '')}"
        for name, figure in missed
    ]
    return "\n".join(["", "Missed:", "", *lines, ""])


def _not_run(not_run: Mapping[str, str]) -> str:
    if not not_run:
        return ""
    return "\n".join(["", "Not run:", "", *(f"- `{name}`: {reason}" for name, reason in not_run.items()), ""])

"""The page of a soak, generated only from the result's JSON."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import figures_table, format_triton_measurement, note_paragraph, quick_warning, table
from benchmarks.faulting.soak_result import BLOCKS, BOUNDS

_FIGURES = {
    "wrong_answers": "wrong answers",
    "failed_calls": "failed calls of the edited ensemble",
    "failed_edits": "failed edits",
    "lost_edits": "acknowledged edits that are not in the history",
    "failed_probes": "rounds of probes that failed",
    "deaths": "deaths and hangs of Triton",
    "left_behind": "processes, ports and shared memory left behind",
    **{f"{name}_gained": f"{text} gained in the second half, at most" for name, (_, _, text) in BOUNDS.items()},
}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    return f"""# Soak
{quick_warning(result)}
{_how(result, json_name)}

{figures_table(result["figures"], _FIGURES)}

## Memory, descriptors and threads

The second half of the samples is divided into {BLOCKS} blocks, because samples that follow each other are not independent. What was
gained is the slope of their means times the duration, with its 95 % interval; the bound is for its upper end.

{table(("", "first", "middle", "last", "gained in the second half", "bound"), _trends(result))}

{_failures(result)}"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    lines = [
        f"{format_triton_measurement(result, json_name, 'faults', 'soak', ' --soak')}.",
        "",
        f"{result['members']} networks at {'x'.join(map(str, result['image_shape']))} in two ensembles for "
        f"{result['seconds'] / 60:.1f} minutes. One is edited {result['edits']:,} times while four callers send",
        f"{result['calls']:,} calls and compare each answer with numpy's, within {result['tolerance']:g}. The other gets "
        f"{result['probe_rounds']:,} rounds of a noise probe, and {result['aborts']:,} calls",
        f"over gRPC and HTTP that are aborted ({result['refused_aborts']:,} more failed first). The supervisor checks both every second.",
    ]
    return "\n".join([*lines, *note_paragraph(result)])


def _trends(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, (bound, _, text) in BOUNDS.items():
        samples, trend = result["samples"][name], result["trends"][name]
        shown = [f"{samples[index]:.1f}" for index in (0, len(samples) // 2, -1)] if samples else ["-"] * 3
        gained = "too short" if trend is None else f"{trend['gained']:+.2f} ({trend['low']:+.2f} to {trend['high']:+.2f})"
        rows.append((text, *shown, gained, f"{bound:g}"))
    return rows


def _failures(result: Mapping[str, Any]) -> str:
    keys = ("wrong", "failed", "failed_edits", "failed_probes")
    texts = list(itertools.chain.from_iterable((f"- {key}: {text}" for text in result[key]["first"]) for key in keys))
    return "\n".join([*texts, *(f"- left behind: {text}" for text in result["left_behind"]), ""]).lstrip("\n")

"""The page of the trace of a call, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import quick_warning, served_members_paragraphs, table
from benchmarks.tracing.figures import MEMBER_PARTS, PARTS


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    sections = "\n\n".join(
        _section(title, [s for s in result["settings"] if s["title"] == title]) for title in ("five members", "one member")
    )
    return f"""# Where the time of a call goes
{quick_warning(result)}
{served_members_paragraphs(result, json_name, "call_trace", "where_a_call_goes")}

Times are those of Triton's own trace of about {result["traced"]} calls in each column: medians (and quartiles), in ms, of each part
by itself, so that the parts of a column do not sum up exactly. Columns are callers x batch. Requests were made before and are
sent by bare sockets and stubs; `caller and network` is the rest of the call as its caller sees it.{_crashes(result["settings"])}

{sections}

## What was tried

{result["tried"]["about"]}

{_tried(result["tried"]["ideas"])}
"""


def _crashes(settings: Sequence[Mapping[str, Any]]) -> str:
    crashes = sum(setting["crashes"] for setting in settings)
    if not crashes:
        return ""
    return f"""
Triton crashed {crashes} times while it traced calls (server issue 7795); these settings were measured again."""


def _section(title: str, settings: Sequence[Mapping[str, Any]]) -> str:
    names = [f"{setting['protocol']}, {setting['callers']} x {setting['batch']}" for setting in settings]
    parts = [part for part in PARTS if any(part in setting["parts"] for setting in settings)]
    rows = [(PARTS[part], *(_ms(setting["parts"].get(part)) for setting in settings)) for part in parts]
    rows.append(("**call**", *("-" if setting["call_ms"] is None else f"**{setting['call_ms']:.2f}**" for setting in settings)))
    rows.append(("traced calls", *(f"{setting['traced']:,}" for setting in settings)))
    members = [(MEMBER_PARTS[part], *(_ms(setting["member"].get(part)) for setting in settings)) for part in MEMBER_PARTS]
    return f"""## {title.capitalize()}

{table(("part of a call", *names), rows)}

{table(("a member's request", *names), members)}"""


def _tried(ideas: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ("idea", "8 x 16", "8 x 1", "1 x 1", "kept", "remark"),
        (
            (idea["idea"], *(_ratio(idea["ratios"].get(setting)) for setting in ("8x16", "8x1", "1x1")), idea["kept"], idea["remark"])
            for idea in ideas
        ),
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _ms(part: Mapping[str, float] | None) -> str:
    if part is None:
        return ""
    spread = f" ({part['lower']:.3f} to {part['upper']:.3f})" if "lower" in part else ""
    return f"{part['median']:.3f}{spread}"

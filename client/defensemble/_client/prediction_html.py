"""Predictions as HTML, for notebooks: without scripts, requests, or a style sheet, which some notebooks remove."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .prediction import Prediction

_MAX_IMAGES = 20
_BAR = "#3b82f6"  # readable on white and on black, as notebooks do not report their theme
_OTHER_BAR = "#94a3b8"


def prediction_html(prediction: Prediction) -> str:
    """Return a prediction as HTML for a notebook, at most 20 images. Colours are those of the page, or readable on light and dark."""
    shown = prediction[:_MAX_IMAGES]
    columns = [("", list(map(str, range(len(shown)))))]
    if "probabilities" in prediction.received:
        class_count = 5 if len(prediction) <= 4 else 3
        columns.append(("most probable classes", [_bars(classes) for classes in shown.top(class_count)]))
    if {"probabilities", "entropy"} & set(prediction.received):
        columns.append((_ENTROPY, [_meter(value, len(prediction.class_names)) for value in shown.entropy.tolist()]))
    if "mutual_information" in prediction.received:
        columns.append((_INFORMATION, [_meter(value, len(prediction.class_names)) for value in shown.mutual_information.tolist()]))
    if "member_probabilities" in prediction.received:
        columns.append(("members", [escape_text(text) for text in member_agreements(shown)]))
    cell = "padding:4px 12px;text-align:left;vertical-align:top;border:0;background:transparent"
    head = "".join(f'<th scope="col" style="{cell};font-weight:600;white-space:nowrap">{title}</th>' for title, _ in columns)
    rows = "".join(
        '<tr style="border-top:1px solid rgba(128,128,128,.3);background:transparent">'
        + "".join(f'<td style="{cell}">{value}</td>' for value in values)
        + "</tr>"
        for values in zip(*(values for _, values in columns), strict=True)
    )
    left = len(prediction) - len(shown)
    more = f'<div style="padding:4px 12px;opacity:.75">and {left:,} more</div>' if left else ""
    return (
        '<div style="font:13px/1.35 system-ui,sans-serif;color:inherit;overflow-x:auto">'
        f'<table style="border-collapse:collapse;border:0;color:inherit;font:inherit;margin:0"><caption style="caption-side:top;'
        f'text-align:left;padding:4px 12px;color:inherit">{_caption(prediction)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>{more}</div>"
    )


_ENTROPY = '<span title="of the probabilities, in nats; the bar is full at ln K, where all K classes are equally probable">entropy</span>'
_INFORMATION = '<span title="disagreement of the members, in nats; the bar is full at ln K">mutual information</span>'


def _caption(prediction: Prediction) -> str:
    count = len(prediction)
    version = f" version {prediction.model_version}" if prediction.model_version else ""
    parts = [f"<b>{count:,} image{'' if count == 1 else 's'}</b> by <b>{escape_text(prediction.model)}</b>{escape_text(version)}"]
    if prediction.latency_s:
        parts.append(f"{1000 * prediction.latency_s:.3g} ms")
    parts += [escape_text(part) for part in (prediction.url, prediction.request_id and f"request {prediction.request_id}") if part]
    return " · ".join(parts)


def _bars(classes: Sequence[tuple[str, float]]) -> str:
    rows = []
    for rank, (label, probability) in enumerate(classes):
        weight, colour = ("600", _BAR) if rank == 0 else ("400", _OTHER_BAR)
        rows.append(
            '<div style="display:flex;align-items:center;gap:8px;white-space:nowrap">'
            f'<span title="{escape_text(label)}" style="width:9em;overflow:hidden;text-overflow:ellipsis;font-weight:{weight}">'
            f"<bdi>{escape_text(label)}</bdi></span>{_bar(probability, 120, colour)}"
            f'<span style="width:4em;text-align:right;font-variant-numeric:tabular-nums;font-weight:{weight}">{probability:.1%}</span>'
            "</div>"
        )
    return "".join(rows)


def _meter(nats: float, class_count: int) -> str:
    fraction = nats / math.log(class_count) if class_count > 1 else 0.0
    number = f'<span style="font-variant-numeric:tabular-nums">{nats:.3f}</span>'
    return f'<div style="display:flex;align-items:center;gap:8px">{number}{_bar(fraction, 60, _OTHER_BAR)}</div>'


def _bar(fraction: float, width: int, colour: str) -> str:
    filled = min(max(fraction, 0.0), 1.0)
    return (
        f'<span style="display:inline-block;width:{width}px;height:8px;border-radius:2px;background:rgba(128,128,128,.2)">'
        f'<span style="display:block;width:{filled:.1%};height:8px;border-radius:2px;background:{colour}"></span></span>'
    )


def member_agreements(prediction: Prediction) -> list[str]:
    """Return, for each image, how many members predict the class that they predict together, and what the others predict."""
    names = prediction.class_names
    texts = []
    for one in prediction:
        counts = Counter(one.member_probabilities[0].argmax(axis=1).tolist())
        total = counts.total()
        text = f"{counts.pop(int(one.indices[0]), 0)} of {total} agree" if "probabilities" in one.received else f"{total} members"
        others = [f"{count} {names[index]}" for index, count in counts.most_common(3)]
        texts.append("; ".join([text, *others, *(["..."] if len(counts) > 3 else [])]))
    return texts


def escape_text(text: str) -> str:
    """Return text for HTML. File names may hold bytes that are no UTF-8, which cannot be written to a file either."""
    return html.escape(text.encode("utf-8", "replace").decode())

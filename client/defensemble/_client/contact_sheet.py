"""A page with all images of a prediction, the most uncertain first: one file without scripts that works offline."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from .prediction_html import escape_text, member_agreements

if TYPE_CHECKING:
    from .prediction import Prediction

    Thumbnail: TypeAlias = "NDArray[np.uint8] | bytes"

THUMBNAIL_SIDE = 128
_PNG_SIDE = 64  # photographs: PNG of 64 x 64 takes 8 kB, of 128 x 128 30 kB; JPEG of 128 x 128 takes 5 kB
_PNG_SIGNATURE, _JPEG_SIGNATURE = b"\x89PNG", b"\xff\xd8"
_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --text: #16181d; --quiet: #5b6270; --line: #d9dce2; --bar: #2563eb;
  --wrong: #c2261b; --ok: #18794e }
@media (prefers-color-scheme: dark) {
  :root { --page: #111318; --card: #1b1e25; --text: #eceef2; --quiet: #a0a7b4; --line: #343944; --bar: #6ea0ff;
    --wrong: #ff7a6e; --ok: #5fd39b }
}
* { box-sizing: border-box; margin: 0; padding: 0 }
body { background: var(--page); color: var(--text); font: 14px/1.4 system-ui, sans-serif; padding: 24px; max-width: 1600px; margin: auto }
header { margin-bottom: 20px }
h1 { font-size: 22px; margin-bottom: 8px; overflow-wrap: anywhere }
header dl { display: flex; flex-wrap: wrap; gap: 4px 24px }
header dl div { display: flex; gap: 6px }
dt, header p, .name { color: var(--quiet) }
dd { overflow-wrap: anywhere }
header p { margin-top: 6px; max-width: 75ch }
ol { list-style: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px; min-width: 0;
  content-visibility: auto; contain-intrinsic-size: auto 200px auto 380px }
.wrong { border-color: var(--wrong); box-shadow: inset 0 0 0 1px var(--wrong) }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--page); border-radius: 4px }
.png { image-rendering: pixelated }
.name { font-size: 12px; margin-top: 6px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  direction: rtl; text-align: left }  /* the end of a path is shown */
h2 { font-size: 16px; overflow-wrap: anywhere }
h2 small { font-weight: 400; color: var(--quiet) }
.truth { font-weight: 600; color: var(--ok); overflow-wrap: anywhere }
.wrong .truth { color: var(--wrong) }
ul { list-style: none; margin: 6px 0 }
ul li { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr) 3.6em; gap: 6px; align-items: center; font-size: 12px }
ul span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
ul span:last-child { text-align: right; font-variant-numeric: tabular-nums }
ul i, ul b { display: block; height: 8px; border-radius: 2px; background: var(--line) }
ul b { background: var(--bar) }
.card dl { font-size: 12px; font-variant-numeric: tabular-nums }
.card dl div { display: flex; justify-content: space-between; gap: 8px }
.card .members { display: block }
.members dt, .members dd { display: inline }
@media (max-width: 480px) {
  body { padding: 12px }
  ol { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px }
  .card { padding: 8px }
}
@media print {
  body { background: none; padding: 0 }
  ol { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px }
  .card { content-visibility: visible; break-inside: avoid }
  ul i, ul b { print-color-adjust: exact; -webkit-print-color-adjust: exact }
}
"""


def encode_thumbnail(image: NDArray[Any]) -> bytes:
    """Return an image as the bytes of a PNG or JPEG file of at most 128 x 128 pixels.

    Args:
        image: uint8 (H, W, 3) or (H, W, 1), or float32 (C, H, W) in [0, 1], as `predict` takes it.
    """
    from PIL import Image

    values = image
    if image.dtype == np.float32:
        values = np.rint(image.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8)
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] not in (1, 3):
        raise InputError(f"a thumbnail is uint8 (H, W, 3) or float32 (C, H, W), with 1 or 3 channels; got {image.dtype} {image.shape}")
    picture = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    stream = io.BytesIO()
    if max(picture.size) <= _PNG_SIDE:
        picture.save(stream, "PNG")
    else:
        picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def contact_sheet_html(
    images: Iterable[tuple[str, Thumbnail]],
    predictions: Iterable[Prediction],
    title: str = "Predictions",
    *,
    true_labels: Iterable[str | None] | None = None,
    created: datetime | None = None,
) -> str:
    """Return what `write_contact_sheet` writes."""
    stream = io.StringIO()
    write_contact_sheet(stream, images, predictions, title, true_labels=true_labels, created=created)
    return stream.getvalue()


def write_contact_sheet(
    file: TextIO,
    images: Iterable[tuple[str, Thumbnail]],
    predictions: Iterable[Prediction],
    title: str = "Predictions",
    *,
    true_labels: Iterable[str | None] | None = None,
    created: datetime | None = None,
) -> None:
    """Write a page of all images with their predictions, the highest entropy first. It is one file that works offline.

    In memory are the encoded thumbnails, some kB each, and not the page.

    Args:
        file: Opened for text, as UTF-8.
        images: Name and thumbnail of each image: uint8 (H, W, 3), or the bytes of a PNG or JPEG file, such as `encode_thumbnail` returns.
            The pixels of a PNG file are enlarged without blur.
        predictions: The predictions of these images, of one model, in the same order: one of all images, or several of some each. They
            have probabilities.
        title: Title of the page.
        true_labels: The true class of each image, or None where it is unknown; None if all are.
        created: Date on the page; None for now.

    Raises:
        InputError: There are not as many predictions and true labels as images, or there are no images.
    """
    named = [(name, _checked(name, data) if isinstance(data, bytes) else encode_thumbnail(data)) for name, data in images]
    single = list(chain.from_iterable(predictions))  # iterating over a prediction yields those of each image
    truths = list(repeat(None, len(named)) if true_labels is None else true_labels)
    if not named or not len(named) == len(single) == len(truths):
        raise InputError(
            f"expected as many images, predictions and true labels, at least one; got {len(named)}, {len(single)} and {len(truths)}"
        )
    labels = [prediction.labels[0] for prediction in single]
    order = np.argsort([-prediction.entropy[0] for prediction in single], kind="stable").tolist()
    known = [(label, truth) for label, truth in zip(labels, truths, strict=True) if truth is not None]
    file.write(_head(title, single, known, created or datetime.now(timezone.utc)))
    for position in order:
        name, data = named[position]
        file.write(_card(name, data, single[position], truths[position]))
    file.write("</ol></main>\n</body></html>\n")


def _head(title: str, predictions: Sequence[Prediction], known: Sequence[tuple[str, str]], created: datetime) -> str:
    first = predictions[0]
    version = f" version {first.model_version}" if first.model_version else ""
    urls = sorted({prediction.url for prediction in predictions if prediction.url})
    facts = [("Model", first.model + version), ("Images", f"{len(predictions):,}")]
    if known:
        wrong = sum(label != truth for label, truth in known)
        facts.append(("Wrong", f"{wrong:,} of {len(known):,} with a known label"))
    facts += [("Server", ", ".join(urls))] if urls else []
    facts.append(("Date", created.strftime("%Y-%m-%d %H:%M %Z").strip()))
    note = " Mutual information is high where the members disagree." if "mutual_information" in first.received else ""
    rows = "".join(f"<div><dt>{escape_text(name)}</dt><dd>{escape_text(value)}</dd></div>" for name, value in facts)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{escape_text(title)}</title>
<style>{_STYLE}</style></head>
<body><header><h1>{escape_text(title)}</h1><dl>{rows}</dl>
<p>Most uncertain first: sorted by the entropy of the probabilities, highest first, in nats; 0 is certain, and the maximum for \
{len(first.class_names)} classes is {math.log(len(first.class_names)):.2f}.{note}</p>
</header>
<main><ol>
"""


def _card(name: str, data: bytes, prediction: Prediction, truth: str | None) -> str:
    label, probability = prediction.top(1)[0][0]
    is_wrong = truth is not None and truth != label
    media, pixels = ("png", ' class="png"') if data.startswith(_PNG_SIGNATURE) else ("jpeg", "")
    verdict = ""
    if truth is not None:
        verdict = f'<p class="truth">{"✗" if is_wrong else "✓"} true label: <bdi>{escape_text(truth)}</bdi></p>'
    bars = "".join(
        f'<li><span><bdi>{escape_text(other)}</bdi></span><i><b style="width:{value:.1%}"></b></i><span>{value:.1%}</span></li>'
        for other, value in prediction.top(3)[0]
    )
    uncertainty = f"<div><dt>Entropy</dt><dd>{prediction.entropy[0]:.3f}</dd></div>"
    if "mutual_information" in prediction.received:
        uncertainty += f"<div><dt>Mutual information</dt><dd>{prediction.mutual_information[0]:.3f}</dd></div>"
    if "member_probabilities" in prediction.received:
        uncertainty += f'<div class="members"><dt>Members</dt> <dd>{escape_text(member_agreements(prediction)[0])}</dd></div>'
    alternative = f"{name}, predicted {label} ({probability:.0%}){f', true label {truth}' if is_wrong else ''}"
    return (
        f'<li class="card{" wrong" if is_wrong else ""}"><img alt="{escape_text(alternative)}" loading="lazy" '
        f'src="data:image/{media};base64,{base64.b64encode(data).decode()}"{pixels}>'
        f'<p class="name" title="{escape_text(name)}"><bdi>{escape_text(name)}</bdi></p>'
        f"<h2><bdi>{escape_text(label)}</bdi> <small>{probability:.1%}</small></h2>{verdict}"
        f"<ul>{bars}</ul><dl>{uncertainty}</dl></li>\n"
    )


def _checked(name: str, data: bytes) -> bytes:
    if not data.startswith((_PNG_SIGNATURE, _JPEG_SIGNATURE)):
        raise InputError(f"the thumbnail of {name} is no PNG or JPEG file; it begins with {data[:8]!r}: pass encode_thumbnail(image)")
    return data

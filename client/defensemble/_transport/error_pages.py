"""The text of responses that report an error: JSON of the server, or a web page of a proxy."""

from __future__ import annotations

import html
import json
import re

from .error_mapping import redact_key
from .http_parser import HttpResponse

_HIDDEN_HTML = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
_MAX_ERROR_BYTES = 1 << 16
_MAX_ERROR_CHARACTERS = 4000  # a rejected load comes with a reason for each version
_MAX_PAGE_CHARACTERS = 4096  # the pattern above takes up to quadratic time
_MAX_PAGE_TEXT = 200


def error_text(response: HttpResponse, admin_key: str | None = None) -> str:
    """Return the server's text in a response that reports an error.

    Args:
        response: The response.
        admin_key: The key that the request carried, which the text shall not show.
    """
    text = redact_key(bytes(response.body[:_MAX_ERROR_BYTES]).decode("utf-8", "replace"), admin_key)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        if text.startswith("Traceback (most recent call last)"):  # as MLServer sends; the reason is its last line
            return text.rstrip().rpartition("\n")[2][:300]
        return _text_of_html(text) if is_html(response) else text[:300]
    return str(document["error"])[:_MAX_ERROR_CHARACTERS] if isinstance(document, dict) and "error" in document else text[:300]


def is_html(response: HttpResponse) -> bool:
    """Return whether a response is a web page."""
    return response.headers.get(b"content-type", b"").lower().startswith((b"text/html", b"application/xhtml"))


def _text_of_html(page: str) -> str:
    """Return the visible text of an HTML page, or the start of its source if there is none."""
    text = " ".join(html.unescape(_HIDDEN_HTML.sub(" ", page[:_MAX_PAGE_CHARACTERS])).split())
    return (text or page)[:_MAX_PAGE_TEXT]

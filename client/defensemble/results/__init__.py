"""Result files: rates with intervals, and what they were measured with."""

from __future__ import annotations

from .intervals import Rate, rate, wilson
from .provenance import provenance
from .result_file import check_writable, write_result

__all__ = ["Rate", "check_writable", "provenance", "rate", "wilson", "write_result"]

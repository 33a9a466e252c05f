"""Result files: rates with confidence intervals, and the provenance of measurements."""

from __future__ import annotations

from .intervals import Rate, rate, wilson
from .provenance import provenance
from .result_file import check_writable, write_result

__all__ = ["Rate", "check_writable", "provenance", "rate", "wilson", "write_result"]

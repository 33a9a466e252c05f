"""Load tests of served models: closed and open loops, latency histograms, and the highest rate that holds."""

from __future__ import annotations

from .result import LoadResult, Slo, read_load_result

__all__ = ["LoadResult", "Slo", "read_load_result"]

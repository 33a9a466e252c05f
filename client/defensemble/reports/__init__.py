"""Reports on probes and load tests: one page of HTML, Markdown or CSV from result files, with the same numbers in each."""

from __future__ import annotations

from .build import build_report
from .load import load_report, write_load_report
from .model import Report
from .read import read_results
from .write import FORMATS, format_from_path, write_report

__all__ = ["FORMATS", "Report", "build_report", "format_from_path", "load_report", "read_results", "write_load_report", "write_report"]

"""Imported before ONNX Runtime, whose wheels (seen: 1.32) send events to Microsoft by default; a value that is set wins."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

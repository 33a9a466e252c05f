"""Turn off ONNX Runtime's telemetry: its wheels (seen in 1.32) send events to Microsoft by default.

Import this module before `onnxruntime`. A value that is already set is kept.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

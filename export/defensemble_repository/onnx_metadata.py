"""ONNX versions and metadata keys of the ONNX files that this project writes."""

from __future__ import annotations

# Fixed, because the newest defaults of the libraries are newer than what servers load.
IR_VERSION = 10
OPSET = 20

SPEC, RECORD = "defensemble.spec", "defensemble.record"
CLASS_NAMES = "defensemble.class_names"
MASK_DIGEST = "defensemble.mask_digest"
# Absent for float32.
PRECISION = "defensemble.precision"
# The rule by which images are resized (JSON). Absent if it is not known.
PREPROCESSING = "defensemble.preprocessing"
# Of a fused graph: its members (JSON, in step order), and the kind of average.
FUSED_MEMBERS, FUSED_AVERAGE = "defensemble.members", "defensemble.average"

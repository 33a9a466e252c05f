"""What an ONNX file of ours states: its versions of ONNX, and the keys of its metadata."""

from __future__ import annotations

# What every file says that we write; libraries' newest defaults are ahead of what servers load.
IR_VERSION = 10
OPSET = 20

SPEC, RECORD = "defensemble.spec", "defensemble.record"
CLASS_NAMES = "defensemble.class_names"
MASK_DIGEST = "defensemble.mask_digest"
# Absent in float32.
PRECISION = "defensemble.precision"
# How images are brought to size (JSON); absent where it is not known.
PREPROCESSING = "defensemble.preprocessing"
# Of a fused graph, with its class names: its members (JSON, in step order), and what is averaged.
FUSED_MEMBERS, FUSED_AVERAGE = "defensemble.members", "defensemble.average"

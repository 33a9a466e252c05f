"""What an ONNX file of ours says of itself: the keys of its metadata."""

from __future__ import annotations

SPEC, RECORD = "defensemble.spec", "defensemble.record"
CLASS_NAMES = "defensemble.class_names"
MASK_DIGEST = "defensemble.mask_digest"
# Absent in float32.
PRECISION = "defensemble.precision"
# Of a fused graph, beside its class names: who votes (JSON, in step order), and what is averaged.
FUSED_MEMBERS, FUSED_AVERAGE = "defensemble.members", "defensemble.average"

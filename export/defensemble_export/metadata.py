"""What an ONNX file of ours says of itself: the keys of its metadata."""

SPEC, RECORD = "defensemble.spec", "defensemble.record"
CLASS_NAMES = "defensemble.class_names"
MASK_DIGEST = "defensemble.mask_digest"
# Absent in float32.
PRECISION = "defensemble.precision"

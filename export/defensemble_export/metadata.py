"""What an ONNX file of ours says of itself: the keys of its metadata."""

from __future__ import annotations

from defensemble_images import ImagesError, Preprocessing

from .errors import ExportError

SPEC, RECORD = "defensemble.spec", "defensemble.record"
CLASS_NAMES = "defensemble.class_names"
MASK_DIGEST = "defensemble.mask_digest"
# Absent in float32.
PRECISION = "defensemble.precision"
# How images are brought to size (JSON); absent where it is not known.
PREPROCESSING = "defensemble.preprocessing"
# Of a fused graph, beside its class names: who votes (JSON, in step order), and what is averaged.
FUSED_MEMBERS, FUSED_AVERAGE = "defensemble.members", "defensemble.average"


def preprocessing_from_text(text: str | None, where: str) -> Preprocessing | None:
    """Read the rule in the metadata of an ONNX file or in the parameter of a configuration; None where there is none.

    Args:
        text: the JSON text.
        where: what carries it, for errors.

    Raises:
        ExportError: it is something else.
    """
    try:
        return None if text is None else Preprocessing.from_json(text, where)
    except ImagesError as error:
        raise ExportError(str(error)) from error

"""File names, reserved names and the rules for model names in a repository."""

from __future__ import annotations

import re

from .errors import EnsembleError

BACKEND = "onnxruntime"
# The backend that serves TensorRT plans.
PLAN_BACKEND = "tensorrt"
# The backend of each `platform`, the field that older configurations have instead of `backend`.
BACKEND_OF_PLATFORM = {
    "onnxruntime_onnx": BACKEND,
    "tensorrt_plan": PLAN_BACKEND,
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "pytorch_libtorch": "pytorch",
}
ENSEMBLE_PLATFORM = "ensemble"
CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
# In a version folder: the ONNX graph and the report of its verification, its TensorRT plan and the manifest of the plan.
MODEL_FILE, REPORT_FILE = "model.onnx", "model.onnx.json"
PLAN_FILE, MANIFEST_FILE = "model.plan", "model.plan.json"
# In a model folder: one configuration for each serving profile, which `serve --profile` selects instead of `config.pbtxt`.
PROFILES_FOLDER = "configs"
# The profiles that `defensemble profile write` generates for every network. Users can add others to single models.
PROFILES = ("cpu", "gpu", "gpu-ort-tensorrt", "gpu-tensorrt")
# Prefixes of generated averaging models. An export must not use them. Only the older two-model form has the second one.
RESERVED_PREFIXES = ("average_", "uncertainty_")
AVERAGING_NAME = re.compile(f"({'|'.join(RESERVED_PREFIXES)})[0-9a-f]{{16}}")
# Files that edits write at the root of a repository. No model folder can have their names.
HISTORY_FILE, PENDING_FILE = "history.jsonl", "pending-edit.json"
ROOT_FILES = (HISTORY_FILE, PENDING_FILE)
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")


def check_name(name: str, *, generated: bool = False) -> str:
    """Return a name that is valid for a model in Triton and in a file system.

    Args:
        name: A name of 1 to 100 letters, digits, `_`, `.` and `-` that begins with a letter or digit.
        generated: Whether the prefixes of averaging models are allowed.

    Raises:
        EnsembleError: The name is empty, too long, contains other characters, has a reserved prefix, or is that of a file that
            edits write.

    Example:
        >>> check_name("keep0.3")
        'keep0.3'
    """
    if not MODEL_NAME.fullmatch(name):
        expected = "1 to 100 letters, digits, '_', '.' or '-', beginning with a letter or digit"
        raise EnsembleError(f"{name!r:.120} is not a valid model name; expected {expected}. Choose another name.")
    if name.startswith(RESERVED_PREFIXES) and not generated:
        prefixes = " and ".join(RESERVED_PREFIXES)
        raise EnsembleError(f"model name {name!r} has a reserved prefix: {prefixes} are for averaging models. Choose another name.")
    if name in ROOT_FILES:
        raise EnsembleError(f"model name {name!r} is reserved for a file in the repository. Choose another name.")
    return name

"""File names in a model repository, reserved names, and the rules for the names of models."""

from __future__ import annotations

import re

from .errors import EnsembleError

BACKEND = "onnxruntime"
# Serves TensorRT plans.
PLAN_BACKEND = "tensorrt"
# What Triton takes each `platform` for, which older configurations have where newer ones have `backend`.
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
# In a version's folder: the ONNX file, how its export was verified, a TensorRT plan of it, and what that was built with and for.
MODEL_FILE, REPORT_FILE = "model.onnx", "model.onnx.json"
PLAN_FILE, MANIFEST_FILE = "model.plan", "model.plan.json"
# In a model's folder: a configuration for each profile that differs from ``config.pbtxt``, which `serve --profile` chooses.
PROFILES_FOLDER = "configs"
# The profiles that `defensemble profile write` writes, for every network; any other is somebody's own, for the models that have it.
PROFILES = ("cpu", "gpu", "gpu-ort-tensorrt", "gpu-tensorrt")
# The prefixes of the models that are generated from an ensemble, and never exported by name; the second only in the two-model form.
RESERVED_PREFIXES = ("average_", "uncertainty_")
AVERAGING_NAME = re.compile(f"({'|'.join(RESERVED_PREFIXES)})[0-9a-f]{{16}}")
# Files at a repository's root that edits write: a folder of that name would stand in their way.
HISTORY_FILE, PENDING_FILE = "history.jsonl", "pending-edit.json"
ROOT_FILES = (HISTORY_FILE, PENDING_FILE)
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")


def check_name(name: str, *, generated: bool = False) -> str:
    """Return ``name`` where both Triton and a file system take it for a model's name.

    Raises:
        EnsembleError: it is empty, too long, holds other characters than letters, digits, ``_``, ``.`` and ``-``, does not begin
            with a letter or digit, begins as the averaging models' names do, or is that of a file that edits write.
    """
    if not MODEL_NAME.fullmatch(name):
        expected = "a model's name has 1 to 100 letters, digits, '_', '.' or '-' and begins with a letter or digit"
        raise EnsembleError(f"{expected}, got {name!r:.120}: choose another")
    if name.startswith(RESERVED_PREFIXES) and not generated:
        raise EnsembleError(f"names that begin with {' or '.join(RESERVED_PREFIXES)} are kept for averaging models, got {name!r}")
    if name in ROOT_FILES:
        raise EnsembleError(f"the repository keeps a file of its own under the name {name!r}: choose another for the model")
    return name

"""Choose between the plain and the mask-aware form of a graph, and state the choice in the report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from defensemble_ops import BuildError, library_path
from defensemble_repository.names import REPORT_FILE

from ..errors import ExportError
from ..graphs.mask_aware import is_mask_aware, mask_aware_from_onnx
from ..graphs.stored import model_from_bytes
from ..verification.mask_aware import verify_mask_aware

# auto: where it is expected to pay. on: an error where it is impossible. off: never.
MASK_AWARE_MODES = ("auto", "on", "off")


@dataclass(frozen=True, eq=False)
class ChosenForm:
    """A graph in the form in which it is stored.

    Attributes:
        model: The graph to store.
        report: The entry `mask_aware` of the export report, without the comparison.
    """

    model: onnx.ModelProto
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def is_mask_aware(self) -> bool:
        """Whether the graph has the operator."""
        return is_mask_aware(self.model)


def choose_form(model: onnx.ModelProto, mode: str, *, precision: str, targets: Sequence[str] = ("logits",)) -> ChosenForm:
    """Return a graph in the mask-aware form if that is asked for and possible, otherwise as it is.

    Args:
        model: The plain graph.
        mode: One of `MASK_AWARE_MODES`.
        precision: What the graph computes in.
        targets: The logits of the networks in the graph; each gets an operator of its own.

    Raises:
        ExportError: `mode` is "on", and the graph has no masks or another precision than fp32, a mask cannot be followed, or the library
            of the operator, which verifies the form, cannot be built.
    """
    if mode == "off":
        return ChosenForm(model, plain_report("--mask-aware off"))
    if precision != "fp32":
        if mode == "on":
            raise ExportError(f"the graph computes in {precision}, and the mask-aware form is for fp32: leave --mask-aware out")
        return ChosenForm(model, plain_report(f"the graph computes in {precision}, and the form is for fp32"))
    compiled = mask_aware_from_onnx(model, mode, targets)
    if compiled.report["operator"] is not None:
        try:
            library_path()
        except (BuildError, OSError) as error:  # no compiler, or no folder to keep the build in
            problem = f"the library of the operator, on which the form is verified, cannot be built: {error}"
            if mode == "on":
                raise ExportError(f"{problem}; leave --mask-aware out for a plain file") from error
            return ChosenForm(model, {**plain_report(problem), "problem": problem})
    return ChosenForm(compiled.model, {**compiled.report, "problem": None, "verification": None})


def has_masks(model: onnx.ModelProto) -> bool:
    """Return whether a graph has a BOOL initialiser; masks are stored as these."""
    return any(tensor.data_type == onnx.TensorProto.BOOL for tensor in model.graph.initializer)


def prepare_library(model: onnx.ModelProto, mode: str) -> None:
    """Build the library of the operator, if a graph may need it: the child process that exports a foreign file has little memory and time.

    An error of the build is left to `choose_form`, which reports it.

    Args:
        model: The graph.
        mode: One of `MASK_AWARE_MODES`.
    """
    if mode != "off" and has_masks(model):
        with contextlib.suppress(BuildError, OSError):
            library_path()


def plain_report(reason: str) -> dict[str, Any]:
    """Return the entry `mask_aware` of a report on a plain file."""
    return {"operator": None, "reason": reason, "problem": None, "verification": None}


def form_problems(files: Mapping[str, bytes]) -> list[str]:
    """Return a line about each version among planned files that is plain although its mask-aware form was wanted.

    Args:
        files: Contents by path relative to the repository.
    """
    problems = []
    for path, content in files.items():
        model, _, rest = path.partition("/")
        version, _, file = rest.partition("/")
        problem = (json.loads(content).get("mask_aware") or {}).get("problem") if file == REPORT_FILE else None
        if problem is not None:
            problems.append(f"{model}@{version} is a plain file and not mask-aware: {problem}")
    return problems


def verify_form(
    form: ChosenForm, content: bytes, plain: bytes, images: np.ndarray[Any, Any] | None, *, max_batch_size: int
) -> dict[str, Any]:
    """Compare a file in another form with the plain one; return the report's entry with the measured differences.

    Args:
        form: The chosen form.
        content: The bytes of its file.
        plain: The bytes of the plain file.
        images: Real images, or None for random ones.
        max_batch_size: Largest batch to compare.

    Raises:
        VerificationError: The two compute different logits or classes, or the operator does not run.
    """
    if content == plain:
        return form.report
    verified = verify_mask_aware(content, plain, images, max_batch_size=max_batch_size, has_operator=form.is_mask_aware)
    return {**form.report, "verification": verified.to_values()}


def fused_form(
    plain: bytes, targets: Sequence[str], images: np.ndarray[Any, Any] | None, *, precision: str, max_batch_size: int
) -> tuple[bytes, dict[str, Any]]:
    """Give a fused graph an operator for each of its mask-aware members; return its bytes and the report's entry `mask_aware`.

    The members were found to gain when they were exported, so that is not estimated again. Where the form is not possible, the graph stays
    plain and the report states why.

    Args:
        plain: The bytes of the fused graph.
        targets: The logits of the members whose own files are mask-aware.
        images: Real images to compare on, or None for random ones.
        precision: The lowest precision of all members.
        max_batch_size: Largest batch to compare.

    Raises:
        VerificationError: The two forms compute different outputs, or the operator does not run.
    """
    if not targets:
        return plain, plain_report("no member is mask-aware")
    try:
        model = model_from_bytes(plain, "the fused graph")
        form = choose_form(model, "on" if precision == "fp32" else "auto", precision=precision, targets=targets)
    except ExportError as error:
        return plain, {**plain_report(str(error)), "problem": str(error)}
    content = bytes(form.model.SerializeToString(deterministic=True))
    return content, verify_form(form, content, plain, images, max_batch_size=max_batch_size)

"""Somebody else's ONNX classifier on its way into a repository, as a checkpoint goes: rewritten, converted, verified, reported on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from defensemble_images import RESIZES, Preprocessing
from defensemble_repository.onnx_metadata import CLASS_NAMES, PREPROCESSING
from defensemble_repository.reader import checked_batch_size

from ..entries.members import ExportedMember
from ..errors import ExportError
from ..foreign.convert import foreign_interface
from ..graphs.traversal import metadata_of
from ..labels import checked_class_names, default_labels
from ..verification.images import RANDOM_ONLY, ImagePool, RealImages
from ..verification.tolerances import computed_precision
from .foreign_child import DEFAULT_TIMEOUT_S, ForeignExport, onnx_from_foreign_limited, write_foreign_limited
from .write import Form, check_place

_RANDOM = 16


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX file to be exported as the member ``name``: see ``onnx_from_foreign``.

    ``class_names``: one for each class; None: the indices as text. ``timeout_s``: of the import, and again for each 64 images that the
    export is compared on. ``resize``: how images were brought to size in its training, ``crop`` or ``squash``; None: not known.
    """

    path: Path
    name: str
    output: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] | None = None
    custom_domains: tuple[str, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S
    resize: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, Path)):
            raise ExportError(f"path must name an ONNX file, got {self.path!r}")
        object.__setattr__(self, "path", Path(self.path))
        names: object = self.class_names
        if names is not None and not (isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)):
            raise ExportError(f"class_names must be a sequence of texts, one for each class, got {names!r:.80}")
        if self.class_names is not None:
            object.__setattr__(self, "class_names", checked_class_names(self.class_names, "class_names"))
        if not 0 < self.timeout_s < math.inf:
            raise ExportError(f"timeout_s must be a positive number of seconds, got {self.timeout_s!r}")
        if self.resize not in (None, *RESIZES):
            raise ExportError(f"resize must be one of {', '.join(RESIZES)}, or None where it is not known, got {self.resize!r}")

    @property
    def _options(self) -> dict[str, Any]:
        """What is asked for of the file."""
        return {"output": self.output, "mean": self.mean, "std": self.std, "input_shape": self.input_shape}

    @property
    def member_name(self) -> str:
        """The member's name."""
        return self.name

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are brought to size; None where it is not known."""
        return None if self.resize is None else Preprocessing(self.resize)

    def check(self, form: Form, images: np.ndarray[Any, Any] | None) -> None:
        """Find out before any slow work whether it can be exported.

        Raises:
            ExportError: it cannot.
        """
        own = computed_precision(self.graph) if form.precision != "fp32" else "fp32"
        if own != "fp32":
            raise ExportError(
                f"{self.path} computes in {own} already, and only float32 networks are converted to {form.precision}: leave --precision "
                f"away, and it is exported in {own} as it is, or convert the float32 network that it was made from"
            )
        if images is None and form.precision != "fp32":
            raise ExportError(
                f"{self.path} answers a little otherwise in {form.precision}, and how much only real images tell: "
                "pass some (--images FILE.npy)"
            )
        if form.precision == "int8" and form.calibration_images is None:
            raise ExportError(f"{self.path} in int8 is calibrated on training images: pass some (--calibration-images FILE.npy)")
        if images is not None:
            RealImages(images, "").check_fit(foreign_interface(self.graph)[0])

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The file in our contract, with its class names."""
        given = {**self._options, "custom_domains": self.custom_domains}
        graph = onnx_from_foreign_limited(self.path, timeout_s=self.timeout_s, **given)
        _, num_classes = foreign_interface(graph)
        names = default_labels(num_classes) if self.class_names is None else self.class_names
        if len(names) != num_classes:
            raise ExportError(f"{self.path} tells {num_classes} classes apart, and {len(names)} class names are given: one for each")
        resized = {} if self.preprocessing is None else {PREPROCESSING: self.preprocessing.to_json()}
        onnx.helper.set_model_props(graph, {CLASS_NAMES: json.dumps(names), **resized})
        return graph

    def outline(self) -> ExportedMember:
        """The member that it will be, without its graph: what it takes, and which classes it knows."""
        names = tuple(json.loads(metadata_of(self.graph)[CLASS_NAMES]))
        return ExportedMember(self.name, b"", foreign_interface(self.graph)[0], len(names), names, None, preprocessing=self.preprocessing)

    def write_onnx(
        self,
        path: str | os.PathLike[str],
        *,
        max_batch_size: int,
        form: Form | None = None,
        images: np.ndarray[Any, Any] | None = None,
        data_dir: Path | None = None,
    ) -> Path:
        """Write the member's file to ``path``, and its report beside it, once its answers were compared with those of the file as given.

        Without real ``images`` (N,C,H,W) random ones alone are compared, and the report says so: no data are known that such a network was
        trained on, and ``data_dir`` means nothing to it.

        Raises:
            ExportError, VerificationError, OSError: see ``onnx_from_checkpoint``.
        """
        form = Form() if form is None else form
        checked_batch_size(max_batch_size, "max_batch_size")
        check_place(Path(path))
        self.check(form, images)
        shape, _ = foreign_interface(self.graph)
        if images is None:
            real = RealImages(np.random.default_rng(0).random((_RANDOM, *shape), np.float32), RANDOM_ONLY)
        else:
            real = RealImages(images, "images of the user's")
        if form.calibration_images is not None:
            ImagePool.of(form.calibration_images, shape)  # are they such images?
        origin = {"kind": "onnx", "name": self.path.name, "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(), **self._options}
        export = ForeignExport(self.graph, self._options, origin, form, real, form.calibration_images, max_batch_size)
        write_foreign_limited(self.path, Path(path), export, timeout_s=self.timeout_s)
        return Path(path)

"""Export an ONNX classifier of any origin as a member: rewrite, convert and verify it, and write its report."""

from __future__ import annotations

import hashlib
import json
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
from ..graphs.precision import computed_precision
from ..graphs.traversal import metadata_of
from ..labels import checked_class_names, default_labels
from ..verification.images import RANDOM_ONLY, USER_IMAGES, ImagePool, RealImages
from .foreign_child import DEFAULT_TIMEOUT_S, ForeignExport, export_foreign_limited, onnx_from_foreign_limited
from .mask_aware import prepare_library
from .write import ExportOptions, check_output_path

_RANDOM_IMAGES = 16
_LONGEST_TIMEOUT_S = 1e6


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX file to export as a member. It is read and run in a child process with limits on time and memory.

    Args:
        path: The ONNX file.
        name: The name of the member.
        output: The tensor that becomes `logits`. None: the only output.
        mean: Mean of the normalisation to put before the network, 1 or C numbers.
        std: Standard deviation of that normalisation, 1 or C numbers.
        input_shape: (C, H, W), if the file leaves it open.
        class_names: One name per class. None: the class indices as text.
        custom_domains: Domains of operators outside the ONNX standard to accept.
        timeout_s: Limit of the import, in seconds; the export gets the same again for every 64 images that it compares.
        resize: How training images were resized, "crop" or "squash". None: unknown.

    Raises:
        ExportError: An argument is not valid.

    Example:
        >>> source = OnnxSource(Path("resnet50.onnx"), "resnet50", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        >>> export_networks([source], Path("model_repository"))
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
            raise ExportError(f"path must be the path of an ONNX file, got {self.path!r}")
        object.__setattr__(self, "path", Path(self.path))
        names: object = self.class_names
        if names is not None and not (isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)):
            raise ExportError(f"class_names must be a sequence of strings, one per class, got {names!r:.80}")
        if self.class_names is not None:
            object.__setattr__(self, "class_names", checked_class_names(self.class_names, "class_names"))
        if not 0 < self.timeout_s <= _LONGEST_TIMEOUT_S:
            raise ExportError(f"timeout_s must be a positive number of seconds, at most {_LONGEST_TIMEOUT_S:g}, got {self.timeout_s!r}")
        if self.resize not in (None, *RESIZES):
            raise ExportError(f"resize must be one of {', '.join(RESIZES)}, or None if unknown, got {self.resize!r}")

    @property
    def _options(self) -> dict[str, Any]:
        """The options of the import, as in the report."""
        return {"output": self.output, "mean": self.mean, "std": self.std, "input_shape": self.input_shape}

    @property
    def member_name(self) -> str:
        """The name of the member."""
        return self.name

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are resized; None if unknown."""
        return None if self.resize is None else Preprocessing(self.resize)

    def check(self, options: ExportOptions, images: np.ndarray[Any, Any] | None) -> None:
        """Check that the file can be exported with these options and images, before any slow work.

        Raises:
            ExportError: The file cannot be exported to the precision, or the images are missing or do not fit.
        """
        computed = computed_precision(self.graph) if options.precision != "fp32" else "fp32"
        if computed != "fp32":
            raise ExportError(
                f"{self.path} already computes in {computed}, and only float32 networks can be converted to {options.precision}: "
                f"omit --precision to export it in {computed} as it is, or convert the original float32 network"
            )
        if options.mask_aware == "on" and (own := computed_precision(self.graph)) != "fp32":
            raise ExportError(f"{self.path} computes in {own}, and the mask-aware form is for fp32: leave --mask-aware out")
        if images is None and options.precision != "fp32":
            raise ExportError(
                f"{self.path} in {options.precision} must be compared with the original on real images: pass some (--images FILE.npy)"
            )
        if options.precision == "int8" and options.calibration_images is None:
            raise ExportError(f"{self.path} in int8 must be calibrated on training images: pass some (--calibration-images FILE.npy)")
        if images is not None:
            RealImages(images, "").check_fit(foreign_interface(self.graph)[0])

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The rewritten graph of `onnx_from_foreign`, with the class names in its metadata."""
        arguments = {**self._options, "custom_domains": self.custom_domains}
        graph = onnx_from_foreign_limited(self.path, timeout_s=self.timeout_s, **arguments)
        _, num_classes = foreign_interface(graph)
        names = default_labels(num_classes) if self.class_names is None else self.class_names
        if len(names) != num_classes:
            raise ExportError(f"{self.path} has {num_classes} classes, got {len(names)} class names: pass one per class (--labels FILE)")
        preprocessing = {} if self.preprocessing is None else {PREPROCESSING: self.preprocessing.to_json()}
        onnx.helper.set_model_props(graph, {CLASS_NAMES: json.dumps(names), **preprocessing})
        return graph

    def describe_member(self) -> ExportedMember:
        """Return the member to export, without its graph: input shape, class names and preprocessing."""
        names = tuple(json.loads(metadata_of(self.graph)[CLASS_NAMES]))
        return ExportedMember(self.name, b"", foreign_interface(self.graph)[0], len(names), names, None, preprocessing=self.preprocessing)

    def write_onnx(
        self,
        path: str | os.PathLike[str],
        *,
        max_batch_size: int,
        options: ExportOptions | None = None,
        images: np.ndarray[Any, Any] | None = None,
        data_dir: Path | None = None,
    ) -> Path:
        """Compare the export with the original file, and write it with its report.

        Args:
            path: The ONNX file to write. Its report is written to `<path>.json`.
            max_batch_size: Largest batch to verify, 1 to 4096.
            options: Precision, calibration and form.
            images: Real images, float32 (N,C,H,W) in [0, 1]. None: only random images are compared, and the report states so, because the
                training data of the network are unknown.
            data_dir: Ignored.

        Raises:
            ExportError: See `onnx_from_checkpoint`.
            VerificationError: The outputs differ by more than the tolerance of the precision.
            OSError: The file cannot be written.
        """
        options = ExportOptions() if options is None else options
        checked_batch_size(max_batch_size, "max_batch_size")
        check_output_path(Path(path))
        self.check(options, images)
        shape, _ = foreign_interface(self.graph)
        if images is None:
            real = RealImages(np.random.default_rng(0).random((_RANDOM_IMAGES, *shape), np.float32), RANDOM_ONLY)
        else:
            real = RealImages(images, USER_IMAGES)
        if options.calibration_images is not None:
            ImagePool.from_images(options.calibration_images, shape)  # checks the images
        prepare_library(self.graph, options.mask_aware)
        origin = {"kind": "onnx", "name": self.path.name, "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(), **self._options}
        export = ForeignExport(self.graph, self._options, origin, options, real, options.calibration_images, max_batch_size)
        export_foreign_limited(self.path, Path(path), export, timeout_s=self.timeout_s)
        return Path(path)

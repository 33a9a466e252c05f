"""An exported graph in int8: explicit symmetric Q/DQ nodes, calibrated on real images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ._errors import ExportError
from .averaging import IR_VERSION
from .graph import checked, named_copy, shape_of
from .real_images import check_values

Images = NDArray[np.float32]

_QUANTISED = ("Conv", "Gemm")
_PRODUCTS = frozenset((*_QUANTISED, "ConvTranspose", "MatMul"))
# What may lie between a convolution and its mask.
_TRANSPARENT = frozenset(("BatchNormalization", "Identity"))
_LEVELS = 127  # int8, symmetric: -127 to 127
_BINS = 4096
_CANDIDATES = 120
_LARGEST_BATCH = 32
_MEMORY = 2**28  # bytes, about, that the values of one batch may take


def int8_from_onnx(model: onnx.ModelProto, images: Images, *, float_nodes: Collection[str] | None = None) -> onnx.ModelProto:
    """Quantise the convolutions and matrix products of a float32 graph to int8; ``model`` is not changed.

    Weights are int8 initialisers, symmetric per output channel; inputs of what is quantised, and outputs of convolutions, go through
    symmetric QuantizeLinear and DequantizeLinear, whose ranges are those of least squared error on ``images``. Biases, the graph's input
    and outputs stay float32, masks BOOL initialisers under their names; metadata are kept, and the batch stays free. The same images give
    the same bytes.

    Args:
        model: a float32 graph with one input (N, C, H, W).
        images: real ones to calibrate on, float32 (N, C, H, W) in [0, 1], as many as ``Calibration`` says.
        float_nodes: names of Conv and Gemm nodes that stay in float32; None: those of the masked region (``masked_region``).

    Raises:
        ExportError: ``images`` are not such images, or all equal; ``float_nodes`` names no such node; nothing is left to quantise; or the
            graph answers what is not a number, or has other inputs.
    """
    if len(model.graph.input) != 1:
        names = ", ".join(tensor.name for tensor in model.graph.input) or "none"
        raise ExportError(f"int8 is calibrated on graphs of one input, the images; this one has {len(model.graph.input)} ({names})")
    _check_images(images, model.graph.input)
    copy = named_copy(model)
    kept = set(masked_region(copy) if float_nodes is None else float_nodes)
    multiplying = [node for node in copy.graph.node if node.op_type in _QUANTISED]
    if unknown := kept - {node.name for node in multiplying}:
        raise ExportError(f"float_nodes names {', '.join(sorted(unknown)[:3])}: the graph has no Conv or Gemm of that name")
    # A weight that another node computes stays what it is.
    constants = {tensor.name for tensor in copy.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    chosen = [node for node in multiplying if node.name not in kept and node.input[1] in constants]
    if not chosen:
        raise ExportError(
            "nothing of the graph is left to quantise: it has no Conv or Gemm with float32 weights that may leave it; "
            "export it as fp16 or fp32"
        )
    tensors = sorted({node.input[0] for node in chosen} | {node.output[0] for node in chosen if node.op_type == "Conv"})
    ranges = _ranges(copy, tensors, images)
    quantiser = QDQQuantizer(
        copy,
        True,  # weights per channel
        False,
        QuantType.QInt8,
        QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, {name: (np.float32(-value), np.float32(value)) for name, value in ranges.items()}),
        [node.name for node in chosen],
        [],
        list(_QUANTISED),
        {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,  # TensorRT's parser refuses DequantizeLinear of an INT32 bias
            "OpTypesToExcludeOutputQuantization": ["Gemm"],
            "QDQKeepRemovableActivations": True,
        },
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    return _finished(quantiser.model.model, model)


def masked_region(model: onnx.ModelProto) -> list[str]:
    """Names of the Conv and Gemm nodes whose output a constant mask is put on, and of the convolutions that read such outputs.

    On the zoo's networks (6,000 training images held apart, 512 to calibrate on, two seeds) the worst one's agreement with float32 is 0.968
    with everything quantised, 0.980 to 0.985 where what is masked stays in float32, and 0.987 where what reads it does too: the tensor that
    leaves the masked region takes more harm than any behind it.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    masks = [node for node in model.graph.node if node.op_type == "Where" and node.input[0] in constants]
    found = set()
    masked = {node.input[1] for node in masks}
    for node in reversed(model.graph.node):
        if masked.intersection(node.output):
            if node.op_type in _TRANSPARENT:
                masked.add(node.input[0])
            elif node.op_type in _QUANTISED:
                found.add(node.name)
    leaving = {node.output[0] for node in masks}
    for node in model.graph.node:
        if leaving.intersection(node.input):
            if node.op_type == "Conv":
                found.add(node.name)
            elif node.op_type not in _PRODUCTS:
                leaving.update(node.output)
    return [node.name for node in model.graph.node if node.name in found]


def _finished(quantised: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    quantised.ir_version = IR_VERSION
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    del quantised.opset_import[:]
    quantised.opset_import.extend(model.opset_import)
    del quantised.graph.value_info[:]
    onnx.helper.set_model_props(quantised, {entry.key: entry.value for entry in model.metadata_props})
    return checked(quantised, "int8")


def _check_images(images: Images, inputs: Sequence[onnx.ValueInfoProto]) -> None:
    expected = shape_of(inputs[0])[1:]
    shown = "(N, " + ", ".join("any" if extent is None else str(extent) for extent in expected) + ")"
    fits = images.ndim == len(expected) + 1 and all(want in (None, got) for want, got in zip(expected, images.shape[1:], strict=True))
    if not fits or not len(images):
        raise ExportError(
            f"the images for the calibration have the shape {images.shape}, expected {shown} with N of at least 2: "
            "pass training images of the network's size"
        )
    check_values(images, "calibration")
    if (images == images[0]).all():
        raise ExportError(
            f"the images for the calibration are all the same ({len(images)}): the ranges of the network's values cannot be learnt from "
            "them; pass different real ones"
        )


def _ranges(model: onnx.ModelProto, tensors: Sequence[str], images: Images) -> dict[str, float]:
    """For each tensor the largest absolute value that int8 is to hold."""
    session = _session_of(model, tensors)
    largest = dict.fromkeys(tensors, 0.0)
    for values in _values(session, model, tensors, images):
        for name, value in values.items():
            largest[name] = max(largest[name], float(np.abs(value).max()))
            if not np.isfinite(value).all():
                raise ExportError(f"the graph's tensor '{name}' holds what is not a finite number for an image of the calibration")
    counts = {name: np.zeros(_BINS, np.int64) for name in tensors}
    for values in _values(session, model, tensors, images):
        for name, value in values.items():
            if largest[name] > 0:
                # Zero, which most values are after ReLU and a mask, is exact in any range.
                counts[name] += np.histogram(np.abs(value[value != 0]), _BINS, (0.0, largest[name]))[0]
    return {name: _range_of_least_error(counts[name], largest[name]) for name in tensors}


def _range_of_least_error(counts: NDArray[np.int64], largest: float) -> float:
    """The range of least squared error for absolute values of this histogram over [0, ``largest``], which is often an outlier."""
    values = (np.arange(len(counts)) + 0.5) * (largest / len(counts))
    limits = largest * (np.arange(1, _CANDIDATES + 1) / _CANDIDATES)
    steps = limits[:, None] / _LEVELS
    held = np.minimum(np.rint(values / np.where(steps > 0, steps, 1)), _LEVELS) * steps
    errors = ((held - values) ** 2) @ counts
    return float(limits[errors.argmin()])


def _session_of(model: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inputs = {tensor.name for tensor in probe.graph.input}
    del probe.graph.output[:]
    for name in tensors:
        if name not in inputs:
            probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _values(
    session: onnxruntime.InferenceSession, model: onnx.ModelProto, tensors: Sequence[str], images: Images
) -> Iterator[Mapping[str, NDArray[np.float32]]]:
    """The tensors' values, some images at a time; where the batch is fixed, the last are filled up by repetition."""
    (taken,) = model.graph.input
    fixed = shape_of(taken)[0]
    outputs = [output.name for output in session.get_outputs()]
    if fixed is None:
        # ResNet-50 at 224 x 224 gives some 90 MB an image.
        each = sum(value.nbytes for value in session.run(outputs, {taken.name: images[:1]}))
        size = min(_LARGEST_BATCH, max(1, _MEMORY // max(1, each)))
    else:
        size = fixed
    for start in range(0, len(images), size):
        batch = images[start : start + size] if fixed is None else np.resize(images[start:], (fixed, *images.shape[1:]))
        found = dict(zip(outputs, session.run(outputs, {taken.name: batch}), strict=True))
        yield {name: batch if name == taken.name else found[name] for name in tensors}

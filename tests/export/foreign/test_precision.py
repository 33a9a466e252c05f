"""The precision of a foreign file is derived from its graph and recorded everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers import float16

from defensemble.cli import cli
from defensemble_export import ExportError, ExportOptions, OnnxSource
from defensemble_export.editing.member_info import read_member_info
from defensemble_export.graphs.precision import computed_precision
from defensemble_export.verification.tolerances import TOLERANCES
from defensemble_repository.ensemble import Member
from defensemble_repository.reader import parameter, read_config
from defensemble_repository.view import RepositoryView
from tests.support import foreign_models as foreign
from tests.support.facts import raises


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Random images for ONNX Runtime's quantiser."""

    def __init__(self) -> None:
        self.left = iter([{"x": np.random.default_rng(seed).random((1, *foreign.SHAPE), np.float32)} for seed in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next image, by the name of the input."""
        return next(self.left, None)


def statically(folder: Path, form: QuantFormat, **options: Any) -> Path:
    source, target = foreign.write(folder, foreign.classifier(), "float.onnx"), folder / "quantised.onnx"
    quantize_static(str(source), str(target), Images(), quant_format=form, weight_type=QuantType.QInt8, **options)
    return target


def dynamically(folder: Path) -> Path:
    source, target = foreign.write(folder, foreign.classifier(), "float.onnx"), folder / "dynamic.onnx"
    quantize_dynamic(str(source), str(target))
    return target


def halved(folder: Path) -> Path:
    return foreign.write(folder, float16.convert_float_to_float16(foreign.classifier(), keep_io_types=True), "half.onnx")


def mixed(folder: Path) -> Path:
    """Return a float16 classifier of opset 18 with float32 batch normalisation. ONNX Runtime rounds it otherwise at opset 20."""
    model = float16.convert_float_to_float16(foreign.classifier(), keep_io_types=True, op_block_list=["BatchNormalization"])
    return foreign.write(folder, model, "mixed.onnx")


def with_weight(values: foreign.Array, *nodes: onnx.NodeProto) -> Callable[[Path], Path]:
    """Return a classifier whose logits are the scores times a matrix `w`, which `nodes` compute from the constant `held`."""
    tail = [*nodes, helper.make_node("MatMul", ["scores", "w"], ["logits"])]
    more = [numpy_helper.from_array(values, "held"), numpy_helper.from_array(np.array(0.5, np.float32), "scale")]
    model = foreign.classifier(opset=19, tail=tail, more=more, outputs=[("logits", TensorProto.FLOAT, ("N", 5))])
    return lambda folder: foreign.write(folder, model)


def packed_in_four_bits(folder: Path) -> Path:
    """Return a classifier whose matrix, of 16 inputs, is a flat UINT8 constant that an operator of ONNX Runtime unpacks."""
    shape: dict[str, Any] = {"K": 16, "N": 5, "block_size": 16, "quant_type": 1}
    product = helper.make_node("MatMulBnb4", ["flat16", "packed", "scales"], ["logits"], domain="com.microsoft", **shape)
    values: dict[str, foreign.Array] = {
        "packed": np.arange(40, dtype=np.uint8),
        "scales": np.ones(5, np.float32),
        "wide": np.ones((5, 16), np.float32),
    }
    tail = [helper.make_node("MatMul", ["scores", "wide"], ["flat16"]), product]
    more = [numpy_helper.from_array(value, name) for name, value in values.items()]
    outputs = [("logits", TensorProto.FLOAT, ("N", 5))]
    return foreign.write(folder, foreign.classifier(tail=tail, more=more, outputs=outputs, domains=["com.microsoft"]))


def in_a_branch(folder: Path) -> Path:
    half = [
        helper.make_node("Cast", ["scores"], ["halved"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["halved"], ["back"], to=TensorProto.FLOAT),
    ]
    branch: Any = helper.make_graph(half, "branch", [], [helper.make_tensor_value_info("back", TensorProto.FLOAT, None)])
    choice = helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch)
    more = [numpy_helper.from_array(np.array(True), "yes")]
    return foreign.write(folder, foreign.classifier(tail=[choice], more=more, outputs=[("logits", TensorProto.FLOAT, ("N", 5))]))


MATRIX = np.arange(25).reshape(5, 5)
TO_FLOAT = helper.make_node("Cast", ["held"], ["w"], to=TensorProto.FLOAT)
DEQUANTISED = helper.make_node("DequantizeLinear", ["held", "scale"], ["w"])
WHERE = helper.make_node("Where", ["held", "scale", "scale"], ["w"])
FILES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "float": ("fp32", lambda folder: foreign.write(folder, foreign.classifier())),
    "integer matrix": ("fp32", with_weight(MATRIX.astype(np.int64), TO_FLOAT)),
    "double matrix": ("fp32", with_weight(MATRIX.astype(np.float64), TO_FLOAT)),
    "mask": ("fp32", with_weight(MATRIX > 7, WHERE)),
    "half": ("fp16", halved),
    "half and float": ("fp16", mixed),
    "half in a branch": ("fp16", in_a_branch),
    "half weight": ("fp16", with_weight(MATRIX.astype(np.float16), TO_FLOAT)),
    "bfloat16 weight": ("fp16", with_weight(MATRIX.astype(ml_dtypes.bfloat16), TO_FLOAT)),
    "Q/DQ": ("int8", lambda folder: statically(folder, QuantFormat.QDQ)),
    "Q/DQ of the convolution only": ("int8", lambda folder: statically(folder, QuantFormat.QDQ, op_types_to_quantize=["Conv"])),
    "QOperator": ("int8", lambda folder: statically(folder, QuantFormat.QOperator)),
    "dynamic": ("int8", dynamically),
    "dequantised weight": ("int8", with_weight(MATRIX.astype(np.int8), DEQUANTISED)),
    "integer weight": ("int8", with_weight(MATRIX.astype(np.uint8), TO_FLOAT)),
    "flat integer weight": ("int8", packed_in_four_bits),
    "float8 weight": ("int8", with_weight(MATRIX.astype(ml_dtypes.float8_e4m3fn), TO_FLOAT)),
}


@pytest.mark.parametrize("name", FILES)
def test_the_precision_that_a_graph_computes_in(tmp_path: Path, name: str) -> None:
    expected, make = FILES[name]
    assert computed_precision(onnx.load(make(tmp_path))) == expected


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_configs_reports_listings_and_fused_graphs_contain_the_precision(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name, (precision, make) in (("quantised", FILES["Q/DQ"]), ("halved", FILES["half and float"])):
        folder = tmp_path / name
        folder.mkdir()
        options = ["--replace"] if name == "halved" else []
        done = run("import-onnx", make(folder), "--name", name, "--repository", repository, *options)
        assert done.exit_code == 0, done.output
        assert parameter(read_config(repository / name), "precision.1") == precision
        report = json.loads((repository / name / "1/model.onnx.json").read_bytes())
        assert report["precision"] == precision
        assert report["tolerance"] == asdict(TOLERANCES["fp32" if precision == "int8" else "fp16"])
        assert read_member_info(RepositoryView(repository), Member(name), 0.5).precision == precision
    assert run("fuse", "one", "--repository", repository).exit_code == 0
    assert parameter(read_config(repository / "one"), "precision.1") == "int8"


def test_older_exports_marked_fp32_get_their_real_precision(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    assert run("import-onnx", FILES["Q/DQ"][1](tmp_path), "--name", "a", "--repository", repository).exit_code == 0
    config, file = repository / "a/config.pbtxt", repository / "a/1/model.onnx"
    model = onnx.load(file)
    del model.metadata_props[-1]
    assert [entry.key for entry in model.metadata_props] == ["defensemble.class_names"]
    onnx.save(model, file)
    config.write_text(config.read_text().replace("int8", "fp32"))
    assert read_member_info(RepositoryView(repository), Member("a"), 1.0).precision == "int8"


@pytest.mark.parametrize(("name", "precision"), [("half", "fp16"), ("half", "int8"), ("Q/DQ", "int8")])
def test_a_low_precision_file_is_not_converted_and_the_suggested_fix_works(tmp_path: Path, name: str, precision: str) -> None:
    precision, make = FILES[name]
    network = OnnxSource(make(tmp_path), "a")
    images = np.random.default_rng(0).random((4, *foreign.SHAPE), np.float32)
    with raises(ExportError, f"{precision} | --precision"):
        network.write_onnx(tmp_path / "a.onnx", max_batch_size=2, options=ExportOptions(precision, images), images=images)
    network.write_onnx(tmp_path / "a.onnx", max_batch_size=2, images=images)


def test_a_dynamically_quantised_file_is_rejected_with_the_reason(tmp_path: Path) -> None:
    with raises(ExportError, "DynamicQuantizeLinear | quantize_static"):
        _ = OnnxSource(dynamically(tmp_path), "a").graph

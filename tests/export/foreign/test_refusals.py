"""Foreign ONNX files: what is rejected, and with which facts."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportError
from defensemble_export.foreign import reader
from defensemble_export.foreign.convert import foreign_reference, onnx_from_foreign
from tests.support import foreign_models as foreign
from tests.support.facts import raises


def assert_rejected(path: Path, text: str, **options: Any) -> None:
    with raises(ExportError, text) as caught:
        onnx_from_foreign(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"this is a text\nof two lines", "text file | ONNX | 'this is a text | textproto"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x18\0\0\0ORTM\0", ".ort"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS | `git lfs pull`"),
        (b"\x89HDF\r\n\x1a\n", "HDF5 | Keras | tf2onnx"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x80\x05\x95", "pickle"),
        (b"\x02\0\0\0\0\0\0\0{}", "safetensors | defensemble export | torch.onnx.export"),
        (b"\x00" * 100, "truncated | corrupt"),
        (foreign.classifier().SerializeToString()[:-30], "truncated | corrupt"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "no nodes"),
        (onnx.ModelProto(producer_name="x").SerializeToString(), "no IR version"),
    ],
)
def test_files_that_are_not_onnx_are_rejected(tmp_path: Path, content: bytes, text: str) -> None:
    assert_rejected(foreign.write(tmp_path, content), text)


def test_paths_that_are_not_onnx_files_are_rejected(tmp_path: Path) -> None:
    assert_rejected(tmp_path / "none.onnx", "not exist")
    assert_rejected(tmp_path, "folder")
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("data.pkl", b"")
    assert_rejected(tmp_path / "net.pt", "PyTorch | torch.onnx.export | import-onnx")
    (tmp_path / "net.pt").rename(tmp_path / "net.onnx")
    assert_rejected(tmp_path / "net.onnx", "zip archive | torch.save | torch.onnx.export")


def test_a_file_larger_than_the_protobuf_limit_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as stream:
        stream.truncate(2**31)  # sparse: uses no disk space
    assert_rejected(path, "2147483648 bytes | 2147483647")


def of_opset(version: int, ir_version: int = 8) -> onnx.ModelProto:
    model = foreign.classifier(opset=17)
    model.opset_import[0].version = version
    model.ir_version = ir_version
    return model


def without_opset() -> onnx.ModelProto:
    model = foreign.classifier(domains=["com.microsoft"])
    del model.opset_import[0]
    return model


def bytes_that_are_no_text() -> bytes:
    return foreign.classifier().SerializeToString().replace(b"pooled", b"\xff\xfeoled")


def sparse() -> onnx.ModelProto:
    model = foreign.classifier()
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "at"), [4]))
    return model


def unknown_operator() -> onnx.ModelProto:
    return foreign.classifier(tail=[helper.make_node("Wobble", ["scores"], ["logits"])])


NEWEST = onnx.defs.onnx_opset_version()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: of_opset(6), f"opset 6 | 7 to {NEWEST} | opset_version=20"),
        (lambda: of_opset(NEWEST + 1), f"opset {NEWEST + 1} | 7 to {NEWEST}"),
        (lambda: of_opset(0), "opset 0"),
        (without_opset, "one opset | none"),
        (lambda: of_opset(17, ir_version=99), "IR version 99 | onnx"),
        (bytes_that_are_no_text, "corrupt | UTF-8"),
        (sparse, "sparse initialisers"),
        (unknown_operator, "Wobble"),
    ],
)
def test_other_kinds_of_onnx_are_rejected(tmp_path: Path, make: Callable[[], onnx.ModelProto | bytes], text: str) -> None:
    assert_rejected(foreign.write(tmp_path, make()), text)


LOGITS = [("logits", TensorProto.FLOAT, ("N", foreign.CLASSES))]


@pytest.mark.parametrize("nested", [False, True])
def test_loops_with_many_trips_are_rejected(tmp_path: Path, nested: bool) -> None:
    counts = [numpy_helper.from_array(np.array(trips, np.int64), f"n{trips}") for trips in (200, 2**62)]
    inner = [foreign.loop("n200", "logits_in", "logits_out")] if nested else []
    tail = [foreign.loop("n200" if nested else f"n{2**62}", "scores", "logits", inner)]
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, more=counts, outputs=LOGITS))
    assert_rejected(path, f"Loop | {40_000 if nested else 2**62} | 10000")


@pytest.mark.parametrize("trips", ["", "batch"])
def test_loops_without_constant_trips_are_rejected(tmp_path: Path, trips: str) -> None:
    tail = [
        helper.make_node("Shape", ["x"], ["sizes"], start=0, end=1),
        helper.make_node("Squeeze", ["sizes"], ["batch"]),
        foreign.loop(trips, "scores", "logits"),
    ]
    assert_rejected(foreign.write(tmp_path, foreign.classifier(tail=tail, outputs=LOGITS)), "10000")


def test_a_loop_with_hidden_trips_is_rejected(tmp_path: Path) -> None:
    """An input of the outer body has the name of a constant of three trips; its value is 2^62."""
    inner = foreign.loop("n3", "scores", "inner")
    inputs = [("i", TensorProto.INT64), ("c", TensorProto.BOOL), ("n3", TensorProto.INT64)]
    outputs = [("g", TensorProto.BOOL), ("n", TensorProto.INT64)]
    body: Any = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["g"]), helper.make_node("Identity", ["n3"], ["n"]), inner],
        "body",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in inputs],
        [
            *(helper.make_tensor_value_info(name, kind, []) for name, kind in outputs),
            helper.make_tensor_value_info("inner", TensorProto.FLOAT, None),
        ],
    )
    tail = [helper.make_node("Loop", ["n3", "", "endless"], ["last", "all"], body=body), helper.make_node("ReduceMax", ["all"], ["logits"])]
    more = [numpy_helper.from_array(np.array(trips, np.int64), name) for name, trips in (("n3", 3), ("endless", 2**62))]
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, more=more, outputs=LOGITS))
    assert_rejected(path, "'inner' | trips")


def test_a_loop_with_few_trips_is_accepted(tmp_path: Path) -> None:
    three = [numpy_helper.from_array(np.array(3, np.int64), "n3")]
    path = foreign.write(tmp_path, foreign.classifier(tail=[foreign.loop("n3", "scores", "logits")], more=three, outputs=LOGITS))
    onnx_from_foreign(path)
    images = np.random.default_rng(0).random((2, *foreign.SHAPE), np.float32)
    assert np.allclose(foreign_reference(path)(images), 8 * foreign.answer(images), atol=1e-4)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (
            {"location": "/etc/hostname"},
            "'fc.w' | '/etc/hostname' | own folder",
        ),
        ({"location": "../weights.bin"}, "'../weights.bin' | own folder"),
        ({"location": "inner/../../weights.bin"}, "own folder"),
        ({"location": ""}, "own folder"),
        ({"location": "a\0b"}, "own folder"),
        ({"location": "link.bin"}, "outside/weights.bin | own folder"),
        ({"location": "linked/weights.bin"}, "outside/weights.bin | own folder"),
        ({"location": "none.bin"}, "none.bin | missing"),
        ({"location": "inner"}, "inner | not a file"),
        ({"length": "40"}, "40 bytes | [5, 4] | 80"),
        ({"length": "-1"}, "-1 bytes"),
        ({"length": "many"}, "offset, length or type | invalid literal"),
        ({"offset": "17"}, "17 to 97 | 96 | truncated"),
        ({"offset": "-8"}, "-8 to 72 | 96"),
    ],
)
def test_external_data_elsewhere_or_of_another_length_are_rejected(tmp_path: Path, entries: dict[str, str], text: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "theirs"
    for made in (outside, folder, folder / "inner"):
        made.mkdir()
    path = foreign.write_external(folder, **entries)
    for place in (outside, tmp_path):
        (place / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder / "link.bin").symlink_to(outside / "weights.bin")
    (folder / "linked").symlink_to(outside)
    assert_rejected(path, text)


def test_external_data_in_functions_and_attributes_are_rejected(tmp_path: Path) -> None:
    secret = helper.make_tensor("secret", TensorProto.FLOAT, [1], [0.0])
    secret.ClearField("float_data")
    secret.data_location = TensorProto.EXTERNAL
    secret.external_data.add(key="location", value="/etc/hostname")
    hidden = helper.make_node("Constant", [], ["hidden"], value=secret)
    body = [hidden, helper.make_node("Add", ["a", "hidden"], ["b"])]
    in_function = foreign.classifier(tail=[helper.make_node("Plus", ["scores"], ["more"], domain="mine")], domains=["mine"])
    in_function.functions.append(helper.make_function("mine", "Plus", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    branch: Any = helper.make_graph([hidden], "branch", [], [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1])])
    choice = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch)
    in_branch = foreign.classifier(tail=[choice], more=[numpy_helper.from_array(np.array(True), "yes")])
    few = onnx.SparseTensorProto(values=secret, indices=numpy_helper.from_array(np.zeros(1, np.int64)), dims=[1])
    in_sparse = foreign.classifier(tail=[helper.make_node("Constant", [], ["hidden"], sparse_value=few)])
    for model in (foreign.classifier(tail=[hidden]), in_function, in_branch, in_sparse):
        assert_rejected(foreign.write(tmp_path, model), "'secret' | '/etc/hostname'")


def test_links_and_folders_inside_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = foreign.write_external(tmp_path, location="inner/link.bin")
    (tmp_path / "inner/link.bin").symlink_to("../weights.bin")
    assert onnx_from_foreign(path).graph.output[0].name == "logits"


def test_external_data_that_make_the_file_too_large_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = foreign.write_external(tmp_path)
    monkeypatch.setattr(reader, "MAX_FILE_BYTES", path.stat().st_size + 10)
    assert_rejected(path, "external data | bytes")


def test_four_bit_weights_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "bits.bin").write_bytes(bytes(10))
    packed = onnx.TensorProto(name="packed", data_type=TensorProto.INT4, dims=[4, 5], data_location=TensorProto.EXTERNAL)
    packed.external_data.add(key="location", value="bits.bin")
    scale = numpy_helper.from_array(np.array(1, np.float32), "scale")
    tail = [helper.make_node("DequantizeLinear", ["packed", "scale"], ["w"]), helper.make_node("MatMul", ["kept", "w"], ["logits"])]
    outputs = [("logits", TensorProto.FLOAT, ("N", 5))]
    path = foreign.write(tmp_path, foreign.classifier(opset=21, tail=tail, more=[packed, scale], outputs=outputs))
    assert_rejected(path, "opset 21 | 20 | 8 bits | DataType (22) | 'DequantizeLinear'")


def test_an_unknown_custom_domain_is_rejected(tmp_path: Path) -> None:
    tail = [helper.make_node("Wobble", ["scores"], ["logits"], domain="theirs.own")]
    outputs = [("logits", TensorProto.FLOAT, ("N", 5))]
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, outputs=outputs, domains=["theirs.own", "ai.onnx.ml"]))
    assert_rejected(path, "theirs.own: Wobble | --custom-operators theirs.own")
    assert_rejected(path, "ONNX Runtime | theirs.own", custom_domains=["theirs.own"])


def with_two_inputs() -> onnx.ModelProto:
    model = foreign.classifier(tail=[helper.make_node("Add", ["scores", "more"], ["logits"])])
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 5]))
    return model


def with_a_sequence() -> onnx.ModelProto:
    model = foreign.classifier(tail=[helper.make_node("SequenceAt", ["many", "zero"], ["one"])])
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "zero"))
    model.graph.node[-1].input[0] = "x"
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["N", *foreign.SHAPE]))
    model.graph.node[0].input[0] = "one"
    nodes = [model.graph.node[-1], *list(model.graph.node)[:-1]]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def of_constants() -> onnx.ModelProto:
    model = foreign.classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, *foreign.SHAPE), np.float32), "x"))
    return model


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (with_two_inputs, "one input | 2 | 'x', 'more'"),
        (of_constants, "one input | 0 | none"),
        (with_a_sequence, "'x' | sequence_type"),
        (lambda: foreign.classifier(elem_type=TensorProto.UINT8), "'x' | uint8 | float32 | std=1/255"),
        (lambda: foreign.classifier(elem_type=TensorProto.FLOAT16), "'x' | float16 | float32"),
        (lambda: foreign.classifier(elem_type=TensorProto.DOUBLE), "'x' | float64 (double) | float32"),
        (lambda: foreign.classifier(elem_type=TensorProto.STRING), "'x' | string | float32"),
        (lambda: foreign.classifier(elem_type=99), "'x' | 99 | float32"),
        (lambda: foreign.classifier(shape=("N", 12)), "(N, 12) | 4 dimensions"),
        (lambda: foreign.classifier(shape=("N", 6, 8, 3)), "(N, 6, 8, 3) | channels last | --inputs-as-nchw x"),
        (lambda: foreign.classifier(shape=("N", "h", "w", 3)), "(N, h, w, 3) | channels last"),
        (lambda: foreign.classifier(shape=("N", None, 6, 8)), "(N, ?, 6, 8) | C, H or W"),
        (lambda: foreign.classifier(shape=("N", 3, 0, 8)), "at least 1 | d[2].Clear()"),
        (lambda: foreign.classifier(shape=(0, 3, 6, 8)), "at least 1 | d[0].Clear()"),
        (lambda: foreign.classifier(shape=("N", 3, 30_000, 30_000)), "67108864"),
        (lambda: foreign.classifier(shape=(10_000_000, 3, 6, 8)), "fixed batch | 268435456"),
    ],
)
def test_inputs_that_are_not_images_are_rejected(tmp_path: Path, make: Callable[[], onnx.ModelProto], text: str) -> None:
    assert_rejected(foreign.write(tmp_path, make()), text)


def ending(operator: str, kind: int, sides: foreign.Shape, inputs: tuple[str, ...] = ("scores",), **attributes: Any) -> onnx.ModelProto:
    more = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.array([[0]], np.int64), "first"),
        numpy_helper.from_array(np.zeros((1, 5), np.float32), "constant"),
        numpy_helper.from_array(np.array([-1], np.int64), "line"),
    ]
    tail = [helper.make_node(operator, inputs, ["logits"], **attributes)]
    return foreign.classifier(tail=tail, more=more, outputs=[("logits", kind, sides)])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ending("Identity", 1, ("N", 4, 6, 8), ("relu",)), "(1, 4, 6, 8) | 1 image | map"),
        (lambda: ending("Reshape", 1, ("M",), ("scores", "line")), "(5,) | 1 image | (N, K)"),
        (
            lambda: ending("Slice", 1, ("N", 1), ("scores", "zero", "one", "one")),
            "(N, 1) | (N, K) | at least 2 | two logits",
        ),
        (lambda: ending("Cast", TensorProto.DOUBLE, ("N", 5), to=TensorProto.DOUBLE), "'logits' | float64 (double) | float32"),
        (lambda: ending("Cast", TensorProto.FLOAT16, ("N", 5), to=TensorProto.FLOAT16), "'logits' | float16 | float32"),
        (lambda: ending("ArgMax", TensorProto.INT64, ("N", 1), axis=1), "'logits' | int64 | float32"),
        (lambda: ending("Identity", 1, (1, 5), ("constant",)), "'logits' | 'x' | not depend"),
    ],
)
def test_outputs_that_are_not_logits_are_rejected(tmp_path: Path, make: Callable[[], onnx.ModelProto], text: str) -> None:
    model = make()
    for name, value in (("zero", 0), ("one", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    assert_rejected(foreign.write(tmp_path, model), text)


@pytest.mark.parametrize("output", [None, "scores"])
@pytest.mark.parametrize("sides", [("N", 1), ("N", None), ("N", "K", 1, 1)])
def test_a_sigmoid_of_one_value_is_rejected_with_a_fix_that_works(tmp_path: Path, sides: foreign.Shape, output: str | None) -> None:
    more = [numpy_helper.from_array(value, name) for name, value in (("one", np.ones((5, 1), np.float32)), ("axes", np.array([2, 3])))]
    tail = [helper.make_node("MatMul", ["scores", "one"], ["z"]), helper.make_node("Sigmoid", ["z"], ["sure"])]
    if len(sides) > 2:
        tail = [tail[0], helper.make_node("Unsqueeze", ["z", "axes"], ["map"]), helper.make_node("Sigmoid", ["map"], ["sure"])]
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, more=more, outputs=[("sure", TensorProto.FLOAT, sides)]))
    name = "sure" if output is None else "z"
    assert_rejected(path, f"'{name}' | (N, 1) | (N, K) | at least 2 | torch.cat", output=output and "z")
    # The suggested fix works.
    zero = helper.make_node("Sub", ["z", "z"], ["zero"])
    both = helper.make_node("Concat", ["zero", "z"], ["logits"], axis=1)
    two = foreign.classifier(tail=[tail[0], zero, both], more=more, outputs=[("logits", TensorProto.FLOAT, ("N", 2))])
    onnx_from_foreign(foreign.write(tmp_path, two))


@pytest.mark.parametrize("form", ["initializer", "Constant", "float16"])
def test_nan_weights_are_named(tmp_path: Path, form: str) -> None:
    values = np.array([1, 2, np.nan, 4, 5], np.float16 if form == "float16" else np.float32)
    tail = [helper.make_node("Cast", ["bad"], ["bad32"], to=TensorProto.FLOAT), helper.make_node("Add", ["scores", "bad32"], ["logits"])]
    more = [numpy_helper.from_array(values, "bad")]
    if form == "Constant":
        tail, more = [helper.make_node("Constant", [], ["bad"], value=more[0]), *tail], []
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, more=more, outputs=LOGITS))
    assert_rejected(path, "'bad' | NaN")


@pytest.mark.parametrize(("scale", "text"), [(np.inf, "'factors' | infinite"), (3e38, "finite | overflows")])
def test_outputs_that_are_not_finite_are_rejected(tmp_path: Path, scale: float, text: str) -> None:
    more = [numpy_helper.from_array(np.full(5, scale, np.float32), "factors")]
    tail = [helper.make_node("Mul", ["scores", "factors"], ["large"]), helper.make_node("Mul", ["large", "factors"], ["logits"])]
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, more=more, outputs=LOGITS))
    assert_rejected(path, text)


def test_infinite_weights_are_accepted_if_the_outputs_are_finite(tmp_path: Path) -> None:
    more = [numpy_helper.from_array(np.array([1.0, np.inf], np.float32), "limits")]
    smallest = [helper.make_node("ReduceMin", ["limits"], ["least"]), helper.make_node("Mul", ["scores", "least"], ["logits"])]
    onnx_from_foreign(foreign.write(tmp_path, foreign.classifier(tail=smallest, more=more, outputs=LOGITS)))


def test_a_sequence_output_is_rejected(tmp_path: Path) -> None:
    model = ending("SequenceConstruct", 1, ("N", 5))
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, ["N", 5]))
    assert_rejected(foreign.write(tmp_path, model), "'logits' | sequence_type | float32")


def test_an_inner_output_of_another_type_is_rejected(tmp_path: Path) -> None:
    path = foreign.write(tmp_path, foreign.classifier(tail=[helper.make_node("Shape", ["x"], ["sides"])]))
    assert_rejected(path, "'sides' | int64 | float32 | 'scores'", output="sides")


@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_a_batch_that_is_fixed_inside_is_rejected(tmp_path: Path, batch: int | str) -> None:
    """An Expand to the shape of one image is ambiguous."""
    size = batch if isinstance(batch, int) else 2
    more = [numpy_helper.from_array(np.zeros((size, 5), np.float32), "offsets")]
    tail = [helper.make_node("Concat", ["scores", "offsets"], ["logits"], axis=1)]
    model = foreign.classifier(shape=(batch, *foreign.SHAPE), tail=tail, more=more, outputs=[("logits", TensorProto.FLOAT, (batch, 10))])
    text = f"fixed batch | {batch}" if isinstance(batch, int) else "ONNX Runtime | 1 image"
    assert_rejected(foreign.write(tmp_path, model), text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mean": [0.1, 0.2]}, "mean | 1 or 3 | 2"),
        ({"std": []}, "std | 1 or 3 | 0"),
        ({"mean": [float("nan")]}, "mean | finite"),
        ({"mean": [1e39]}, "mean | finite"),
        ({"std": [0.0]}, "std | above 0"),
        ({"std": [1e-60]}, "std | above 0"),
        ({"std": [-1.0, 1.0, 1.0]}, "std | above 0"),
    ],
)
def test_an_invalid_normalisation_is_rejected(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    path = foreign.write(tmp_path, foreign.classifier())
    for ask in (onnx_from_foreign, foreign_reference):
        with raises(ExportError, text):
            ask(path, **options)

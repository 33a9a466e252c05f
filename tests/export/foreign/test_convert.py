"""Anyone's ONNX: what is taken answers as the file itself, numpy and torch do."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from defensemble_export import ExportError, VerificationError
from defensemble_export.foreign.convert import foreign_interface, foreign_reference, onnx_from_foreign
from tests.support import foreign_models as theirs
from tests.support.facts import raises

IMAGES = np.random.default_rng(7).random((5, *theirs.SHAPE), np.float32)
Array = theirs.Array


def asked(model: onnx.ModelProto, images: Array = IMAGES) -> Array:
    """What a member answers, after a look at the contract of its graph."""
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.producer_name, model.doc_string, len(model.metadata_props)) == (10, "defensemble", "", 0)
    assert model.opset_import[0] == helper.make_opsetid("", 20)
    assert not model.functions
    (taken,), (given_back,) = model.graph.input, model.graph.output
    assert taken == helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *images.shape[1:]])
    shape, classes = foreign_interface(model)
    assert shape == images.shape[1:]
    assert given_back == helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images})
    assert isinstance(logits, np.ndarray)
    return logits


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
@pytest.mark.parametrize("batch", ["N", None, 1, 2, 7])
def test_every_opset_and_batch_answers_as_numpy_and_the_file_do(tmp_path: Path, opset: int, batch: str | int | None) -> None:
    outputs = [("scores", TensorProto.FLOAT, (batch, theirs.CLASSES))]
    path = theirs.write(tmp_path, theirs.classifier(opset=opset, shape=(batch, *theirs.SHAPE), outputs=outputs))
    model = onnx_from_foreign(path)
    assert np.allclose(asked(model), theirs.answer(IMAGES), atol=1e-5)
    assert np.allclose(foreign_reference(path)(IMAGES), theirs.answer(IMAGES), atol=1e-5)
    assert b"a stranger" not in model.SerializeToString()
    assert onnx_from_foreign(path).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("seed", range(4))
def test_nodes_in_any_order_are_sorted_as_the_runtime_sorts_them(tmp_path: Path, seed: int) -> None:
    branch = helper.make_graph(
        [helper.make_node("Add", ["scores", "scores"], ["twice"]), helper.make_node("Mul", ["twice", "scores"], ["product"])],
        "branch",
        [],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
    ]
    model = theirs.classifier(tail=nodes, outputs=[("logits", TensorProto.FLOAT, ("N", theirs.CLASSES))])
    shuffled = [model.graph.node[number] for number in np.random.default_rng(seed).permutation(len(model.graph.node))]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in shuffled]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    path = tmp_path / "unsorted.onnx"
    path.write_bytes(model.SerializeToString())
    scores = theirs.answer(IMAGES)
    assert np.allclose(asked(onnx_from_foreign(path)), 2 * scores**2, atol=1e-4)


def test_a_normalisation_is_put_before_it(tmp_path: Path) -> None:
    path = theirs.write(tmp_path, theirs.classifier())
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    for given_mean, given_std in ((mean, std), ([0.5], [0.25]), (mean, None), (None, [0.5])):
        model = onnx_from_foreign(path, mean=given_mean, std=given_std)
        shift = np.array(given_mean or [0.0], np.float32).reshape(-1, 1, 1)
        scale = np.array(given_std or [1.0], np.float32).reshape(-1, 1, 1)
        expected = theirs.answer((IMAGES.astype(np.float64) - shift) / scale)
        assert np.allclose(asked(model), expected, atol=1e-4)
        assert np.allclose(foreign_reference(path, mean=given_mean, std=given_std)(IMAGES), expected, atol=1e-4)
        held = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        assert np.array_equal(held["normalize.mean"], shift)
        assert np.array_equal(held["normalize.std"], scale)
        assert [node.op_type for node in model.graph.node[:2]] == ["Sub", "Div"]


def test_a_normalisation_behind_which_the_batch_is_fixed(tmp_path: Path) -> None:
    path = theirs.write(tmp_path, theirs.classifier(shape=(2, *theirs.SHAPE), outputs=[("scores", TensorProto.FLOAT, (2, 5))]))
    assert np.allclose(asked(onnx_from_foreign(path, mean=[0.5], std=[0.5])), theirs.answer(IMAGES * 2 - 1), atol=1e-4)


@pytest.mark.parametrize("taken", ["images", "logits", "normalize.mean"])
def test_names_that_are_ours_already_are_no_trouble(tmp_path: Path, taken: str) -> None:
    """Their input is called `logits`, a tensor inside `images`, and the like."""
    model = theirs.classifier(image="logits" if taken == "images" else "x")
    for node in model.graph.node:
        node.input[:] = [taken if name == "bn" else f"{taken}_inner" if name == "relu" else name for name in node.input]
        node.output[:] = [taken if name == "bn" else f"{taken}_inner" if name == "relu" else name for name in node.output]
    path = theirs.write(tmp_path, model)
    assert np.allclose(asked(onnx_from_foreign(path)), theirs.answer(IMAGES), atol=1e-5)
    assert np.allclose(asked(onnx_from_foreign(path, mean=[0.5], std=[0.5])), theirs.answer(IMAGES * 2 - 1), atol=1e-4)


def test_names_that_are_ours_at_their_place_stay(tmp_path: Path) -> None:
    tail = [helper.make_node("Identity", ["scores"], ["logits"])]
    model = theirs.classifier(image="images", tail=tail, outputs=[("logits", TensorProto.FLOAT, ("N", 5))])
    assert np.allclose(asked(onnx_from_foreign(theirs.write(tmp_path, model))), theirs.answer(IMAGES), atol=1e-5)


def test_one_of_several_outputs_is_taken_and_the_rest_of_the_graph_goes(tmp_path: Path) -> None:
    tail = [helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1), helper.make_node("Neg", ["relu"], ["negated"])]
    outputs: list[tuple[str, int, theirs.Shape]] = [
        ("probabilities", TensorProto.FLOAT, ("N", 5)),
        ("scores", TensorProto.FLOAT, ("N", 5)),
        ("negated", TensorProto.FLOAT, ("N", 4, 6, 8)),
    ]
    path = theirs.write(tmp_path, theirs.classifier(tail=tail, outputs=outputs))
    model = onnx_from_foreign(path, output="scores")
    assert np.allclose(asked(model), theirs.answer(IMAGES), atol=1e-5)
    assert not {"Softmax", "Neg"} & {node.op_type for node in model.graph.node}
    with raises(ExportError, "3 outputs | 'probabilities', 'scores', 'negated'"):
        onnx_from_foreign(path)
    with raises(ExportError, "'none' | 'probabilities', 'scores', 'negated'"):
        onnx_from_foreign(path, output="none")
    named = asked(onnx_from_foreign(path, output="probabilities"))
    assert np.allclose(named.sum(axis=1), 1), "a Softmax that is named is taken"
    inner = onnx_from_foreign(path, output="flat")
    assert foreign_interface(inner) == (theirs.SHAPE, 4)
    assert np.array_equal(asked(inner), foreign_reference(path, output="flat")(IMAGES))


@pytest.mark.parametrize("kind", ["Softmax", "Sigmoid"])
@pytest.mark.parametrize("behind", [None, "Identity", "Flatten"])
def test_probabilities_are_refused_and_the_logits_before_them_named(tmp_path: Path, kind: str, behind: str | None) -> None:
    tail = [helper.make_node(kind, ["scores"], ["sure"]), *([helper.make_node(behind, ["sure"], ["same"])] if behind else [])]
    name = "same" if behind else "sure"
    path = theirs.write(tmp_path, theirs.classifier(tail=tail, outputs=[(name, TensorProto.FLOAT, ("N", 5))]))
    with raises(ExportError, f"'{name}' | probabilities | --output scores"):
        onnx_from_foreign(path)
    assert np.allclose(asked(onnx_from_foreign(path, output="scores")), theirs.answer(IMAGES), atol=1e-5)
    assert np.allclose(foreign_reference(path, output="scores")(IMAGES), theirs.answer(IMAGES), atol=1e-5)


def test_sides_that_the_file_leaves_open_can_be_given(tmp_path: Path) -> None:
    path = theirs.write(tmp_path, theirs.classifier(shape=("N", 3, "height", "width")))
    with raises(ExportError, "(N, 3, height, width) | C, H or W"):
        onnx_from_foreign(path)
    assert np.allclose(asked(onnx_from_foreign(path, input_shape=theirs.SHAPE)), theirs.answer(IMAGES), atol=1e-5)
    with raises(ExportError, "(C, H, W) | (1, 6, 8)"):
        onnx_from_foreign(path, input_shape=(1, 6, 8))


def written_as(entry: onnx.ValueInfoProto, extents: theirs.Shape) -> None:
    """Write a shape as it is given: negative numbers, zeros and empty names too."""
    entry.type.tensor_type.ClearField("shape")
    for extent in extents:
        one = entry.type.tensor_type.shape.dim.add()
        if isinstance(extent, int):
            one.dim_value = extent
        elif extent is not None:
            one.dim_param = extent


FREE = [-1, -5, None, "", "N", "?", "-1"]


@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("opset", [9, 21])
def test_free_extents_however_they_are_written(tmp_path: Path, free: int | str | None, opset: int) -> None:
    """The batch at the input, the output and in notes on inner values, and sides of the image with `input_shape`."""
    for sides, shape in ((theirs.SHAPE, None), ((3, free, free), theirs.SHAPE), ((free, free, free), theirs.SHAPE)):
        model = theirs.classifier(opset=opset)
        written_as(model.graph.input[0], (free, *sides))
        written_as(model.graph.output[0], (free, free))
        for name, extents in (("conv", (free, 4, free, free)), ("flat", (free, free)), ("bn", (7, 4, 1, 1))):
            note = helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
            written_as(note, extents)
            model.graph.value_info.append(note)
        path = theirs.write(tmp_path, model)
        assert np.allclose(asked(onnx_from_foreign(path, input_shape=shape)), theirs.answer(IMAGES), atol=1e-5)
        assert np.allclose(foreign_reference(path, input_shape=shape)(IMAGES), theirs.answer(IMAGES), atol=1e-5)


def test_an_extent_of_zero_is_refused_and_the_way_out_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = theirs.classifier(opset=13)
    written_as(model.graph.input[0], (0, 3, 0, 8))
    path = theirs.write(tmp_path, model)
    with raises(ExportError, "(0, 3, 0, 8) | at least 1") as caught:
        onnx_from_foreign(path)
    program = str(caught.value).split('python -c "')[1].removesuffix('"')
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert np.allclose(asked(onnx_from_foreign(tmp_path / "free.onnx", input_shape=theirs.SHAPE)), theirs.answer(IMAGES), atol=1e-5)
    written_as(model.graph.input[0], ("N", *theirs.SHAPE))
    written_as(model.graph.output[0], (0, 0))
    assert np.allclose(asked(onnx_from_foreign(theirs.write(tmp_path, model))), theirs.answer(IMAGES), atol=1e-5)


@pytest.mark.parametrize("missing", ["shape", "type", "type of a custom operator"])
def test_shapes_that_the_file_does_not_state(tmp_path: Path, missing: str) -> None:
    tail = [helper.make_node("FusedMatMul", ["scores", "identity"], ["logits"], domain="com.microsoft")]
    more = [numpy_helper.from_array(np.eye(5, dtype=np.float32), "identity")]
    outputs: list[tuple[str, int, theirs.Shape]] = [("logits", TensorProto.FLOAT, ("N", 5))]
    model = (
        theirs.classifier(tail=tail, more=more, outputs=outputs, domains=["com.microsoft"]) if "custom" in missing else theirs.classifier()
    )
    if missing != "shape":
        model.graph.output[0].ClearField("type")
    else:
        model.graph.output[0].type.tensor_type.ClearField("shape")
        model.graph.input[0].type.tensor_type.ClearField("shape")
    path = theirs.write(tmp_path, model)
    if missing == "shape":
        with pytest.raises(ExportError, match="--input-shape C,H,W"):
            onnx_from_foreign(path)
    taken = onnx_from_foreign(path, input_shape=theirs.SHAPE, custom_domains=["com.microsoft"])
    assert np.allclose(asked(taken), theirs.answer(IMAGES), atol=1e-5)


@pytest.mark.parametrize("batch", [-1, 2])
@pytest.mark.parametrize(
    ("axes", "sides"), [([2, 3], (5, 1, 1)), ([2], (5, 1)), ([1], (1, 5)), ([1, 2], (1, 1, 5)), ([2, 3], (None, "h", -1))]
)
@pytest.mark.parametrize("is_softmax", [False, True])
def test_logits_with_axes_of_one_value_become_rows(
    tmp_path: Path, axes: list[int], sides: theirs.Shape, batch: int | str, is_softmax: bool
) -> None:
    """As SqueezeNet and DenseNet of the ONNX model zoo give (N, K, 1, 1), by a convolution and a pool at the end."""
    tail = [helper.make_node("Unsqueeze", ["scores", "axes"], ["map"])]
    if is_softmax:
        tail.append(helper.make_node("Softmax", ["map"], ["sure"], axis=1))
    more = [numpy_helper.from_array(np.array(axes, np.int64), "axes")]
    name = "sure" if is_softmax else "map"
    model = theirs.classifier(shape=(batch, *theirs.SHAPE), tail=tail, more=more, outputs=[(name, TensorProto.FLOAT, (batch, *sides))])
    path = theirs.write(tmp_path, model)
    output = "map" if is_softmax else None
    assert np.allclose(asked(onnx_from_foreign(path, output=output)), theirs.answer(IMAGES), atol=1e-5)
    assert np.allclose(foreign_reference(path, output=output)(IMAGES), theirs.answer(IMAGES), atol=1e-5)


@pytest.mark.parametrize("flatten", [[1, 4], [1, -1], [-1, 4], [0, -1]])
def test_a_reshape_to_a_batch_of_one_is_made_free(tmp_path: Path, flatten: list[int]) -> None:
    model = theirs.classifier(shape=(1, *theirs.SHAPE), flatten=flatten, outputs=[("scores", TensorProto.FLOAT, (1, 5))])
    assert np.allclose(asked(onnx_from_foreign(theirs.write(tmp_path, model))), theirs.answer(IMAGES), atol=1e-5)


def test_control_flow_and_custom_domains_inside_are_taken_where_the_runtime_has_them(tmp_path: Path) -> None:
    branches: dict[str, Any] = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, ["scores"], [f"images_{name}"])], name, [], [helper.make_tensor_value_info(f"images_{name}", 1, None)]
        )
        for name, kind in (("then", "Neg"), ("else", "Identity"))
    }
    tail = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "limit"], ["bright"]),
        helper.make_node("If", ["bright"], ["chosen"], **branches),
        helper.make_node("Gelu", ["chosen"], ["logits"], domain="com.microsoft"),
    ]
    more = [numpy_helper.from_array(np.array(2, np.float32), "limit")]
    outputs = [("logits", TensorProto.FLOAT, ("N", 5))]
    path = theirs.write(tmp_path, theirs.classifier(tail=tail, more=more, outputs=outputs, domains=["com.microsoft"], opset=17))
    with pytest.raises(ExportError, match=r"com\.microsoft: Gelu"):
        onnx_from_foreign(path)
    model = onnx_from_foreign(path, custom_domains=["com.microsoft"])
    expected = theirs.answer(IMAGES)
    gelu = nn.functional.gelu(torch.from_numpy(expected)).numpy()
    assert np.allclose(asked(model), gelu, atol=1e-5)
    assert [entry.domain for entry in model.opset_import] == ["", "com.microsoft"]


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    model = theirs.classifier(tail=[helper.make_node("Twice", ["scores"], ["twice"], domain="mine")], domains=["mine"])
    model.graph.output[0].name = "twice"
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    assert np.allclose(asked(onnx_from_foreign(theirs.write(tmp_path, model))), 2 * theirs.answer(IMAGES), atol=1e-5)


def test_data_in_another_file_of_the_folder_are_read_in(tmp_path: Path) -> None:
    path = theirs.write_external(tmp_path)
    model = onnx_from_foreign(path)
    assert foreign_reference(path)(IMAGES) == pytest.approx(theirs.answer(IMAGES), abs=1e-5)
    (tmp_path / "weights.bin").unlink()
    assert np.allclose(asked(model), theirs.answer(IMAGES), atol=1e-5)


def test_an_answer_that_depends_on_chance_or_on_the_other_images_is_refused(tmp_path: Path) -> None:
    random = helper.make_node("RandomNormalLike", ["scores"], ["noise"])
    noisy = [random, helper.make_node("Add", ["scores", "noise"], ["logits"])]
    mixed = [
        helper.make_node("ReduceMean", ["scores", "zero"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["scores", "mean"], ["logits"]),
    ]
    zero = [numpy_helper.from_array(np.array([0], np.int64), "zero")]
    for tail, text in ((noisy, "random"), (mixed, "2 images | batch")):
        model = theirs.classifier(tail=tail, more=zero, outputs=[("logits", TensorProto.FLOAT, ("N", 5))])
        with raises(VerificationError, text):
            onnx_from_foreign(theirs.write(tmp_path, model))
    pooled = theirs.classifier(tail=mixed[:1], more=zero, outputs=[("mean", TensorProto.FLOAT, (1, 5))])
    with raises(ExportError, "fixed batch | (1, 5) | 2 images"):
        onnx_from_foreign(theirs.write(tmp_path, pooled))


def test_what_the_converter_changes_is_found_out(tmp_path: Path) -> None:
    """Opset 10 interpolates otherwise than the converter says in opset 11; seen with onnx 1.23."""
    model = theirs.classifier(opset=10, more=[numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")])
    model.graph.node.insert(0, helper.make_node("Resize", ["x", "scales"], ["larger"], mode="linear"))
    model.graph.node[1].input[0] = "larger"
    with pytest.raises(VerificationError, match=r"1 image at once: .* not converted to opset 20 faithfully"):
        onnx_from_foreign(theirs.write(tmp_path, model))


@pytest.mark.parametrize(("opset", "operator"), [(21, "GroupNormalization"), (23, "RMSNormalization"), (24, "Swish")])
def test_operators_that_opset_20_does_not_know_are_named(tmp_path: Path, opset: int, operator: str) -> None:
    more = [numpy_helper.from_array(np.ones(size, np.float32), f"ones{size}") for size in (4, 8)]
    inputs = {"GroupNormalization": ["ones4", "ones4"], "RMSNormalization": ["ones8"], "Swish": []}[operator]
    model = theirs.classifier(opset=opset, more=more)
    model.graph.node[2].CopyFrom(helper.make_node(operator, ["bn", *inputs], ["relu"]))
    if operator == "GroupNormalization":
        model.graph.node[2].attribute.append(helper.make_attribute("num_groups", 2))
    with raises(ExportError, f"opset {opset} | 20 | opset_version=20 | {operator}"):
        onnx_from_foreign(theirs.write(tmp_path, model))


class TorchNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.silu(self.norm(self.conv(images)))
        answer: torch.Tensor = self.linear(maps.mean((2, 3)).view(images.shape[0], -1))
        return answer


def export_by_dynamo(net: nn.Module, path: Path) -> None:
    torch.onnx.export(
        net,
        (torch.rand(2, 3, 6, 8),),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=True,
        verbose=False,
    )


def export_by_dynamo_of_one(net: nn.Module, path: Path) -> None:
    torch.onnx.export(net, (torch.rand(1, 3, 6, 8),), path, dynamo=True, external_data=False, verbose=False)


def export_by_torchscript(net: nn.Module, path: Path) -> None:
    torch.onnx.export(net, (torch.rand(1, 3, 6, 8),), path, dynamo=False, opset_version=13)


@pytest.mark.parametrize("export", [export_by_dynamo, export_by_dynamo_of_one, export_by_torchscript])
def test_what_torch_exports_answers_as_torch_does(tmp_path: Path, export: Callable[[nn.Module, Path], None]) -> None:
    torch.manual_seed(0)
    net = TorchNet()
    net(torch.rand(8, 3, 6, 8))  # BatchNorm has seen something
    net.eval()
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, about itself
        export(net, path)
    got = asked(onnx_from_foreign(path, mean=[0.5], std=[0.25]))
    with torch.inference_mode():
        expected = net((torch.from_numpy(IMAGES) - 0.5) / 0.25).numpy()
    assert np.allclose(got, expected, atol=1e-5)
    assert np.allclose(foreign_reference(path, mean=[0.5], std=[0.25])(IMAGES), expected, atol=1e-5)


GOOD = theirs.classifier(opset=13).SerializeToString()


@settings(derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.sampled_from(["set", "drop", "add"]), st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=4,
    )
)
def test_a_file_of_changed_bytes_is_refused_or_good(tmp_path: Path, changes: list[tuple[int, str, bytes]]) -> None:
    content = bytearray(GOOD)
    for place, change, what in changes:
        kept = 0 if change == "add" else len(what)
        content[place : place + kept] = b"" if change == "drop" else what
    path = theirs.write(tmp_path, bytes(content))
    try:
        model = onnx_from_foreign(path)
    except ExportError:
        return
    shape, classes = foreign_interface(model)
    assert asked(model, np.zeros((2, *shape), np.float32)).shape == (2, classes)

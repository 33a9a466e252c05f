"""Foreign ONNX files: the rewritten graph matches the file, numpy and torch."""

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
from tests.support import foreign_models as foreign
from tests.support.facts import raises

IMAGES = np.random.default_rng(7).random((5, *foreign.SHAPE), np.float32)
Array = foreign.Array


def run_checked(model: onnx.ModelProto, images: Array = IMAGES) -> Array:
    """Check the interface of a member's graph and return its logits."""
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
def test_every_opset_and_batch_matches_numpy_and_the_file(tmp_path: Path, opset: int, batch: str | int | None) -> None:
    outputs = [("scores", TensorProto.FLOAT, (batch, foreign.CLASSES))]
    path = foreign.write(tmp_path, foreign.classifier(opset=opset, shape=(batch, *foreign.SHAPE), outputs=outputs))
    model = onnx_from_foreign(path)
    assert np.allclose(run_checked(model), foreign.answer(IMAGES), atol=1e-5)
    assert np.allclose(foreign_reference(path)(IMAGES), foreign.answer(IMAGES), atol=1e-5)
    assert b"a stranger" not in model.SerializeToString()
    assert onnx_from_foreign(path).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("seed", range(4))
def test_unsorted_nodes_are_sorted(tmp_path: Path, seed: int) -> None:
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
    model = foreign.classifier(tail=nodes, outputs=[("logits", TensorProto.FLOAT, ("N", foreign.CLASSES))])
    shuffled = [model.graph.node[number] for number in np.random.default_rng(seed).permutation(len(model.graph.node))]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in shuffled]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    path = tmp_path / "unsorted.onnx"
    path.write_bytes(model.SerializeToString())
    scores = foreign.answer(IMAGES)
    assert np.allclose(run_checked(onnx_from_foreign(path)), 2 * scores**2, atol=1e-4)


def test_a_normalisation_is_prepended(tmp_path: Path) -> None:
    path = foreign.write(tmp_path, foreign.classifier())
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    for given_mean, given_std in ((mean, std), ([0.5], [0.25]), (mean, None), (None, [0.5])):
        model = onnx_from_foreign(path, mean=given_mean, std=given_std)
        shift = np.array(given_mean or [0.0], np.float32).reshape(-1, 1, 1)
        scale = np.array(given_std or [1.0], np.float32).reshape(-1, 1, 1)
        expected = foreign.answer((IMAGES.astype(np.float64) - shift) / scale)
        assert np.allclose(run_checked(model), expected, atol=1e-4)
        assert np.allclose(foreign_reference(path, mean=given_mean, std=given_std)(IMAGES), expected, atol=1e-4)
        constants = {dim.name: numpy_helper.to_array(dim) for dim in model.graph.initializer}
        assert np.array_equal(constants["normalize.mean"], shift)
        assert np.array_equal(constants["normalize.std"], scale)
        assert [node.op_type for node in model.graph.node[:2]] == ["Sub", "Div"]


def test_a_normalisation_is_prepended_to_a_fixed_batch(tmp_path: Path) -> None:
    path = foreign.write(tmp_path, foreign.classifier(shape=(2, *foreign.SHAPE), outputs=[("scores", TensorProto.FLOAT, (2, 5))]))
    assert np.allclose(run_checked(onnx_from_foreign(path, mean=[0.5], std=[0.5])), foreign.answer(IMAGES * 2 - 1), atol=1e-4)


@pytest.mark.parametrize("taken", ["images", "logits", "normalize.mean"])
def test_graphs_may_use_our_names_elsewhere(tmp_path: Path, taken: str) -> None:
    """The input is named `logits`, an inner tensor `images`, and so on."""
    model = foreign.classifier(image="logits" if taken == "images" else "x")
    for node in model.graph.node:
        node.input[:] = [taken if name == "bn" else f"{taken}_inner" if name == "relu" else name for name in node.input]
        node.output[:] = [taken if name == "bn" else f"{taken}_inner" if name == "relu" else name for name in node.output]
    path = foreign.write(tmp_path, model)
    assert np.allclose(run_checked(onnx_from_foreign(path)), foreign.answer(IMAGES), atol=1e-5)
    assert np.allclose(run_checked(onnx_from_foreign(path, mean=[0.5], std=[0.5])), foreign.answer(IMAGES * 2 - 1), atol=1e-4)


def test_our_names_in_the_right_place_are_kept(tmp_path: Path) -> None:
    tail = [helper.make_node("Identity", ["scores"], ["logits"])]
    model = foreign.classifier(image="images", tail=tail, outputs=[("logits", TensorProto.FLOAT, ("N", 5))])
    assert np.allclose(run_checked(onnx_from_foreign(foreign.write(tmp_path, model))), foreign.answer(IMAGES), atol=1e-5)


def test_one_of_several_outputs_is_selected_and_unused_nodes_are_removed(tmp_path: Path) -> None:
    tail = [helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1), helper.make_node("Neg", ["relu"], ["negated"])]
    outputs: list[tuple[str, int, foreign.Shape]] = [
        ("probabilities", TensorProto.FLOAT, ("N", 5)),
        ("scores", TensorProto.FLOAT, ("N", 5)),
        ("negated", TensorProto.FLOAT, ("N", 4, 6, 8)),
    ]
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, outputs=outputs))
    model = onnx_from_foreign(path, output="scores")
    assert np.allclose(run_checked(model), foreign.answer(IMAGES), atol=1e-5)
    assert not {"Softmax", "Neg"} & {node.op_type for node in model.graph.node}
    with raises(ExportError, "3 outputs | 'probabilities', 'scores', 'negated'"):
        onnx_from_foreign(path)
    with raises(ExportError, "'none' | 'probabilities', 'scores', 'negated'"):
        onnx_from_foreign(path, output="none")
    named = run_checked(onnx_from_foreign(path, output="probabilities"))
    assert np.allclose(named.sum(axis=1), 1), "a Softmax that is named is taken"
    inner = onnx_from_foreign(path, output="flat")
    assert foreign_interface(inner) == (foreign.SHAPE, 4)
    assert np.array_equal(run_checked(inner), foreign_reference(path, output="flat")(IMAGES))


@pytest.mark.parametrize("kind", ["Softmax", "Sigmoid"])
@pytest.mark.parametrize("behind", [None, "Identity", "Flatten"])
def test_probabilities_are_rejected_and_the_logits_before_them_are_named(tmp_path: Path, kind: str, behind: str | None) -> None:
    tail = [helper.make_node(kind, ["scores"], ["sure"]), *([helper.make_node(behind, ["sure"], ["same"])] if behind else [])]
    name = "same" if behind else "sure"
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, outputs=[(name, TensorProto.FLOAT, ("N", 5))]))
    with raises(ExportError, f"'{name}' | probabilities | --output scores"):
        onnx_from_foreign(path)
    assert np.allclose(run_checked(onnx_from_foreign(path, output="scores")), foreign.answer(IMAGES), atol=1e-5)
    assert np.allclose(foreign_reference(path, output="scores")(IMAGES), foreign.answer(IMAGES), atol=1e-5)


def test_input_shape_sets_open_extents(tmp_path: Path) -> None:
    path = foreign.write(tmp_path, foreign.classifier(shape=("N", 3, "height", "width")))
    with raises(ExportError, "(N, 3, height, width) | C, H or W"):
        onnx_from_foreign(path)
    assert np.allclose(run_checked(onnx_from_foreign(path, input_shape=foreign.SHAPE)), foreign.answer(IMAGES), atol=1e-5)
    with raises(ExportError, "(C, H, W) | (1, 6, 8)"):
        onnx_from_foreign(path, input_shape=(1, 6, 8))


def written_as(entry: onnx.ValueInfoProto, extents: foreign.Shape) -> None:
    """Write a shape literally, including negative numbers, zeros and empty names."""
    entry.type.tensor_type.ClearField("shape")
    for extent in extents:
        dim = entry.type.tensor_type.shape.dim.add()
        if isinstance(extent, int):
            dim.dim_value = extent
        elif extent is not None:
            dim.dim_param = extent


FREE = [-1, -5, None, "", "N", "?", "-1"]


@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("opset", [9, 21])
def test_free_extents_are_recognised_in_every_notation(tmp_path: Path, free: int | str | None, opset: int) -> None:
    """Free are the batch of the input, the output and inner values, and image sides with `input_shape`."""
    for sides, shape in ((foreign.SHAPE, None), ((3, free, free), foreign.SHAPE), ((free, free, free), foreign.SHAPE)):
        model = foreign.classifier(opset=opset)
        written_as(model.graph.input[0], (free, *sides))
        written_as(model.graph.output[0], (free, free))
        for name, extents in (("conv", (free, 4, free, free)), ("flat", (free, free)), ("bn", (7, 4, 1, 1))):
            note = helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
            written_as(note, extents)
            model.graph.value_info.append(note)
        path = foreign.write(tmp_path, model)
        assert np.allclose(run_checked(onnx_from_foreign(path, input_shape=shape)), foreign.answer(IMAGES), atol=1e-5)
        assert np.allclose(foreign_reference(path, input_shape=shape)(IMAGES), foreign.answer(IMAGES), atol=1e-5)


def test_an_extent_of_zero_is_rejected_and_the_suggested_fix_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = foreign.classifier(opset=13)
    written_as(model.graph.input[0], (0, 3, 0, 8))
    path = foreign.write(tmp_path, model)
    with raises(ExportError, "(0, 3, 0, 8) | at least 1") as caught:
        onnx_from_foreign(path)
    program = str(caught.value).split('python -c "')[1].removesuffix('"')
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert np.allclose(run_checked(onnx_from_foreign(tmp_path / "free.onnx", input_shape=foreign.SHAPE)), foreign.answer(IMAGES), atol=1e-5)
    written_as(model.graph.input[0], ("N", *foreign.SHAPE))
    written_as(model.graph.output[0], (0, 0))
    assert np.allclose(run_checked(onnx_from_foreign(foreign.write(tmp_path, model))), foreign.answer(IMAGES), atol=1e-5)


@pytest.mark.parametrize("free", [-1, 0])
def test_extents_of_bodies_are_free_as_in_onnx_runtime(tmp_path: Path, free: int) -> None:
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, [free, free])
    body: Any = helper.make_graph([helper.make_node("Neg", ["scores"], ["result"])], "body", [], [result])
    tail = [helper.make_node("If", ["yes"], ["logits"], then_branch=body, else_branch=body)]
    more = [numpy_helper.from_array(np.array(True), "yes")]
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, more=more, outputs=[("logits", TensorProto.FLOAT, ("N", 5))]))
    assert np.allclose(run_checked(onnx_from_foreign(path)), -foreign.answer(IMAGES), atol=1e-5)


@pytest.mark.parametrize("missing", ["shape", "type", "type of a custom operator"])
def test_missing_shapes_are_inferred(tmp_path: Path, missing: str) -> None:
    tail = [helper.make_node("FusedMatMul", ["scores", "identity"], ["logits"], domain="com.microsoft")]
    more = [numpy_helper.from_array(np.eye(5, dtype=np.float32), "identity")]
    outputs: list[tuple[str, int, foreign.Shape]] = [("logits", TensorProto.FLOAT, ("N", 5))]
    model = (
        foreign.classifier(tail=tail, more=more, outputs=outputs, domains=["com.microsoft"])
        if "custom" in missing
        else foreign.classifier()
    )
    if missing != "shape":
        model.graph.output[0].ClearField("type")
    else:
        model.graph.output[0].type.tensor_type.ClearField("shape")
        model.graph.input[0].type.tensor_type.ClearField("shape")
    path = foreign.write(tmp_path, model)
    if missing == "shape":
        with pytest.raises(ExportError, match="--input-shape C,H,W"):
            onnx_from_foreign(path)
    taken = onnx_from_foreign(path, input_shape=foreign.SHAPE, custom_domains=["com.microsoft"])
    assert np.allclose(run_checked(taken), foreign.answer(IMAGES), atol=1e-5)


@pytest.mark.parametrize("batch", [-1, 2])
@pytest.mark.parametrize(
    ("axes", "sides"), [([2, 3], (5, 1, 1)), ([2], (5, 1)), ([1], (1, 5)), ([1, 2], (1, 1, 5)), ([2, 3], (None, "h", -1))]
)
@pytest.mark.parametrize("is_softmax", [False, True])
def test_logits_with_axes_of_one_value_become_rows(
    tmp_path: Path, axes: list[int], sides: foreign.Shape, batch: int | str, is_softmax: bool
) -> None:
    """SqueezeNet and DenseNet of the ONNX model zoo return (N, K, 1, 1), from a final convolution and pool."""
    tail = [helper.make_node("Unsqueeze", ["scores", "axes"], ["map"])]
    if is_softmax:
        tail.append(helper.make_node("Softmax", ["map"], ["sure"], axis=1))
    more = [numpy_helper.from_array(np.array(axes, np.int64), "axes")]
    name = "sure" if is_softmax else "map"
    model = foreign.classifier(shape=(batch, *foreign.SHAPE), tail=tail, more=more, outputs=[(name, TensorProto.FLOAT, (batch, *sides))])
    path = foreign.write(tmp_path, model)
    output = "map" if is_softmax else None
    assert np.allclose(run_checked(onnx_from_foreign(path, output=output)), foreign.answer(IMAGES), atol=1e-5)
    assert np.allclose(foreign_reference(path, output=output)(IMAGES), foreign.answer(IMAGES), atol=1e-5)


@pytest.mark.parametrize("flatten", [[1, 4], [1, -1], [-1, 4], [0, -1]])
def test_a_reshape_to_a_batch_of_one_is_freed(tmp_path: Path, flatten: list[int]) -> None:
    model = foreign.classifier(shape=(1, *foreign.SHAPE), flatten=flatten, outputs=[("scores", TensorProto.FLOAT, (1, 5))])
    assert np.allclose(run_checked(onnx_from_foreign(foreign.write(tmp_path, model))), foreign.answer(IMAGES), atol=1e-5)


def test_control_flow_and_custom_domains_are_accepted(tmp_path: Path) -> None:
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
    path = foreign.write(tmp_path, foreign.classifier(tail=tail, more=more, outputs=outputs, domains=["com.microsoft"], opset=17))
    with pytest.raises(ExportError, match=r"com\.microsoft: Gelu"):
        onnx_from_foreign(path)
    model = onnx_from_foreign(path, custom_domains=["com.microsoft"])
    expected = foreign.answer(IMAGES)
    gelu = nn.functional.gelu(torch.from_numpy(expected)).numpy()
    assert np.allclose(run_checked(model), gelu, atol=1e-5)
    assert [entry.domain for entry in model.opset_import] == ["", "com.microsoft"]


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    model = foreign.classifier(tail=[helper.make_node("Twice", ["scores"], ["twice"], domain="mine")], domains=["mine"])
    model.graph.output[0].name = "twice"
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    assert np.allclose(run_checked(onnx_from_foreign(foreign.write(tmp_path, model))), 2 * foreign.answer(IMAGES), atol=1e-5)


def test_external_data_in_the_folder_are_included(tmp_path: Path) -> None:
    path = foreign.write_external(tmp_path)
    model = onnx_from_foreign(path)
    assert foreign_reference(path)(IMAGES) == pytest.approx(foreign.answer(IMAGES), abs=1e-5)
    (tmp_path / "weights.bin").unlink()
    assert np.allclose(run_checked(model), foreign.answer(IMAGES), atol=1e-5)


def test_outputs_that_are_random_or_mix_images_are_rejected(tmp_path: Path) -> None:
    random = helper.make_node("RandomNormalLike", ["scores"], ["noise"])
    noisy = [random, helper.make_node("Add", ["scores", "noise"], ["logits"])]
    mixed = [
        helper.make_node("ReduceMean", ["scores", "zero"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["scores", "mean"], ["logits"]),
    ]
    zero = [numpy_helper.from_array(np.array([0], np.int64), "zero")]
    for tail, text in ((noisy, "random"), (mixed, "2 images | batch")):
        model = foreign.classifier(tail=tail, more=zero, outputs=[("logits", TensorProto.FLOAT, ("N", 5))])
        with raises(VerificationError, text):
            onnx_from_foreign(foreign.write(tmp_path, model))
    pooled = foreign.classifier(tail=mixed[:1], more=zero, outputs=[("mean", TensorProto.FLOAT, (1, 5))])
    with raises(ExportError, "fixed batch | (1, 5) | 2 images"):
        onnx_from_foreign(foreign.write(tmp_path, pooled))


def test_a_change_by_the_opset_converter_is_detected(tmp_path: Path) -> None:
    """The converter to opset 11 changes the interpolation of opset 10 (seen in onnx 1.23)."""
    model = foreign.classifier(opset=10, more=[numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")])
    model.graph.node.insert(0, helper.make_node("Resize", ["x", "scales"], ["larger"], mode="linear"))
    model.graph.node[1].input[0] = "larger"
    with pytest.raises(VerificationError, match=r"1 image in a batch: .* the conversion to opset 20 changed it"):
        onnx_from_foreign(foreign.write(tmp_path, model))


@pytest.mark.parametrize(("opset", "operator"), [(21, "GroupNormalization"), (23, "RMSNormalization"), (24, "Swish")])
def test_operators_unknown_to_opset_20_are_named(tmp_path: Path, opset: int, operator: str) -> None:
    more = [numpy_helper.from_array(np.ones(size, np.float32), f"ones{size}") for size in (4, 8)]
    inputs = {"GroupNormalization": ["ones4", "ones4"], "RMSNormalization": ["ones8"], "Swish": []}[operator]
    model = foreign.classifier(opset=opset, more=more)
    model.graph.node[2].CopyFrom(helper.make_node(operator, ["bn", *inputs], ["relu"]))
    if operator == "GroupNormalization":
        model.graph.node[2].attribute.append(helper.make_attribute("num_groups", 2))
    with raises(ExportError, f"opset {opset} | 20 | opset_version=20 | {operator}"):
        onnx_from_foreign(foreign.write(tmp_path, model))


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
def test_torch_exports_match_torch(tmp_path: Path, export: Callable[[nn.Module, Path], None]) -> None:
    torch.manual_seed(0)
    net = TorchNet()
    net(torch.rand(8, 3, 6, 8))  # updates the statistics of BatchNorm
    net.eval()
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warnings about itself
        export(net, path)
    got = run_checked(onnx_from_foreign(path, mean=[0.5], std=[0.25]))
    with torch.inference_mode():
        expected = net((torch.from_numpy(IMAGES) - 0.5) / 0.25).numpy()
    assert np.allclose(got, expected, atol=1e-5)
    assert np.allclose(foreign_reference(path, mean=[0.5], std=[0.25])(IMAGES), expected, atol=1e-5)


GOOD = foreign.classifier(opset=13).SerializeToString()


@settings(derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.sampled_from(["set", "drop", "add"]), st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=4,
    )
)
def test_a_file_with_changed_bytes_is_rejected_or_correct(tmp_path: Path, changes: list[tuple[int, str, bytes]]) -> None:
    content = bytearray(GOOD)
    for place, change, what in changes:
        kept = 0 if change == "add" else len(what)
        content[place : place + kept] = b"" if change == "drop" else what
    path = foreign.write(tmp_path, bytes(content))
    try:
        model = onnx_from_foreign(path)
    except ExportError:
        return
    shape, classes = foreign_interface(model)
    assert run_checked(model, np.zeros((2, *shape), np.float32)).shape == (2, classes)

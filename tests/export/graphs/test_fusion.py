"""Fused graphs: compared with numpy in float64 and with the pipeline, and what is stored and computed once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers import float16

from defensemble_export import EnsembleError, ExportError, VerificationError, average_onnx, fused_onnx, verify_fused
from defensemble_export.foreign.convert import onnx_from_foreign
from defensemble_export.graphs.fp16 import fp16_from_onnx
from defensemble_export.graphs.fusion import digests_of_members
from defensemble_export.graphs.int8 import int8_from_onnx
from defensemble_export.verification.fused import FUSED_TOLERANCE
from defensemble_repository.ensemble import Ensemble, Member
from tests.export.graphs.test_averaging import entropy
from tests.support import foreign_models as foreign, tiny
from tests.support.converted import network as resnet18
from tests.support.facts import raises

OUTPUTS = {"probabilities", "member_probabilities", "entropy", "mutual_information"}


def run(model: bytes, images: tiny.Array) -> dict[str, tiny.Array]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, {"images": images}), strict=True))


def ensemble_of(count: int, average: str = "probabilities") -> Ensemble:
    return Ensemble("e", tuple(Member(f"m{index}", 1, 1.0 + index) for index in range(count)), average)


def network(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, tiny.Array],
    *,
    opset: int = 20,
    shape: Sequence[str | int | None] = ("batch", *tiny.SHAPE),
) -> bytes:
    """Return a network from `images` to `logits` of three classes."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    content: bytes = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString()
    return content


def masked(seed: int, mask: tiny.Array, mean: float = 0.5) -> bytes:
    """Return a network with a normalisation, a mask, and a linear layer of `tiny.weights(seed)`."""
    return network(
        [
            helper.make_node("Sub", ["images", "mean"], ["centred"], name="centre"),
            helper.make_node("Where", ["layer.mask", "centred", "zero"], ["kept"], name="mask"),
            helper.make_node("Flatten", ["kept"], ["flat"], name="flatten"),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"], name="classify"),
        ],
        {"mean": np.array(mean, np.float32), "zero": np.array(0, np.float32), "layer.mask": mask, "weights": tiny.weights(seed)},
    )


@given(
    average=st.sampled_from(["probabilities", "logits"]),
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    batch=st.integers(1, 5),
    scale=st.sampled_from([0.0, 0.3, 1.0, 20.0]),
    seed=st.integers(0, 1000),
)
def test_equals_the_formulas(average: str, weights: list[float], batch: int, scale: float, seed: int) -> None:
    ensemble = Ensemble("e", tuple(Member(f"m{index}", 1, weight) for index, weight in enumerate(weights)), average)
    images = tiny.images(batch, seed)
    got = run(fused_onnx([tiny.linear_onnx(seed + m, scale=scale) for m in range(len(weights))], ensemble), images)
    share = np.array(weights) / np.sum(weights)
    logits = np.stack([scale * tiny.logits(seed + m, images) for m in range(len(weights))])
    members = tiny.softmax(logits)
    mixture = np.tensordot(share, members, 1)
    expected = mixture if average == "probabilities" else tiny.softmax(np.tensordot(share, logits, 1))
    information = entropy(mixture) - np.tensordot(share, entropy(members), 1)

    tolerance = 1e-6 * max(1.0, scale)  # the members' logits are float32
    assert set(got) == OUTPUTS
    assert all(value.dtype == np.float32 for value in got.values())
    assert {name: value.shape[1:] for name, value in got.items()} == {
        "probabilities": (3,),
        "member_probabilities": (len(weights), 3),
        "entropy": (1,),
        "mutual_information": (1,),
    }
    assert np.abs(got["probabilities"] - expected).max() <= tolerance
    assert np.abs(got["member_probabilities"] - members.transpose(1, 0, 2)).max() <= tolerance
    assert np.abs(got["entropy"][:, 0] - entropy(expected)).max() <= 20 * tolerance
    assert np.abs(got["mutual_information"][:, 0] - information).max() <= 20 * tolerance
    assert got["mutual_information"].min() >= 0


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_equals_the_averaging_model_bit_for_bit(average: str) -> None:
    images, ensemble = tiny.images(6), ensemble_of(3, average)
    members = [tiny.linear_onnx(seed) for seed in range(3)]
    sessions = [onnxruntime.InferenceSession(member) for member in members]
    logits = {f"logits_{m}": session.run(None, {"images": images})[0] for m, session in enumerate(sessions)}
    got = run(fused_onnx(members, ensemble), images)
    session = onnxruntime.InferenceSession(average_onnx(ensemble, 3))
    for output, expected in zip(session.get_outputs(), session.run(None, logits), strict=True):
        np.testing.assert_array_equal(got[output.name], expected)


@pytest.mark.parametrize(("average", "softmaxes"), [("probabilities", 1), ("logits", 2)])
def test_the_average_is_computed_once(average: str, softmaxes: int) -> None:
    model = onnx.load_model_from_string(fused_onnx([tiny.linear_onnx(seed) for seed in range(3)], ensemble_of(3, average)))
    count = Counter(node.op_type for node in model.graph.node)
    assert (count["Softmax"], count["LogSoftmax"], count["Concat"], count["Log"]) == (softmaxes, softmaxes, 1, 1)
    names = [tensor.name for tensor in model.graph.initializer]
    constants = {"weights", "member_axis", "last_axis", "least", "lowest", "stacked_shape"}
    assert len(names) == len(set(names)) == 3 + len(constants), "equal constants are held once"


def test_shared_computations_run_once_and_masks_are_kept() -> None:
    mask = np.random.default_rng(0).random(tiny.SHAPE) < 0.5
    images, ensemble = tiny.images(4), ensemble_of(3)
    members = [masked(1, mask), masked(2, ~mask), masked(3, mask)]
    fused = fused_onnx(members, ensemble)
    model = onnx.load_model_from_string(fused)
    count = Counter(node.op_type for node in model.graph.node)
    assert count["Sub"] == 1 + 1, "one of the normalisation, one of the mutual information"
    assert count["Where"] == count["MatMul"] == 3
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    masks = {name: value for name, value in initializers.items() if value.dtype == np.bool_}
    assert set(masks) == {"m0/layer.mask", "m1/layer.mask", "m2/layer.mask"}
    for name, right in zip(sorted(masks), (mask, ~mask, mask), strict=True):
        np.testing.assert_array_equal(masks[name], right)
    read = [node.input[0] for node in model.graph.node if node.op_type == "Where"]
    assert read == ["m0/layer.mask", "m1/layer.mask", "m2/layer.mask"], "a mask that equals another's is read all the same"
    assert {"m0/mean", "m0/zero"} <= set(initializers)
    assert not {"m1/mean", "m2/mean", "m1/zero", "m2/zero"} & set(initializers)
    logits = [((images - 0.5) * m).reshape(4, -1) @ tiny.weights(s).astype(np.float64) for s, m in ((1, mask), (2, ~mask), (3, mask))]
    np.testing.assert_allclose(run(fused, images)["member_probabilities"], tiny.softmax(np.stack(logits, 1)), atol=1e-6)


def test_another_normalisation_is_not_shared() -> None:
    mask = np.ones(tiny.SHAPE, bool)
    model = onnx.load_model_from_string(fused_onnx([masked(1, mask), masked(1, mask, mean=0.25)], ensemble_of(2)))
    assert Counter(node.op_type for node in model.graph.node)["Sub"] == 2 + 1


def test_nodes_with_different_attributes_are_not_shared() -> None:
    def scaled(axis: int) -> bytes:
        return network(
            [
                helper.make_node("Softmax", ["images"], ["soft"], axis=axis),
                helper.make_node("Flatten", ["soft"], ["flat"]),
                helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
            ],
            {"weights": tiny.weights(1)},
        )

    images = tiny.images(3)
    got = run(fused_onnx([scaled(2), scaled(3)], ensemble_of(2)), images)["member_probabilities"]
    for index, axis in enumerate((2, 3)):
        soft = np.moveaxis(tiny.softmax(np.moveaxis(images.astype(np.float64), axis, -1)), -1, axis)
        np.testing.assert_allclose(got[:, index], tiny.softmax(tiny.logits(1, soft)), atol=1e-6)


def test_random_nodes_and_branches_are_not_shared() -> None:
    def noisy() -> bytes:
        branch = [
            helper.make_graph(
                [helper.make_node("Add" if sign else "Sub", ["product", "noise"], [f"out{sign}"])],
                f"branch{sign}",
                [],
                [helper.make_tensor_value_info(f"out{sign}", TensorProto.FLOAT, None)],
            )
            for sign in (0, 1)
        ]
        return network(
            [
                helper.make_node("Flatten", ["images"], ["flat"]),
                helper.make_node("MatMul", ["flat", "weights"], ["product"]),
                helper.make_node("RandomNormalLike", ["product"], ["noise"]),
                helper.make_node("If", ["wanted"], ["logits"], then_branch=branch[1], else_branch=branch[0]),
            ],
            {"weights": tiny.weights(1), "wanted": np.array(True)},
        )

    model = onnx.load_model_from_string(fused_onnx([noisy(), noisy()], ensemble_of(2)))
    count = Counter(node.op_type for node in model.graph.node)
    assert (count["MatMul"], count["RandomNormalLike"], count["If"]) == (1, 2, 2)
    got = run(model.SerializeToString(), tiny.images(3))["member_probabilities"]
    assert np.abs(got[:, 0] - got[:, 1]).max() > 1e-3, "each member drew noise of its own"


def half(seed: int) -> bytes:
    """Return a network that computes in float16 between float32 input and output."""
    return network(
        [
            helper.make_node("Cast", ["images"], ["halves"], to=TensorProto.FLOAT16),
            helper.make_node("Flatten", ["halves"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["product"]),
            helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
        ],
        {"weights": tiny.weights(seed).astype(np.float16)},
    )


def quantised(seed: int) -> bytes:
    """Return a network with symmetric 8-bit images and weights."""
    scale = np.float32(np.abs(tiny.weights(seed)).max() / 127)
    return network(
        [
            helper.make_node("QuantizeLinear", ["images", "image_scale", "zero"], ["image_integers"]),
            helper.make_node("DequantizeLinear", ["image_integers", "image_scale", "zero"], ["image_values"]),
            helper.make_node("Flatten", ["image_values"], ["flat"]),
            helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["weights"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        {
            "image_scale": np.array(1 / 127, np.float32),
            "zero": np.array(0, np.int8),
            "scale": np.array(scale),
            "integers": np.round(tiny.weights(seed) / scale).astype(np.int8),
        },
    )


def test_members_of_any_precision_are_fused_and_share_their_casts() -> None:
    members, ensemble = [half(1), quantised(2), tiny.linear_onnx(3), half(4), quantised(5)], ensemble_of(5)
    fused = fused_onnx(members, ensemble)
    count = Counter(node.op_type for node in onnx.load_model_from_string(fused).graph.node)
    assert (count["Cast"], count["QuantizeLinear"], count["DequantizeLinear"]) == (1 + 2, 2, 2 + 2)
    measured = verify_fused(fused, members, ensemble, tiny.images(9), max_batch_size=4)
    assert measured["graph_optimisation"] == "all"
    images = tiny.images(5)
    got = run(fused, images)["member_probabilities"]
    for index, seed in enumerate(range(1, 6)):
        np.testing.assert_allclose(got[:, index], tiny.softmax(tiny.logits(seed, images)), atol=0.05)


def test_float16_members_may_round_what_they_share_in_other_places(tmp_path: Path) -> None:
    members = []
    for seed, float_operators in ((0, []), (1, ["Conv"])):
        model = float16.convert_float_to_float16(foreign.classifier(seed=seed), keep_io_types=True, op_block_list=float_operators)
        file = foreign.write(tmp_path, model, f"{seed}.onnx")
        members.append(onnx_from_foreign(file, mean=[0.5], std=[0.25]).SerializeToString())
    fused, images = fused_onnx(members, ensemble_of(2)), np.random.default_rng(0).random((8, *foreign.SHAPE), np.float32)
    measured = verify_fused(fused, members, ensemble_of(2), images, max_batch_size=8)
    assert FUSED_TOLERANCE < max(measured["largest_difference"].values()) < measured["tolerance"] == 1e-2
    with raises(VerificationError, "0.01"):
        verify_fused(fused, members[::-1], ensemble_of(2), images, max_batch_size=8)
    same = verify_fused(fused_onnx([quantised(1)], ensemble_of(1)), [quantised(1)], ensemble_of(1), None, max_batch_size=2)
    assert same["tolerance"] == FUSED_TOLERANCE


def test_the_interface_is_kept_and_the_same_members_give_the_same_bytes() -> None:
    members, ensemble = [tiny.linear_onnx(1), tiny.linear_onnx(2)], ensemble_of(2)
    content = fused_onnx(members, ensemble)
    assert content == fused_onnx(list(members), ensemble)
    assert digests_of_members(content) == [hashlib.sha256(member).hexdigest() for member in members]
    loaded = fused_onnx([onnx.load_model_from_string(member) for member in members], ensemble)
    assert digests_of_members(loaded) == [None, None]
    assert onnx.load_model_from_string(loaded).graph == onnx.load_model_from_string(content).graph
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert model.producer_name == "defensemble"
    shapes = {
        tensor.name: [size.dim_param or size.dim_value for size in tensor.type.tensor_type.shape.dim]
        for tensor in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", 1, 4, 4],
        "probabilities": ["batch", 3],
        "member_probabilities": ["batch", 2, 3],
        "entropy": ["batch", 1],
        "mutual_information": ["batch", 1],
    }


def test_two_versions_of_one_model_have_different_prefixes() -> None:
    ensemble = Ensemble("e", (Member("a", 1), Member("a", 2), Member("b")))
    model = onnx.load_model_from_string(fused_onnx([tiny.linear_onnx(seed) for seed in range(3)], ensemble))
    assert [tensor.name for tensor in model.graph.initializer][:3] == ["a@1/weights", "a@2/weights", "b/weights"]


@pytest.fixture(scope="module")
def resnets() -> list[bytes]:
    """Export two defective ResNet-18s."""
    return [resnet18().SerializeToString(), resnet18(pattern="channel", width=4).SerializeToString()]


def test_real_networks_keep_their_masks_and_share_their_normalisation(resnets: list[bytes]) -> None:
    ensemble = Ensemble("e", (Member("left"), Member("right", 1, 2.0)))
    fused = fused_onnx(resnets, ensemble)
    measured = verify_fused(fused, resnets, ensemble, np.random.default_rng(0).random((20, 1, 16, 16), np.float32), max_batch_size=5)
    assert set(measured["largest_difference"]) == OUTPUTS
    assert max(measured["largest_difference"].values()) <= 1e-6
    assert (measured["batches"], measured["n"], measured["graph_optimisation"]) == ([1, 2, 5], 1 + 2 + 5, "all")
    model = onnx.load_model_from_string(fused)
    kept = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, content in zip(("left", "right"), resnets, strict=True):
        own = [tensor for tensor in onnx.load_model_from_string(content).graph.initializer if tensor.data_type == TensorProto.BOOL]
        assert len(own) == 10
        for tensor in own:
            np.testing.assert_array_equal(numpy_helper.to_array(kept[f"{name}/{tensor.name}"]), numpy_helper.to_array(tensor))
    readers = [node for node in model.graph.node if "images" in node.input]
    assert len(readers) == 1, "the first thing that is done to the images is done once"
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["defensemble.class_names"]) == list("0123456789")
    assert metadata["defensemble.average"] == "probabilities"
    members = json.loads(metadata["defensemble.members"])
    assert [(entry["member"], entry["version"], entry["weight"]) for entry in members] == [("left", 1, 1.0), ("right", 1, 2.0)]
    assert [entry["spec"]["pattern"] for entry in members] == ["neuron", "channel"]
    own_digests = [
        {e.key: e.value for e in onnx.load_model_from_string(content).metadata_props}["defensemble.mask_digest"] for content in resnets
    ]
    assert [entry["mask_digest"] for entry in members] == own_digests


@pytest.mark.parametrize(
    "precisions", [("fp16", "fp16"), ("int8", "int8"), ("int8", "fp16"), ("fp32", "int8"), ("int8 from the first", "int8 from the first")]
)
def test_real_networks_of_every_precision_keep_their_masks(resnets: list[bytes], precisions: tuple[str, str]) -> None:
    images = np.random.default_rng(1).random((16, 1, 16, 16), np.float32)
    convert: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
        "fp32": lambda model: model,
        "fp16": fp16_from_onnx,
        "int8": lambda model: int8_from_onnx(model, images),
        "int8 from the first": lambda model: int8_from_onnx(model, images, float_nodes=()),  # one scale of the images for all
    }
    graphs = [onnx.load_model_from_string(content) for content in resnets]
    members = [convert[precision](graph).SerializeToString() for precision, graph in zip(precisions, graphs, strict=True)]
    fused = fused_onnx(members, ensemble_of(2))
    measured = verify_fused(fused, members, ensemble_of(2), images, max_batch_size=3)
    assert max(measured["largest_difference"].values()) <= 1e-6
    model = onnx.load_model_from_string(fused)
    assert len([node for node in model.graph.node if "images" in node.input]) == 1
    # Each member has its own quantisers: ONNX Runtime computes in float for one of two readers.
    read = [name for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear") for name in node.input[1:] if name]
    assert all(name.startswith(("m0/", "m1/")) for name in read)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        each = [sum(node.op_type == kind for node in onnx.load_model_from_string(member).graph.node) for member in members]
        assert sum(node.op_type == kind for node in model.graph.node) == sum(each)
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == TensorProto.BOOL}
    expected = {
        f"m{index}/{tensor.name}": numpy_helper.to_array(tensor)
        for index, graph in enumerate(graphs)
        for tensor in graph.graph.initializer
        if tensor.data_type == TensorProto.BOOL
    }
    assert len(expected) == 20
    assert set(kept) == set(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(kept[name], mask)


def named(content: bytes, **metadata: str) -> bytes:
    model = onnx.load_model_from_string(content)
    helper.set_model_props(model, {f"defensemble.{key}": value for key, value in metadata.items()})
    changed: bytes = model.SerializeToString()
    return changed


def with_external_data(content: bytes) -> bytes:
    model = onnx.load_model_from_string(content)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    changed: bytes = model.SerializeToString()
    return changed


FLAT = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["logits"])]
GOOD = tiny.linear_onnx(1)


@pytest.mark.parametrize(
    ("other", "error", "text"),
    [
        (tiny.linear_onnx(1, shape=(1, 2, 8)), EnsembleError, "share | image size | 'm0' | (1, 4, 4) | 'm1' | (1, 2, 8)"),
        (tiny.linear_onnx(1, classes=4), EnsembleError, "share | number of classes | 'm0' | 3 | 'm1' | 4"),
        (b"not an ONNX file", ExportError, "'m1' | not an ONNX file | damaged"),
        (b"", ExportError, "'m1' | inputs | none | 'images'"),
        (average_onnx(ensemble_of(1), 3), ExportError, "'logits_0' (FLOAT, 2 axes) | 'images' (FLOAT, 4 axes"),
        (network(FLAT, {"weights": tiny.weights(1)}, shape=(4, *tiny.SHAPE)), ExportError, "fixed batch of 4"),
        (network(FLAT, {"weights": tiny.weights(1)}, opset=17), ExportError, "version 17 | 'ai.onnx' | 20"),
        (network(FLAT, {}), ExportError, "'m1' | onnx's checker | 'weights'"),
        (with_external_data(GOOD), ExportError, "'weights' | another file"),
    ],
)
def test_unsuitable_members_are_rejected(other: bytes, error: type[Exception], text: str) -> None:
    with raises(error, text):
        fused_onnx([GOOD, other], ensemble_of(2))


def test_members_of_other_classes_or_number_are_rejected() -> None:
    members = [named(GOOD, class_names='["a", "b", "c"]'), named(GOOD, class_names='["a", "b", "d"]')]
    with raises(EnsembleError, "class names | 'm0' | 'm1' | 'c' | 'd' | class 2"):
        fused_onnx(members, ensemble_of(2))
    with raises(EnsembleError, "3 | 2 networks"):
        fused_onnx([GOOD, GOOD], ensemble_of(3))


def test_a_file_above_the_protobuf_limit_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble_export.graphs.fusion.MAX_FILE_BYTES", 1000)
    with pytest.raises(EnsembleError, match=r"m0, m1 take 0\.0 GB together, and an ONNX file at most 0\.0 GB: fuse fewer"):
        fused_onnx([GOOD, GOOD], ensemble_of(2))

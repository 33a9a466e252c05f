"""Exports in the mask-aware form: the choice, the comparison with the plain graph, the report, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from defensemble_export import (
    CheckpointSource,
    ExportError,
    ExportOptions,
    OnnxSource,
    VerificationError,
    export_networks,
    member_from_onnx,
    onnx_from_checkpoint,
)
from defensemble_export.graphs.mask_aware import is_mask_aware, mask_aware_from_onnx, plain_onnx
from defensemble_export.members.write import Network, write_network
from defensemble_export.verification.images import RealImages
from defensemble_export.verification.mask_aware import BATCHES, verify_mask_aware
from defensemble_ops import OPERATOR, BuildError
from defensemble_repository.export_report import parse_report
from defensemble_training import build, save_checkpoint
from tests.support import masked
from tests.support.facts import assert_facts, raises
from tests.support.untrained import record_of, tiny_spec


def written(folder: Path, graph: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Export a graph; return the file, and the entry `mask_aware` of its report."""
    plain = masked.serialised(graph)
    masks = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.BOOL}
    network = Network(graph, lambda images: masked.logits(plain, images), "itself", masked.SHAPE, {"name": "net.onnx"}, masks)
    real = RealImages(masked.images(40), "some images")
    path = write_network(network, folder / "net.onnx", ExportOptions(**options), real, None, 8)
    report = parse_report(path.with_name("net.onnx.json").read_bytes())
    assert report["onnx"]["masks"] == len(masks)
    return onnx.load(path), report["mask_aware"]


def no_compiler(on_progress: Callable[[str], None] | None = None) -> Path:
    raise BuildError("no C++ compiler was found")


def test_the_form_is_compared_with_the_plain_graph_on_both_paths(tmp_path: Path) -> None:
    graph = masked.masked_onnx()
    model, entry = written(tmp_path, graph, mask_aware="on")
    assert is_mask_aware(model)
    assert masked.serialised(plain_onnx(model)) == masked.serialised(graph)
    assert (entry["operator"], entry["problem"]) == ("MaskedNetwork_v1", None)
    verified = entry["verification"]
    assert verified["batches"] == list(BATCHES)
    assert verified["n"] == 40
    assert max(verified["operator"], verified["fallback"]) <= verified["tolerance"] == 1e-5
    assert verified["instruction_set"] in ("avx512", "avx2", "baseline")
    assert {layer["name"] for layer in entry["layers"]} >= {"first", "second"}


def test_auto_is_what_the_compiler_expects_to_pay_and_off_changes_nothing(tmp_path: Path) -> None:
    graph = masked.masked_onnx()
    for keep in (0.1, 1.0):
        network = masked.masked_onnx(keep=keep)
        model, entry = written(tmp_path, network)
        expected = mask_aware_from_onnx(network, "auto")
        assert is_mask_aware(model) == expected.is_active
        assert entry["reason"] == expected.report["reason"]
    model, entry = written(tmp_path, graph, mask_aware="off")
    assert masked.serialised(model) == masked.serialised(graph)
    assert (entry["operator"], entry["verification"]) == (None, None)
    assert "--mask-aware off" in entry["reason"]


def test_a_network_without_masks_stays_plain_and_on_is_refused(tmp_path: Path) -> None:
    graph = masked.masked_onnx(has_masks=False)
    model, entry = written(tmp_path, graph)
    assert masked.serialised(model) == masked.serialised(graph)
    assert_facts(entry["reason"], "no masks")
    with raises(ExportError, "net.onnx | no masks | --mask-aware off"):
        written(tmp_path, graph, mask_aware="on")


def test_another_precision_is_plain_and_on_is_refused_at_once(tmp_path: Path) -> None:
    model, entry = written(tmp_path, masked.masked_onnx(), precision="fp16")
    assert not model.functions
    assert_facts(entry["reason"], "fp16 | fp32")
    for precision in ("fp16", "int8"):
        with raises(ExportError, f"'on' | fp32 | {precision}"):
            ExportOptions(precision, mask_aware="on")
    with raises(ExportError, "auto, on, off | 'always'"):
        ExportOptions(mask_aware="always")


def test_without_a_compiler_on_is_an_error_and_auto_reports_why_the_file_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble_export.members.mask_aware.library_path", no_compiler)
    graph = masked.masked_onnx(keep=0.1)
    with raises(ExportError, "net.onnx | no C++ compiler | --mask-aware"):
        written(tmp_path, graph, mask_aware="on")
    assert not list(tmp_path.iterdir()), "nothing is left"
    model, entry = written(tmp_path, graph)
    assert masked.serialised(model) == masked.serialised(graph)
    assert (entry["operator"], entry["problem"]) == (None, entry["reason"])
    assert_facts(entry["problem"], "no C++ compiler")


def test_an_imported_file_gets_the_form_and_its_own_export_is_imported_like_the_plain_one(tmp_path: Path) -> None:
    onnx.save(masked.masked_onnx(), tmp_path / "net.onnx")
    repository = tmp_path / "repository"
    images = masked.images(4)
    export_networks([OnnxSource(tmp_path / "net.onnx", "net")], repository, options=ExportOptions(mask_aware="on"), images=images)
    stored = repository / "net/1/model.onnx"
    assert is_mask_aware(onnx.load(stored))
    sources = [OnnxSource(path, name) for path, name in ((tmp_path / "net.onnx", "plain"), (stored, "again"))]
    export_networks(sources, repository, ensemble=None, options=ExportOptions(mask_aware="on"), images=images)
    again, plain = (plain_onnx(onnx.load(repository / name / "1/model.onnx")) for name in ("again", "plain"))
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in plain.graph.node]
    sample = masked.images(5, seed=1)
    np.testing.assert_array_equal(masked.logits(masked.serialised(again), sample), masked.logits(masked.serialised(plain), sample))


def test_a_wrong_operator_or_fallback_is_refused() -> None:
    graph = masked.masked_onnx()
    plain, aware = masked.serialised(graph), masked.mask_aware(graph)
    other = masked.serialised(masked.mask_aware(masked.masked_onnx(2)))
    with raises(VerificationError, "5 random images | the plain graph | not used | --mask-aware off"):
        verify_mask_aware(other, plain, masked.images(4), max_batch_size=4)
    (relu,) = (node for node in aware.functions[0].node if node.output[0] == "second.relu")
    relu.op_type = "Abs"
    with raises(VerificationError, "without its operator | logits differ"):
        verify_mask_aware(masked.serialised(aware), plain, None, max_batch_size=4)


def test_a_library_that_does_not_run_the_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = masked.masked_onnx()
    monkeypatch.setattr("defensemble_export.verification.mask_aware.register", lambda options: None)
    with raises(VerificationError, "fallback | library"):
        verify_mask_aware(masked.serialised(masked.mask_aware(graph)), masked.serialised(graph), None, max_batch_size=1)


def test_an_operator_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(session: Any) -> bool:
        return bool(session.run(None, {"unknown": masked.images(1)}))

    graph = masked.masked_onnx()
    monkeypatch.setattr("defensemble_export.verification.mask_aware.is_active", failing)
    with raises(VerificationError, "on its operator | unknown | --mask-aware off"):
        verify_mask_aware(masked.serialised(masked.mask_aware(graph)), masked.serialised(graph), None, max_batch_size=1)


def test_old_reports_are_still_read(tmp_path: Path) -> None:
    written(tmp_path, masked.masked_onnx(), mask_aware="on")
    values = json.loads((tmp_path / "net.onnx.json").read_bytes())
    for damaged in ("reason", "expected_gain", "multiplications"):
        entry = {key: value for key, value in values["mask_aware"].items() if key != damaged}
        with pytest.raises(KeyError, match=damaged):
            parse_report(json.dumps({**values, "mask_aware": entry}).encode())
    del values["mask_aware"]
    assert "mask_aware" not in parse_report(json.dumps(values).encode())


def test_a_checkpoint_without_masks_is_refused_before_any_network_is_exported(tmp_path: Path) -> None:
    spec = tiny_spec(keep=1.0)
    save_checkpoint(tmp_path / "standard.safetensors", build(spec).eval(), spec, record_of(spec))
    source = CheckpointSource(tmp_path / "standard.safetensors")
    source.check(ExportOptions(), None)
    with raises(ExportError, "standard.safetensors | no masks | --mask-aware"):
        source.check(ExportOptions(mask_aware="on"), None)


@pytest.mark.slow  # traces a network twice
def test_a_checkpoint_is_exported_in_the_form(tmp_path: Path) -> None:
    spec = tiny_spec()
    save_checkpoint(tmp_path / "net.safetensors", build(spec).eval(), spec, record_of(spec))
    images = np.random.default_rng(0).random((4, *spec.input_shape), np.float32)
    written = {}
    for mode in ("on", "off"):
        path = tmp_path / f"{mode}.onnx"
        onnx_from_checkpoint(tmp_path / "net.safetensors", path, max_batch_size=2, options=ExportOptions(mask_aware=mode), images=images)
        written[mode] = onnx.load(path)
    on_nodes, off_nodes = (sorted(node.SerializeToString() for node in plain_onnx(written[mode]).graph.node) for mode in ("on", "off"))
    assert on_nodes == off_nodes, "the order of nodes that do not depend on each other may differ"
    assert list(plain_onnx(written["on"]).graph.initializer) == list(written["off"].graph.initializer)
    on, off = (member_from_onnx(tmp_path / f"{mode}.onnx", "net") for mode in ("on", "off"))
    assert (on.mask_aware, off.mask_aware) == (OPERATOR, None)
    assert on.mask_digest == off.mask_digest is not None


def test_masks_of_whole_channels_give_smaller_convolutions_that_are_compared_too(tmp_path: Path) -> None:
    graph = masked.masked_onnx(width=32, keep=0.3, whole_channels=True)
    model, entry = written(tmp_path, graph, mask_aware="on")
    assert not is_mask_aware(model)
    assert masked.serialised(model) != masked.serialised(graph)
    assert (entry["operator"], entry["verification"]["operator"]) == (None, None)
    assert entry["verification"]["fallback"] <= 1e-5
    other = masked.serialised(masked.masked_onnx(2, width=32))
    with raises(VerificationError, "logits differ"):
        verify_mask_aware(other, masked.serialised(graph), None, max_batch_size=1, has_operator=False)

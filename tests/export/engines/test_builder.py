"""Building a plan from an ONNX file, with a fake TensorRT that records the calls, and every failure."""

from __future__ import annotations

import hashlib
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from defensemble_export import EngineError
from defensemble_export.engines.build_steps import BuildRequest, build_calls
from defensemble_export.engines.builder import OnPhase, engine_from_onnx, request_from_onnx
from defensemble_export.engines.target import Target, check_target, find_target
from defensemble_export.engines.timing_cache import default_timing_cache
from defensemble_repository.errors import RepositoryError
from defensemble_repository.plan_manifest import Manifest, OptimizationProfile, read_manifest
from tests.support import tiny
from tests.support.facts import assert_facts, raises
from tests.support.fake_tensorrt import GPU, MARK, VERSION, FakeTensorRT, ParserError, Severity, install_gpu, install_tensorrt

TARGET = Target(VERSION, *GPU)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTensorRT:
    return install_tensorrt(monkeypatch, tmp_path)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny.linear_onnx(1))
    return path


def built(graph: Path, plan: Path, *, timing_cache: Path | None = None, on_phase: OnPhase | None = None, **options: Any) -> Manifest:
    request = request_from_onnx(graph.read_bytes(), str(graph), **{"max_batch_size": 8, **options})
    return engine_from_onnx(graph, plan, request, find_target(), timing_cache=timing_cache, on_phase=on_phase)


def test_build_calls_are_listed_without_tensorrt() -> None:
    request = BuildRequest((3, 32, 32), 64, opt_batch=16, workspace_bytes=2**30, version_compatible=True, hardware_compatible=True)
    assert build_calls(request) == [
        "builder = tensorrt.Builder(logger=logger)",
        "network = builder.create_network(flags=1 << tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED.value)",
        "onnx_parser = tensorrt.OnnxParser(network=network, logger=logger)",
        "onnx_parser.set_flag(flag=tensorrt.OnnxParserFlag.NATIVE_INSTANCENORM)",
        "onnx_parser.parse(model=onnx, path=path)",
        "builder_config = builder.create_builder_config()",
        "builder_config.progress_monitor = monitor",
        "builder_config.builder_optimization_level = 3",
        "builder_config.clear_flag(flag=tensorrt.BuilderFlag.TF32)",
        "builder_config.set_memory_pool_limit(pool=tensorrt.MemoryPoolType.WORKSPACE, pool_size=1073741824)",
        "builder_config.set_flag(flag=tensorrt.BuilderFlag.VERSION_COMPATIBLE)",
        "builder_config.hardware_compatibility_level = tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS",
        "optimization_profile = builder.create_optimization_profile()",
        "optimization_profile.set_shape(input=images, min=(1, 3, 32, 32), opt=(16, 3, 32, 32), max=(64, 3, 32, 32))",
        "builder_config.add_optimization_profile(profile=optimization_profile)",
        "timing_cache = builder_config.create_timing_cache(serialized_timing_cache=timings)",
        "builder_config.set_timing_cache(cache=timing_cache, ignore_mismatch=False)",
        "serialized_network = builder.build_serialized_network(network=network, config=builder_config)",
    ]
    plain = build_calls(BuildRequest((3, 32, 32), 64))
    assert len(plain) == 14
    assert not [line for line in plain if "COMPATIBLE" in line or "WORKSPACE" in line or "INSTANCENORM" in line]
    assert "optimization_profile.set_shape(input=images, min=(1, 3, 32, 32), opt=(64, 3, 32, 32), max=(64, 3, 32, 32))" in plain


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_precision_does_not_change_the_build_calls(precision: str) -> None:
    assert build_calls(BuildRequest((3, 32, 32), 64, precision=precision)) == build_calls(BuildRequest((3, 32, 32), 64))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"max_batch_size": 0}, "max_batch_size | 1 to 4096 | 0"),
        ({"max_batch_size": 8, "opt_batch": 9}, "min <= opt <= max | 1, 9 and 8"),
        ({"max_batch_size": 8, "opt_batch": 0}, "above 0"),
        ({"max_batch_size": 8, "precision": "fp8"}, "precision | fp32, fp16, int8 | 'fp8'"),
        ({"max_batch_size": 8, "builder_level": 6}, "builder_level | 5 | 6"),
        ({"max_batch_size": 8, "workspace_bytes": 0}, "workspace_bytes | 1 | 0"),
    ],
)
def test_numbers_out_of_range_are_rejected(options: dict[str, Any], facts: str) -> None:
    with raises(RepositoryError, facts):
        BuildRequest((3, 32, 32), **options)


def test_a_plan_and_its_manifest_are_written(fake: FakeTensorRT, graph: Path, tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    progress: list[tuple[str, str, int, int]] = []
    cache = tmp_path / "timings" / "file.cache"
    manifest = built(
        graph,
        plan,
        opt_batch=4,
        precision="fp16",
        builder_level=5,
        workspace_bytes=1000,
        version_compatible=True,
        hardware_compatible=True,
        timing_cache=cache,
        on_phase=lambda *step: progress.append(step),
    )
    assert fake.calls == [
        "network flags 2",
        "parser NATIVE_INSTANCENORM",
        "progress_monitor",
        "builder_optimization_level = 5",
        "clear TF32",
        "WORKSPACE 1000",
        "set VERSION_COMPATIBLE",
        "hardware_compatibility_level = <HardwareCompatibilityLevel.AMPERE_PLUS: 1>",
        "profile images 1 4 8",
        "build",
    ]
    assert plan.read_bytes() == MARK + graph.read_bytes()
    assert read_manifest(tmp_path / "model.plan.json") == manifest
    assert (manifest.tensorrt, manifest.gpu, manifest.compute_capability, manifest.driver) == (VERSION, *GPU)
    assert manifest.onnx_sha256 == hashlib.sha256(graph.read_bytes()).hexdigest()
    assert manifest.plan_sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert manifest.profile == OptimizationProfile((1, *tiny.SHAPE), (4, *tiny.SHAPE), (8, *tiny.SHAPE))
    assert (manifest.precision, manifest.builder_level, manifest.workspace_bytes) == ("fp16", 5, 1000)
    assert (manifest.version_compatible, manifest.hardware_compatible) == (True, True)
    assert progress == [("Building Engine", "", 0, 2), ("Building Engine", "", 1, 2), ("Building Engine", "", 2, 2)]
    assert cache.read_bytes() == b"10.13.3.9|conv"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["driver", "model.onnx", "model.plan", "model.plan.json", "timings"]


def test_the_timing_cache_is_read_merged_and_written_back(fake: FakeTensorRT, graph: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def build() -> bytes:
        built(graph, tmp_path / "model.plan", timing_cache=cache)
        return cache.read_bytes()

    cache.write_bytes(b"10.13.3.9|pool")

    # Another process writes its timings while this one builds.
    def other_process() -> None:
        cache.write_bytes(b"10.13.3.9|pool,theirs")

    fake.during_build = other_process
    assert build() == b"10.13.3.9|conv,pool,theirs"
    fake.during_build, fake.times = lambda: None, "gemm"
    assert build() == b"10.13.3.9|conv,gemm,pool,theirs"
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("content", [b"11.4.0.106|theirs", b"\xff\xfe damaged"])
def test_a_timing_cache_of_another_tensorrt_is_replaced_with_a_warning(
    fake: FakeTensorRT, graph: Path, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(content)
    built(graph, tmp_path / "model.plan", timing_cache=cache)
    assert cache.read_bytes() == b"10.13.3.9|conv"
    assert_facts(caplog.text, f"{cache} | TensorRT | GPU | damaged")


def test_each_tensorrt_and_gpu_has_its_own_timing_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_timing_cache(TARGET) == tmp_path / "defensemble/timings/10.13.3.9-NVIDIA-H100-80GB-HBM3-9.0.cache"


def test_every_parser_error_names_its_node(fake: FakeTensorRT, graph: Path, tmp_path: Path) -> None:
    fake.parser_errors = [ParserError("conv1", "Conv", "no weights"), ParserError("fc", "Gemm", "no bias")]
    with pytest.raises(EngineError) as caught:
        built(graph, tmp_path / "model.plan")
    assert_facts(str(caught.value), f"{graph} | 'conv1' (Conv) | no weights | 'fc' (Gemm) | no bias")
    assert not list(tmp_path.glob("*.plan*"))


def test_a_failed_build_reports_the_errors_of_tensorrt(
    fake: FakeTensorRT, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.plan = None
    fake.log_entries = [(Severity.VERBOSE, "timing"), (Severity.WARNING, "slow"), (Severity.ERROR, "requested 9 GiB, out of memory")]
    with caplog.at_level(logging.DEBUG, "defensemble_export.tensorrt"), pytest.raises(EngineError) as caught:
        built(graph, tmp_path / "model.plan")
    assert_facts(str(caught.value), f"{graph} | requested 9 GiB, out of memory")
    assert_facts(str(caught.value), "max_batch_size | --workspace")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("DEBUG", "timing"),
        ("WARNING", "slow"),
        ("ERROR", "requested 9 GiB, out of memory"),
    ]
    assert not list(tmp_path.glob("*.plan*"))


def test_a_profile_that_tensorrt_rejects_is_reported(fake: FakeTensorRT, graph: Path, tmp_path: Path) -> None:
    fake.added = -1
    with pytest.raises(EngineError, match=r"Profile\(min=\(1, 1, 4, 4\)"):
        built(graph, tmp_path / "model.plan")


def test_a_tensorrt_with_another_api_is_reported_without_a_traceback(fake: FakeTensorRT, graph: Path, tmp_path: Path) -> None:
    del sys.modules["tensorrt"].MemoryPoolType
    with raises(EngineError, f"TensorRT {VERSION} | MemoryPoolType"):
        built(graph, tmp_path / "model.plan", workspace_bytes=1)


def test_ctrl_c_in_a_callback_ends_the_build_and_is_raised_after_it(fake: FakeTensorRT, graph: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    def on_phase(phase: str, parent: str, done: int, total: int) -> None:
        steps.append(done)
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(graph, tmp_path / "model.plan", on_phase=on_phase)
    assert steps == [0, 1, 2], "the second step was not begun, its phase was finished"
    assert not list(tmp_path.glob("*.plan*"))


def test_a_path_that_cannot_be_written_is_named(fake: FakeTensorRT, graph: Path, tmp_path: Path) -> None:
    with raises(OSError, "none/model.plan | No such file"):
        built(graph, tmp_path / "none" / "model.plan")


def other_graph(shape: list[Any], name: str = "images", element: int = TensorProto.FLOAT, operator: str = "Relu") -> bytes:
    images = helper.make_tensor_value_info(name, element, shape)
    node = helper.make_node(operator, [name], ["logits"], name="first")
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "g", [images], [output]), opset_imports=[helper.make_opsetid("", 20)])
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"no graph", "ONNX file | damaged"),
        (
            other_graph(["n", 3, 4, 4], name="x"),
            "'images' FLOAT [N,C,H,W] | x of FLOAT ['n', 3, 4, 4]",
        ),
        (other_graph(["n", 3, 4, 4], element=TensorProto.FLOAT16), "images of FLOAT16"),
        (other_graph(["n", 3, "h", "w"]), "C, H and W"),
        (other_graph(["n", 3]), "C, H and W"),
        (other_graph([2, 3, 4, 4]), "batch of 2 | max_batch_size | 8"),
        (
            other_graph(["n", 3, 4, 4], operator="Det"),
            "10.15 | onnx/onnx-tensorrt | 'first' (Det)",
        ),
    ],
)
def test_an_unsupported_graph_is_rejected_before_tensorrt_is_used(content: bytes, facts: str) -> None:
    assert "tensorrt" not in sys.modules
    with raises(EngineError, facts):
        request_from_onnx(content, "here", max_batch_size=8)


def test_a_graph_with_a_fixed_batch_gets_a_profile_of_that_batch() -> None:
    request = request_from_onnx(other_graph([8, 3, 4, 4]), "here", max_batch_size=8, opt_batch=4)
    assert request.profile == OptimizationProfile((8, 3, 4, 4), (8, 3, 4, 4), (8, 3, 4, 4))


CONTAINER = "docker compose --profile gpu run --rm engines | nvcr.io/nvidia/tensorrt:26.07-py3 | make install GPU=1"


def test_a_missing_tensorrt_names_the_command_and_the_container(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with raises(EngineError, f"Python package | not installed | {CONTAINER}"):
        built(graph, tmp_path / "model.plan")


def test_a_tensorrt_without_its_libraries_is_reported(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(package.parent)
    with raises(EngineError, f"installed | libnvinfer.so.10: cannot open | {CONTAINER}"):
        built(graph, tmp_path / "model.plan")


def test_an_old_tensorrt_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    old: Any = types.ModuleType("tensorrt")
    old.__version__ = "8.6.1.6"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with raises(EngineError, "TensorRT 8.6.1.6 | 10.13"):
        find_target()


def test_the_target_comes_from_nvidia_smi(fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_target() == TARGET
    install_gpu(monkeypatch, tmp_path, GPU, GPU)
    assert find_target() == TARGET
    chosen = f"[ \"$3\" = --id=1 ] && echo '{', '.join(GPU)}' || exit 4"
    (tmp_path / "driver/nvidia-smi").write_text(f"#!/bin/sh\n{chosen}\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert find_target() == TARGET, "only of the chosen GPU"
    install_gpu(monkeypatch, tmp_path, GPU, ("Tesla T4", "7.5", "570.124.06"))
    with raises(EngineError, "several kinds | NVIDIA H100 | Tesla T4 (compute capability 7.5) | CUDA_VISIBLE_DEVICES"):
        find_target()


@pytest.mark.parametrize(
    ("script", "facts"),
    [
        ("echo no driver >&2; exit 9", "this machine has no GPU: nvidia-smi ended with status 9: no driver; use a machine with"),
        ("true", "this machine has no GPU: nvidia-smi lists none"),
        ("echo strange", "nvidia-smi printed 'strange'"),
    ],
)
def test_a_machine_without_a_gpu_is_rejected(fake: FakeTensorRT, tmp_path: Path, script: str, facts: str) -> None:
    (tmp_path / "driver/nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    with raises(EngineError, facts):
        find_target()


def test_a_missing_driver_and_a_hidden_gpu_are_explained(fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError, match="CUDA_VISIBLE_DEVICES is '': unset it"):
        find_target()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(EngineError, match="no nvidia-smi on PATH"):
        find_target()


def test_an_unsupported_gpu_is_rejected_before_the_build(fake: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpu(monkeypatch, tmp_path, ("Tesla V100-SXM2-16GB", "7.0", "570.124.06"))
    with raises(EngineError, "int8 | Tesla V100 | 7.0 | 7.5"):
        check_target(find_target(), "int8", hardware_compatible=False)
    assert fake.calls == []


def test_hardware_compatible_plans_need_ampere_or_newer() -> None:
    turing = Target(VERSION, "Tesla T4", "7.5", "1")
    check_target(turing, "int8", hardware_compatible=False)
    with raises(EngineError, "8.0 (Ampere) | Tesla T4 | 7.5"):
        check_target(turing, "fp32", hardware_compatible=True)
    check_target(TARGET, "fp32", hardware_compatible=True)

"""Hand edits of models: each changes one folder of a repository, in a way that Triton may refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as schema

from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from tests.support import tiny

Edit = Callable[[Path], object]
GPU, CPU, AUTO, MODEL = (
    schema.ModelInstanceGroup.KIND_GPU,
    schema.ModelInstanceGroup.KIND_CPU,
    schema.ModelInstanceGroup.KIND_AUTO,
    schema.ModelInstanceGroup.KIND_MODEL,
)


def config(change: Callable[[schema.ModelConfig], object]) -> Edit:
    """Change a configuration through its schema."""

    def edit(folder: Path) -> None:
        path = folder / "config.pbtxt"
        message = config_from_pbtxt(path.read_text(), folder.name)
        change(message)
        path.write_bytes(pbtxt_from_config(message))

    return edit


def text(old: str, new: str) -> Edit:
    """Replace text in a configuration."""

    def edit(folder: Path) -> None:
        path = folder / "config.pbtxt"
        content = path.read_text()
        assert old in content, old
        path.write_text(content.replace(old, new, 1))

    return edit


def append(lines: str | bytes) -> Edit:
    """Add lines to a configuration."""

    def edit(folder: Path) -> None:
        path = folder / "config.pbtxt"
        path.write_bytes(path.read_bytes() + (lines if isinstance(lines, bytes) else lines.encode()))

    return edit


def encoded(change: Callable[[bytes], bytes]) -> Edit:
    """Change the bytes of a configuration."""

    def edit(folder: Path) -> None:
        path = folder / "config.pbtxt"
        path.write_bytes(change(path.read_bytes()))

    return edit


def parameter(key: str, value: str) -> Edit:
    """Set a parameter of a configuration."""
    return config(lambda message: setattr(message.parameters[key], "string_value", value))


def without_parameter(key: str) -> Edit:
    """Remove a parameter of a configuration."""
    return config(lambda message: message.parameters.pop(key))


def both(*edits: Edit) -> Edit:
    """Several edits, in their order."""

    def edit(folder: Path) -> None:
        for change in edits:
            change(folder)

    return edit


def batching(lines: str) -> Edit:
    """Write the fields of `dynamic_batching`."""
    return text("dynamic_batching {\n}", f"dynamic_batching {{ {lines} }}")


def group(**fields: object) -> Edit:
    """Add an instance group."""
    return config(lambda message: message.instance_group.add(**fields))


def version(number: str, seed: int = 7) -> Edit:
    """Add a version folder with a model file."""

    def edit(folder: Path) -> None:
        (folder / number).mkdir()
        (folder / number / "model.onnx").write_bytes(tiny.linear_onnx(seed))

    return edit


def policy(lines: str) -> Edit:
    """Write another `version_policy`."""
    return both(config(lambda message: message.ClearField("version_policy")), append(f"version_policy {{ {lines} }}\n"))


def warmup(lines: str) -> Edit:
    """Add a warm-up of the input `images`."""
    fields = f"data_type: TYPE_FP32 dims: [1, 4, 4] {lines}"
    return append(f'model_warmup {{ name: "one" batch_size: 1 inputs {{ key: "images" value {{ {fields} }} }} }}\n')


def sample(fields: str, batch: str = "batch_size: 1", *, name: str = 'name: "one" ', key: str = "images") -> Edit:
    """Add a warm-up with these fields of its input."""
    return append(f'model_warmup {{ {name}{batch} inputs {{ key: "{key}" value {{ {fields} zero_data: true }} }} }}\n')


def data(name: str, size: int) -> Edit:
    """Write a file of warm-up data."""

    def edit(folder: Path) -> None:
        (folder / "warmup").mkdir()
        (folder / "warmup" / name).write_bytes(bytes(size))

    return edit


def dangling_link(name: str) -> Edit:
    """Add a broken link."""
    return lambda folder: (folder / name).symlink_to("nowhere")


def no_digest() -> Edit:
    """Remove the digest, as in a model that was not exported by us."""
    return without_parameter("sha256.1")


def rename_file(new: str) -> Edit:
    """Rename the model file of version 1."""
    return lambda folder: (folder / "1/model.onnx").rename(folder / "1" / new)


def without_backend() -> Edit:
    return text('backend: "onnxruntime"\n', "")


EDITS: dict[str, Edit] = {
    "as-exported": lambda folder: None,
    "comment": append("# one more line\n"),
    "comment-not-utf8": append(b"# caf\xe9\n"),
    "comment-latin1-in-string": append(b'parameters { key: "note" value { string_value: "caf\xe9" } }\n'),
    "utf8-parameter": append('parameters { key: "note" value { string_value: "café" } }\n'),
    "nul-in-parameter": append('parameters { key: "note" value { string_value: "a\\000b" } }\n'),
    "invalid-text": append("max_batch_size: many\n"),
    "unknown-field": append("no_such_field: 1\n"),
    "unclosed": append("parameters {\n"),
    "empty-config": lambda folder: (folder / "config.pbtxt").write_text(""),
    "scalar-twice": append("max_batch_size: 8\n"),
    "byte-order-mark": encoded(lambda content: b"\xef\xbb\xbf" + content),
    "byte-order-mark-at-the-end": append(b"\xef\xbb\xbf"),
    "utf-16": encoded(lambda content: content.decode().encode("utf-16")),
    "utf-16-le": encoded(lambda content: content.decode().encode("utf-16-le")),
    "zero-width-space": append("\u200b\n"),
    "no-break-space": encoded(lambda content: content.replace(b": ", b":\xc2\xa0", 1)),
    "form-feed": append(b"\x0c\x0b\n"),
    "nul-at-the-end": append(b"\0"),
    "nul-in-comment": append(b"# a\0b\n"),
    "nul-in-comment-then-field": append(b"# a\0b\nno_such_field: 1\n"),
    "nul-in-string": append(b'parameters { key: "note" value { string_value: "a\0b" } }\n'),
    "nul-between-fields": append(b"\0\n"),
    "crlf": encoded(lambda content: content.replace(b"\n", b"\r\n")),
    "digits-of-another-script": text("max_batch_size: 8\n", "max_batch_size: \u0668\n"),
    "number-with-underscore": text("max_batch_size: 8\n", "max_batch_size: 1_6\n"),
    "number-with-underscore-in-comment": append("# 1_0\n"),
    "number-hexadecimal": text("max_batch_size: 8\n", "max_batch_size: 0x8\n"),
    "number-octal": text("max_batch_size: 8\n", "max_batch_size: 010\n"),
    "field-separator-character": append("\x1f\n"),
    "next-line-character": append("\u0085\n"),
    "cr": encoded(lambda content: content.replace(b"\n", b"\r")),
    "cr-after-comment": encoded(lambda content: b"# first\r" + content.replace(b"\n", b"\r")),
    "large-number": append("version_policy { specific { versions: 99999999999999999999 } }\n"),
    "no-name": config(lambda message: message.ClearField("name")),
    "other-name": config(lambda message: setattr(message, "name", "other")),
    "no-backend": without_backend(),
    "backend-python": config(lambda message: setattr(message, "backend", "python")),
    "backend-pytorch": config(lambda message: setattr(message, "backend", "pytorch")),
    "backend-path": config(lambda message: setattr(message, "backend", "../../evil")),
    "backend-tensorrt": config(lambda message: setattr(message, "backend", "tensorrt")),
    "backend-platform-name": config(lambda message: setattr(message, "backend", "onnxruntime_onnx")),
    "backend-space": config(lambda message: setattr(message, "backend", "onnxruntime ")),
    "backend-case": config(lambda message: setattr(message, "backend", "ONNXRuntime")),
    "platform-onnxruntime": both(without_backend(), append('platform: "onnxruntime_onnx"\n')),
    "platform-and-backend": append('platform: "onnxruntime_onnx"\n'),
    "platform-other-and-backend": append('platform: "tensorrt_plan"\n'),
    "platform-unknown": both(without_backend(), append('platform: "onnx"\n')),
    "platform-unknown-and-backend": append('platform: "onnx"\n'),
    "platform-tensorrt": both(without_backend(), append('platform: "tensorrt_plan"\n')),
    "platform-tensorflow": both(without_backend(), append('platform: "tensorflow_savedmodel"\n')),
    "platform-ensemble": both(without_backend(), append('platform: "ensemble"\n')),
    "platform-ensemble-and-backend": append('platform: "ensemble"\n'),
    "scheduling-of-an-ensemble": append("ensemble_scheduling { }\n"),
    "batch-0": config(lambda message: setattr(message, "max_batch_size", 0)),
    "batch-0-without-batching": both(config(lambda message: setattr(message, "max_batch_size", 0)), text("dynamic_batching {\n}\n", "")),
    "batch-below-0": config(lambda message: setattr(message, "max_batch_size", -1)),
    "batch-large": config(lambda message: setattr(message, "max_batch_size", 4096)),
    "dims-0": config(lambda message: message.input[0].dims.__setitem__(1, 0)),
    "dims-minus-1": config(lambda message: message.input[0].dims.__setitem__(1, -1)),
    "dims-minus-2": config(lambda message: message.input[0].dims.__setitem__(1, -2)),
    "dims-other": config(lambda message: message.input[0].dims.__setitem__(1, 5)),
    "dims-missing": config(lambda message: message.input[0].ClearField("dims")),
    "dims-one-more": config(lambda message: message.input[0].dims.append(1)),
    "output-dims-other": config(lambda message: message.output[0].dims.__setitem__(0, 4)),
    "output-dims-missing": config(lambda message: message.output[0].ClearField("dims")),
    "output-dims-0": config(lambda message: message.output[0].dims.__setitem__(0, 0)),
    "type-missing": config(lambda message: message.input[0].ClearField("data_type")),
    "type-int32": config(lambda message: setattr(message.input[0], "data_type", schema.TYPE_INT32)),
    "type-string": config(lambda message: setattr(message.input[0], "data_type", schema.TYPE_STRING)),
    "output-type-missing": config(lambda message: message.output[0].ClearField("data_type")),
    "output-type-fp16": config(lambda message: setattr(message.output[0], "data_type", schema.TYPE_FP16)),
    "input-unnamed": config(lambda message: message.input[0].ClearField("name")),
    "output-unnamed": config(lambda message: message.output[0].ClearField("name")),
    "input-renamed": config(lambda message: setattr(message.input[0], "name", "pictures")),
    "output-renamed": config(lambda message: setattr(message.output[0], "name", "logit")),
    "no-inputs": config(lambda message: message.ClearField("input")),
    "no-outputs": config(lambda message: message.ClearField("output")),
    "input-one-more": config(lambda message: message.input.add(name="more", data_type=schema.TYPE_FP32, dims=[1])),
    "output-one-more": config(lambda message: message.output.add(name="more", data_type=schema.TYPE_FP32, dims=[1])),
    "input-twice": config(lambda message: message.input.append(message.input[0])),
    "output-twice": config(lambda message: message.output.append(message.output[0])),
    "output-twice-unlabelled": config(
        lambda message: (message.output[0].ClearField("label_filename"), message.output.append(message.output[0]))
    ),
    "backend-in-path": config(lambda message: setattr(message, "backend", "a/b")),
    "instances-model-with-gpus": group(kind=MODEL, count=1, gpus=[0]),
    "version-name-of-1": version("1.bak"),
    "input-format-nchw": config(lambda message: setattr(message.input[0], "format", schema.ModelInput.FORMAT_NCHW)),
    "input-format-nhwc": config(lambda message: setattr(message.input[0], "format", schema.ModelInput.FORMAT_NHWC)),
    "input-format-of-two-dims": both(
        config(lambda message: setattr(message.input[0], "format", schema.ModelInput.FORMAT_NCHW)),
        config(lambda message: message.input[0].dims.pop()),
    ),
    "input-optional": config(lambda message: setattr(message.input[0], "optional", True)),
    "input-ragged": config(lambda message: setattr(message.input[0], "allow_ragged_batch", True)),
    "input-shape-tensor": config(lambda message: setattr(message.input[0], "is_shape_tensor", True)),
    "output-shape-tensor": config(lambda message: setattr(message.output[0], "is_shape_tensor", True)),
    "reshape-same": text("dims: 1\n", "dims: 1\n    reshape { shape: [1, 4, 4] }\n"),
    "reshape-fits": both(
        config(lambda message: message.input[0].dims.__setitem__(slice(None), [16])),
        text("dims: 16\n", "dims: 16 reshape { shape: [1, 4, 4] }\n"),
    ),
    "reshape-other-size": text("dims: 1\n", "dims: 1\n    reshape { shape: [1, 4, 5] }\n"),
    "reshape-empty": text("dims: 1\n", "dims: 1\n    reshape { }\n"),
    "reshape-output": text("dims: 3\n", "dims: 3\n    reshape { shape: [3, 1] }\n"),
    "reshape-output-fits-not": text("dims: 3\n", "dims: 3\n    reshape { shape: [4] }\n"),
    "reshape-minus-1": text("dims: 1\n", "dims: 1\n    reshape { shape: [1, -1, 4] }\n"),
    "labels-missing": config(lambda message: setattr(message.output[0], "label_filename", "nowhere.txt")),
    "labels-removed": lambda folder: (folder / "labels.txt").unlink(),
    "labels-empty": lambda folder: (folder / "labels.txt").write_text(""),
    "labels-path": config(lambda message: setattr(message.output[0], "label_filename", "../labels.txt")),
    "labels-not-utf8": lambda folder: (folder / "labels.txt").write_bytes(b"caf\xe9\nb\nc\n"),
    "queue-max-size": batching("default_queue_policy { max_queue_size: 8 }"),
    "queue-timeout": batching("default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 400 }"),
    "queue-timeout-delay": batching("default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 400 }"),
    "queue-delay": batching("max_queue_delay_microseconds: 100"),
    "queue-override": batching("default_queue_policy { allow_timeout_override: true }"),
    "preferred-above-batch": batching("preferred_batch_size: [ 4, 128 ]"),
    "preferred-fits": batching("preferred_batch_size: [ 4, 8 ]"),
    "preferred-0": batching("preferred_batch_size: [ 0 ]"),
    "preferred-below-0": batching("preferred_batch_size: [ -1 ]"),
    "priorities": batching("priority_levels: 2 default_priority_level: 1"),
    "priorities-without-default": batching("priority_levels: 2"),
    "priorities-default-above": batching("priority_levels: 2 default_priority_level: 3"),
    "priorities-policy-above": batching(
        "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { max_queue_size: 1 } }"
    ),
    "priorities-policy": batching(
        "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 2 value { max_queue_size: 1 } }"
    ),
    "priorities-policy-0": batching(
        "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 0 value { max_queue_size: 1 } }"
    ),
    "priority-default-without-levels": batching("default_priority_level: 1"),
    "priorities-preserve-order": batching("preserve_ordering: true priority_levels: 2 default_priority_level: 1"),
    "preserve-order": batching("preserve_ordering: true"),
    "sequence-batching": text("dynamic_batching {\n}", "sequence_batching { }"),
    "sequence-batching-oldest": text("dynamic_batching {\n}", "sequence_batching { oldest { max_candidate_sequences: 4 } }"),
    "no-batching": text("dynamic_batching {\n}\n", ""),
    "decoupled": append("model_transaction_policy { decoupled: true }\n"),
    "coupled": append("model_transaction_policy { decoupled: false }\n"),
    "decoupled-with-cache": append("model_transaction_policy { decoupled: true }\nresponse_cache { enable: true }\n"),
    "response-cache": append("response_cache { enable: true }\n"),
    "response-cache-off": append("response_cache { enable: false }\n"),
    "agents": append('model_repository_agents { agents { name: "checksum" } }\n'),
    "operator-library": append('model_operations { op_library_filename: "/opt/operators.so" }\n'),
    "batch-input": append('batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 source_input: "images" }\n'),
    "batch-output": append('batch_output { target_name: "logits" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "images" }\n'),
    "graph-level-7": append("optimization { graph { level: 7 } }\n"),
    "graph-level-2": append("optimization { graph { level: 2 } }\n"),
    "graph-level-minus-1": append("optimization { graph { level: -1 } }\n"),
    "graph-level-minus-2": append("optimization { graph { level: -2 } }\n"),
    "accelerator-gpu": append('optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }\n'),
    "accelerator-cpu": append('optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }\n'),
    "optimization-priority": append("optimization { priority: PRIORITY_MAX }\n"),
    "optimization-cuda": append("optimization { cuda { graphs: true } }\n"),
    "optimization-pinned": append("optimization { input_pinned_memory { enable: false } gather_kernel_buffer_threshold: 2 }\n"),
    "cc-model-filenames": append('cc_model_filenames { key: "7.5" value: "model.onnx" }\n'),
    "operations": append('model_operations { op_library_filename: "nowhere.so" }\n'),
    "model-metrics": append('model_metrics { metric_control { metric_identifier { family: "a" } histogram_options { buckets: 1 } } }\n'),
    "model-metrics-empty": append("model_metrics { }\n"),
    "metric-tags": append('metric_tags { key: "a" value: "b" }\n'),
    "preprocessing-unreadable": parameter("preprocessing", "crop"),
    "threads-abc": parameter("intra_op_thread_count", "abc"),
    "threads-2": parameter("intra_op_thread_count", "2"),
    "threads-empty": parameter("intra_op_thread_count", ""),
    "threads-plus": parameter("intra_op_thread_count", "+2"),
    "threads-space": parameter("intra_op_thread_count", " 2"),
    "threads-zeros": parameter("intra_op_thread_count", "0002"),
    "threads-below-0": parameter("intra_op_thread_count", "-1"),
    "threads-1025": parameter("inter_op_thread_count", "1025"),
    "threads-1024": parameter("inter_op_thread_count", "1024"),
    "joined-rows-0": parameter("max_joined_rows", "0"),
    "joined-rows-1": parameter("max_joined_rows", "1"),
    "joined-rows-65536": parameter("max_joined_rows", "65536"),
    "joined-rows-65537": parameter("max_joined_rows", "65537"),
    "joined-rows-all": parameter("max_joined_rows", "all"),
    "execution-mode-2": parameter("execution_mode", "2"),
    "execution-mode-1": parameter("execution_mode", "1"),
    "spinning-yes": parameter("session.intra_op.allow_spinning", "yes"),
    "spinning-1": parameter("session.inter_op.allow_spinning", "1"),
    "inter-spinning-true": parameter("session.inter_op.allow_spinning", "true"),
    "memory-arena": parameter("enable_mem_arena", "x"),
    "unknown-parameter": parameter("no_such_parameter", "x"),
    "instances-cpu": group(kind=CPU, count=2),
    "instances-gpu": group(kind=GPU, count=1),
    "instances-gpu-0": group(kind=GPU, count=1, gpus=[0]),
    "instances-auto": group(kind=AUTO, count=1),
    "instances-model": group(kind=MODEL, count=1),
    "instances-count-0": group(kind=CPU, count=0),
    "instances-count-below-0": group(kind=CPU, count=-1),
    "instances-cpu-with-gpus": group(kind=CPU, count=1, gpus=[0]),
    "instances-auto-with-gpus": group(kind=AUTO, count=1, gpus=[0]),
    "instances-cpu-twice": both(group(kind=CPU, count=1), group(kind=CPU, count=1)),
    "instances-same-name": both(group(name="one", kind=CPU, count=1), group(name="one", kind=CPU, count=1)),
    "instances-passive": group(kind=CPU, count=1, passive=True),
    "instances-profile": group(kind=CPU, count=1, profile=["0"]),
    "instances-host-policy": group(kind=CPU, count=1, host_policy="nowhere"),
    "instances-rate-limiter": append(
        'instance_group { kind: KIND_CPU count: 1 rate_limiter { resources { name: "R1" count: 4 } priority: 2 } }\n'
    ),
    "instances-secondary": append("instance_group { kind: KIND_CPU count: 1 secondary_devices { kind: KIND_NVDLA device_id: 0 } }\n"),
    "policy-specific-missing": policy("specific { versions: 7 }"),
    "policy-specific-some-missing": policy("specific { versions: [1, 7] }"),
    "policy-specific-none": policy("specific { }"),
    "policy-specific": policy("specific { versions: 1 }"),
    "policy-latest": policy("latest { num_versions: 1 }"),
    "policy-latest-0": policy("latest { num_versions: 0 }"),
    "policy-latest-many": policy("latest { num_versions: 9 }"),
    "policy-empty": policy(""),
    "no-policy": config(lambda message: message.ClearField("version_policy")),
    "two-versions": version("2"),
    "version-duplicated": version("01"),
    "version-zero": version("0"),
    "version-below-0": version("-3"),
    "version-other-folder": version("old"),
    "version-other-folder-number": version("2old"),
    "version-plus": version("+2"),
    "version-is-a-file": lambda folder: (folder / "2").write_text("no folder"),
    "version-empty": lambda folder: (folder / "2").mkdir(),
    "version-dangling-link": dangling_link("2"),
    "version-only-dangling-link": both(lambda folder: (folder / "1").rename(folder / "one"), dangling_link("1")),
    "other-dangling-link": dangling_link("notes.txt"),
    "labels-dangling-link": both(lambda folder: (folder / "labels.txt").unlink(), dangling_link("labels.txt")),
    "dangling-link-in-version": dangling_link("1/notes.txt"),
    "versions-missing": lambda folder: (folder / "1").rename(folder / "one"),
    "version-only-padded": lambda folder: (folder / "1").rename(folder / "01"),
    "version-only-zero": lambda folder: (folder / "1").rename(folder / "0"),
    "version-2-broken": both(version("2"), lambda folder: (folder / "2/model.onnx").write_bytes(b"no ONNX")),
    "version-2-broken-not-served": both(
        version("2"), lambda folder: (folder / "2/model.onnx").write_bytes(b"no ONNX"), policy("specific { versions: 1 }")
    ),
    "file-missing": lambda folder: (folder / "1/model.onnx").unlink(),
    "file-missing-no-digest": both(no_digest(), lambda folder: (folder / "1/model.onnx").unlink()),
    "file-empty-no-digest": both(no_digest(), lambda folder: (folder / "1/model.onnx").write_bytes(b"")),
    "file-changed": lambda folder: (folder / "1/model.onnx").write_bytes(tiny.linear_onnx(99)),
    "file-changed-no-digest": both(no_digest(), lambda folder: (folder / "1/model.onnx").write_bytes(tiny.linear_onnx(99))),
    "file-no-onnx": both(no_digest(), lambda folder: (folder / "1/model.onnx").write_bytes(b"no ONNX")),
    "file-is-a-folder": both(no_digest(), rename_file("other"), lambda folder: (folder / "1/model.onnx").mkdir()),
    "file-other-name": both(rename_file("other.onnx"), append('default_model_filename: "other.onnx"\n')),
    "file-name-of-a-plan": both(rename_file("model.plan"), append('default_model_filename: "model.plan"\n')),
    "file-name-missing": append('default_model_filename: "other.onnx"\n'),
    "file-name-missing-no-digest": both(no_digest(), append('default_model_filename: "other.onnx"\n')),
    "file-name-path": append('default_model_filename: "../1/model.onnx"\n'),
    "file-name-absolute": append('default_model_filename: "/etc/hostname"\n'),
    "file-name-dots": append('default_model_filename: ".."\n'),
    "warmup-zero": warmup("zero_data: true"),
    "warmup-random": warmup("random_data: true"),
    "warmup-file-missing": warmup('input_data_file: "nowhere"'),
    "warmup-file": both(data("one", 64), warmup('input_data_file: "one"')),
    "warmup-file-short": both(data("one", 60), warmup('input_data_file: "one"')),
    "warmup-file-long": both(data("one", 100), warmup('input_data_file: "one"')),
    "warmup-file-path": both(data("one", 64), warmup('input_data_file: "../1/model.onnx"')),
    "warmup-no-data": warmup(""),
    "warmup-other-input": sample("data_type: TYPE_FP32 dims: [1, 4, 4]", key="pictures"),
    "warmup-other-shape": sample("data_type: TYPE_FP32 dims: [1, 5, 5]"),
    "warmup-other-type": sample("data_type: TYPE_INT32 dims: [1, 4, 4]"),
    "warmup-no-type": sample("dims: [1, 4, 4]"),
    "warmup-batch-above": sample("data_type: TYPE_FP32 dims: [1, 4, 4]", "batch_size: 99"),
    "warmup-batch-0": sample("data_type: TYPE_FP32 dims: [1, 4, 4]", "batch_size: 0"),
    "warmup-dims-minus-1": sample("data_type: TYPE_FP32 dims: [1, -1, 4]"),
    "warmup-no-inputs": append('model_warmup { name: "one" batch_size: 1 }\n'),
    "warmup-unnamed": sample("data_type: TYPE_FP32 dims: [1, 4, 4]", name=""),
    "warmup-count": sample("data_type: TYPE_FP32 dims: [1, 4, 4]", "batch_size: 1 count: 2"),
    "config-missing": lambda folder: (folder / "config.pbtxt").unlink(),
    "runtime-field": append('runtime: "libtriton_onnxruntime.so"\n'),
    "runtime-field-other": append('runtime: "libtriton_other.so"\n'),
    "runtime-field-path": append('runtime: "../libtriton_other.so"\n'),
}
# Triton dies of these while it reads the repository (core 2.51).
CRASHING: dict[str, Edit] = {
    "labels-folder": both(lambda folder: (folder / "labels.txt").unlink(), lambda folder: (folder / "labels.txt").mkdir()),
    "warmup-folder": both(warmup('input_data_file: "one"'), lambda folder: (folder / "warmup/one").mkdir(parents=True)),
    "config-is-a-folder": both(lambda folder: (folder / "config.pbtxt").unlink(), lambda folder: (folder / "config.pbtxt").mkdir()),
}
# Edits of a member of an ensemble that bears the name.
LIMITS: dict[str, Edit] = {
    "limit-size": batching("default_queue_policy { max_queue_size: 8 }"),
    "limit-timeout": batching("default_queue_policy { default_timeout_microseconds: 400 }"),
    "limit-override": batching("default_queue_policy { allow_timeout_override: true }"),
    "limit-of-a-level": batching(
        "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 2 value { max_queue_size: 1 } }"
    ),
    "limit-delayed": batching("default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 400 }"),
    "limit-of-delay": batching("max_queue_delay_microseconds: 100"),
}

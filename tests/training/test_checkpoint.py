"""Checkpoints: round trips, and rejection of damaged files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file as numpy_tensors
from safetensors.torch import load_file, save_file

from defensemble_training import (
    CheckpointError,
    ModelSpec,
    TrainingError,
    UncheckedContentWarning,
    build,
    defect_masks,
    load_checkpoint,
    mask_digest,
    read_metadata,
    save_checkpoint,
)
from defensemble_training.checkpoint import check_writable
from defensemble_training.content_digest import content_digest
from defensemble_training.trainer.run_state import STATE_FILE, load_state
from tests.support.facts import assert_facts, raises
from tests.support.untrained import record_of, tiny_spec


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "network.safetensors"
    spec = tiny_spec()
    save_checkpoint(path, build(spec), spec, record_of(spec))
    return path


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        values: dict[str, Any] = json.loads(file.metadata()["defensemble"])
    return values


def rewrite(path: Path, *, tensors: dict[str, torch.Tensor] | None = None, metadata: dict[str, Any] | None = None) -> None:
    """Write a changed checkpoint with safetensors' own writer, with the digest of its content."""
    tensors = load_file(path) if tensors is None else tensors
    metadata = metadata_of(path) if metadata is None else metadata
    if "content_digest" in metadata:
        metadata = {**metadata, "content_digest": content_digest(metadata, tensors)}
    save_file(tensors, path, {"defensemble": json.dumps(metadata)})


@pytest.mark.parametrize("pattern", ["neuron", "channel", "shared"])
@pytest.mark.parametrize("blocks", [(0, 1, 2), (3, 4), ()])
def test_checkpoint_round_trip(tmp_path: Path, pattern: str, blocks: tuple[int, ...]) -> None:
    spec = tiny_spec(pattern=pattern, blocks=blocks, sampling="exact", mask_seed=9)
    record = record_of(spec)
    module = build(spec)
    module(torch.rand(4, 1, 8, 8))  # so that BatchNorm's statistics differ from their initial values
    save_checkpoint(tmp_path / "a.safetensors", module, spec, record)
    back, back_spec, back_record = load_checkpoint(tmp_path / "a.safetensors")

    assert back_spec == spec
    assert back_record == record
    assert not back.training
    state, back_state = module.state_dict(), back.state_dict()
    assert list(back_state) == list(state)
    for name, tensor in state.items():
        assert back_state[name].dtype == tensor.dtype
        assert torch.equal(back_state[name], tensor)
    assert mask_digest(defect_masks(back)) == mask_digest(defect_masks(module))
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(back(images), module.eval()(images))


def test_metadata_is_read_without_tensors(saved: Path) -> None:
    metadata = read_metadata(saved)
    module, spec, record = load_checkpoint(saved)
    assert (metadata.spec, metadata.record) == (spec, record)
    assert metadata.mask_digest == mask_digest(defect_masks(module))


def test_same_network_gives_the_same_bytes(saved: Path) -> None:
    before = saved.read_bytes()
    for _ in range(5):
        save_checkpoint(saved, *load_checkpoint(saved))
        assert saved.read_bytes() == before


def test_masks_are_bool_in_the_file(saved: Path) -> None:
    masks = {name: tensor for name, tensor in load_file(saved).items() if name.endswith(".mask")}
    assert len(masks) == 10
    assert {tensor.dtype for tensor in masks.values()} == {torch.bool}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_module_is_float32_whatever_the_dtype_of_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    spec = tiny_spec()
    module = build(spec).to(dtype)
    save_checkpoint(tmp_path / "a.safetensors", module, spec, record_of(spec))
    back, _, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert {tensor.dtype for tensor in back.parameters()} == {torch.float32}
    assert torch.equal(back.state_dict()["stem.conv.weight"], module.state_dict()["stem.conv.weight"].float())


def test_saving_and_loading_do_not_use_the_global_random_generator(saved: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    save_checkpoint(saved, *load_checkpoint(saved))
    assert torch.equal(torch.rand(3), expected)


def test_missing_file_is_rejected(tmp_path: Path) -> None:
    with raises(CheckpointError, "none.safetensors | defensemble train"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
def test_irregular_files_are_rejected_without_opening(tmp_path: Path, kind: str) -> None:
    for name, error, read in (("a", CheckpointError, load_checkpoint), (STATE_FILE, TrainingError, lambda path: load_state(path.parent))):
        path = tmp_path / name
        if kind == "a FIFO":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        with raises(error, f"{name} | {kind}"):
            read(path)


def test_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="folder"):
        load_checkpoint(tmp_path)


@given(fraction=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_rejected(saved: Path, fraction: float) -> None:
    content = saved.read_bytes()
    cut = saved.with_name("cut.safetensors")
    cut.write_bytes(content[: math.floor(fraction * len(content))])
    with pytest.raises(CheckpointError, match="safetensors"):
        load_checkpoint(cut)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


@given(fraction=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), in_tensors=st.booleans())
def test_flipped_bit_is_detected(saved: Path, fraction: float, bit: int, in_tensors: bool) -> None:
    content = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    first, last = (header, len(content)) if in_tensors else (0, header)
    position = first + int(fraction * (last - first))
    content[position] ^= 1 << bit
    damaged = saved.with_name("damaged.safetensors")
    damaged.write_bytes(content)
    try:
        loaded = load_checkpoint(damaged)
    except CheckpointError:
        return
    assert not in_tensors  # the only undetected flips spell the same metadata differently, such as 1E-5 for 1e-5
    assert loaded[1:] == load_checkpoint(saved)[1:]
    assert metadata_of(damaged) == metadata_of(saved)


@pytest.mark.parametrize("half", [False, True])
def test_digest_error_names_the_file_and_both_digests(tmp_path: Path, half: bool) -> None:
    path = tmp_path / "a.safetensors"
    spec = tiny_spec()
    save_checkpoint(path, build(spec), spec, record_of(spec), half=half)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with raises(CheckpointError, f"{path} | {metadata_of(path)['content_digest']}"):
        load_checkpoint(path)
    assert read_metadata(path).spec == spec


def test_changed_mean_is_detected(saved: Path) -> None:
    metadata = metadata_of(saved)
    metadata["spec"]["mean"] = [0.25]
    save_file(load_file(saved), saved, {"defensemble": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="digest"):
        load_checkpoint(saved)


def test_content_digest_is_as_documented(saved: Path) -> None:
    metadata = metadata_of(saved)
    expected = metadata.pop("content_digest")
    hashed = hashlib.sha256(json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode() + b"\0")
    for name, array in sorted(numpy_tensors(saved).items()):
        hashed.update(f"{name}\0{array.dtype}\0{','.join(map(str, array.shape))}\0".encode() + array.tobytes())
    assert hashed.hexdigest() == expected


def test_file_without_digest_is_read_with_a_warning(saved: Path) -> None:
    metadata = {**metadata_of(saved), "format": 2}
    del metadata["content_digest"]
    module, spec, record = load_checkpoint(saved)
    rewrite(saved, metadata=metadata)
    with pytest.warns(UncheckedContentWarning, match=r"network\.safetensors.*save_checkpoint\(") as warned:
        old, old_spec, old_record = load_checkpoint(saved)
    assert [warning.filename for warning in warned] == [__file__]
    assert (old_spec, old_record) == (spec, record)
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in old.state_dict().items())


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_other_safetensors_files_are_rejected(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata)
    with raises(CheckpointError, "safetensors | defensemble"):
        load_checkpoint(path)


@pytest.mark.parametrize(("other", "fix"), [(4, "newer"), (1, "again"), (None, "Train the network")])
def test_other_format_is_rejected(saved: Path, other: int | None, fix: str) -> None:
    rewrite(saved, metadata={**metadata_of(saved), "format": other})
    with raises(CheckpointError, f"{other} | 2 | 3 | {fix}"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"extra": 1}, "content_digest, format, mask_digest, record, spec | content_digest, extra, format"),
        ({"mask_digest": None}, "mask digest | None"),
        ({"spec": {"arch": "resnet18"}}, "spec | keep, blocks"),
        ({"spec": 5}, "spec | JSON object"),
        ({"record": {}}, "record | data, data_source"),
        ({"record": None}, "record | null"),
    ],
)
def test_damaged_metadata_is_rejected(saved: Path, changes: dict[str, object], facts: str) -> None:
    rewrite(saved, metadata={**metadata_of(saved), **changes})
    for read in (load_checkpoint, read_metadata):
        with raises(CheckpointError, facts):
            read(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accuracy", 1.5),
        ("accuracy", float("nan")),
        ("epochs", -1),
        ("epochs", 2.0),
        ("seconds", "1"),
        ("class_names", ["a"]),
        ("class_names", "abc"),
        ("class_names", [1, 2, 3]),
        ("class_names", ["a", "b", "\ud800"]),
        ("versions", {"torch": 2}),
        ("versions", []),
        ("data", None),
    ],
)
def test_damaged_record_is_rejected(saved: Path, field: str, value: object) -> None:
    metadata = metadata_of(saved)
    metadata["record"][field] = value
    rewrite(saved, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"{field} of a training record"):
        load_checkpoint(saved)


def test_metadata_that_is_not_json_is_rejected(saved: Path) -> None:
    save_file(load_file(saved), saved, {"defensemble": "{"})
    with pytest.raises(CheckpointError, match="metadata"):
        load_checkpoint(saved)


def test_missing_and_unexpected_tensors_are_rejected(saved: Path) -> None:
    tensors = load_file(saved)
    tensors["block1.0.extra"] = tensors.pop("stem.defect.mask")
    rewrite(saved, tensors=tensors)
    with raises(CheckpointError, "stem.defect.mask | block1.0.extra"):
        load_checkpoint(saved)


def test_spec_of_another_width_is_rejected(saved: Path) -> None:
    metadata = metadata_of(saved)
    metadata["spec"]["width"] = 4
    rewrite(saved, metadata=metadata)
    with raises(CheckpointError, "floating (2 | floating (4"):
        load_checkpoint(saved)


@pytest.mark.parametrize("changes", [{"width": 4096}, {"input_shape": [1, 4096, 4096]}, {"width": 4096, "input_shape": [1, 4096, 4096]}])
def test_spec_of_a_network_larger_than_memory_is_rejected(saved: Path, changes: dict[str, object]) -> None:
    metadata = metadata_of(saved)
    metadata["spec"].update(changes)
    rewrite(saved, metadata=metadata)
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))\n"
        f"from defensemble_training import load_checkpoint\nload_checkpoint({str(saved)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.splitlines()[-1]
    assert_facts(last, "CheckpointError: | spec")


def test_mask_of_another_dtype_is_rejected(saved: Path) -> None:
    tensors = load_file(saved)
    tensors["stem.defect.mask"] = tensors["stem.defect.mask"].float()
    rewrite(saved, tensors=tensors)
    with raises(CheckpointError, "stem.defect.mask | floating (2, 8, 8) | bool (2, 8, 8)"):
        load_checkpoint(saved)


@settings(max_examples=20)
@given(data=st.data())
def test_flipped_neuron_is_detected(saved: Path, data: st.DataObject) -> None:
    tensors = load_file(saved)
    name = data.draw(st.sampled_from(sorted(name for name in tensors if name.endswith(".mask"))))
    flat = tensors[name].view(-1)
    position = data.draw(st.integers(0, flat.numel() - 1))
    flat[position] = ~flat[position]
    tampered = saved.with_name("tampered.safetensors")
    tampered.write_bytes(saved.read_bytes())
    rewrite(tampered, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"masks .*[0-9a-f]{64}\b.*[0-9a-f]{64}\b"):
        load_checkpoint(tampered)


@pytest.mark.parametrize("change", [{"mask_seed": 1}, {"keep": 0.4}, {"sampling": "exact"}])
def test_spec_with_other_masks_is_rejected(saved: Path, change: dict[str, object]) -> None:
    metadata = metadata_of(saved)
    metadata["spec"].update(change)
    rewrite(saved, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"masks .*[0-9a-f]{8}.* spec .*[0-9a-f]{8}"):
        load_checkpoint(saved)


def test_module_that_does_not_match_the_spec_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    spec = tiny_spec()
    for other in (tiny_spec(width=4), tiny_spec(blocks=(0,)), tiny_spec(keep=1.0)):
        with pytest.raises(CheckpointError, match="network of the spec"):
            save_checkpoint(path, build(other), spec, record_of(spec))
    with pytest.raises(CheckpointError, match=r"masks .*[0-9a-f]{8}.*spec"):
        save_checkpoint(path, build(tiny_spec(mask_seed=1)), spec, record_of(spec))
    with raises(CheckpointError, "2 class names | 3 classes"):
        save_checkpoint(path, build(spec), spec, record_of(spec, class_names=("a", "b")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", ["save", "check"])
def test_unwritable_paths_are_rejected(tmp_path: Path, write: str) -> None:
    spec = tiny_spec()

    def write_to(path: Path) -> None:
        if write == "save":
            save_checkpoint(path, build(spec), spec, record_of(spec))
        else:
            check_writable(path)

    with raises(CheckpointError, "nowhere | mkdir -p"):
        write_to(tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(CheckpointError, match="folder"):
        write_to(tmp_path)
    long = tmp_path / ("x" * 250)
    with pytest.raises(OSError, match="too long") as caught:
        write_to(long)
    assert caught.value.filename == str(long)
    assert list(tmp_path.iterdir()) == []


def test_folder_without_permission_is_rejected() -> None:
    # Not tmp_path, whose parents only its owner can enter. Root can write everywhere, so the child changes its user.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        target = Path(folder) / "a.safetensors"
        code = (
            "import os\n"
            "from defensemble_training.checkpoint import check_writable\n"
            "os.geteuid() == 0 and os.setuid(65534)\n"
            f"check_writable({str(target)!r})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert f"PermissionError: [Errno 13] Permission denied: '{target}'" in done.stderr
        assert list(Path(folder).iterdir()) == []


def test_full_disk_leaves_only_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()

    # The child sets the limit itself: a `preexec_fn` runs between fork and exec, where gRPC's threads of this process can crash it.
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from defensemble_training import load_checkpoint, save_checkpoint\n"
        f"path = {str(saved)!r}\n"
        "try:\n    save_checkpoint(path, *load_checkpoint(path))\nexcept OSError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"[Errno 27] File too large: '{saved}'\n", done.stderr
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_errors_can_be_pickled() -> None:
    import pickle

    from defensemble_training import DataError, SpecError, TrainingError

    for kind in (TrainingError, SpecError, DataError, CheckpointError):
        error = pickle.loads(pickle.dumps(kind("what")))
        assert type(error) is kind
        assert str(error) == "what"


def test_file_metadata_is_as_documented(saved: Path) -> None:
    assert ModelSpec.from_json(json.dumps(metadata_of(saved)["spec"])) == tiny_spec()
    assert list(metadata_of(saved)) == ["format", "spec", "mask_digest", "record", "content_digest"]

"""Things that are wrong in known ways: checkpoints, folders of programs, disks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny import content as content

KEY = "defensemble"


def untrained_checkpoint(path: Path, mask_seed: int = 0) -> Path:
    """A checkpoint of a network of width 2 for digits at 8x8, which nobody trained: whole, and exported in seconds."""
    from defensemble_training import ModelSpec, TrainingRecord, build, load_dataset, save_checkpoint

    digits = load_dataset("digits", 8)
    spec = ModelSpec(
        arch="resnet18",
        keep=0.5,
        blocks=(0, 1, 2),
        mask_seed=mask_seed,
        width=2,
        mean=digits.mean,
        std=digits.std,
        num_classes=10,
        input_shape=digits.input_shape,
    )
    record = TrainingRecord.untrained(digits.class_names, data="digits")
    save_checkpoint(path, build(spec), spec, record)
    return path


def broken_checkpoint(kind: str, path: Path) -> Path:
    """A file that is not a complete checkpoint, damaged as `kind` names."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    if kind == "missing":
        return path
    if kind == "a folder":
        path.mkdir()
        return path
    if kind == "text":
        path.write_text("these are not the weights that you are looking for\n" * 99)
        return path
    untrained_checkpoint(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
        return path
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if kind == "without our metadata":
        save_file(tensors, path, {"format": "pt"})
        return path
    assert kind == "with other masks"
    name = next(name for name, tensor in tensors.items() if tensor.dtype == np.bool_)
    tensors[name] = ~tensors[name]
    save_file(tensors, path, metadata)
    return path


@contextmanager
def mounted(place: Path, *arguments: str | Path) -> Iterator[Path]:
    """What `mount ARGUMENTS... PLACE` mounts; the test is skipped where this user may not mount."""
    if shutil.which("mount") is None:
        pytest.skip("nothing can be mounted here: there is no `mount`")
    place.mkdir()
    done = subprocess.run(["mount", *arguments, place], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this user may not mount (root may): {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def small_disk(place: Path) -> AbstractContextManager[Path]:
    """A file system of 512 KiB at `place`."""
    return mounted(place, "-t", "tmpfs", "-o", "size=512k", "tmpfs")


def bound(origin: Path, place: Path) -> AbstractContextManager[Path]:
    """`origin` seen at `place` too, as a container sees a folder of its host's: one file system, two mounts."""
    return mounted(place, "--bind", origin)


def fill(disk: Path, leave: int) -> None:
    """Fill a disk but for `leave` bytes, with a file `filler`."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(free - leave))
    assert shutil.disk_usage(disk).free == leave


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def without_programs(folder: Path) -> dict[str, str]:
    """Changes to an environment that leave no program, no C++ compiler and no kept build to be found."""
    folder.mkdir()
    return {"PATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "CXX": ""}


def python_path(folder: Path) -> str:
    """A PYTHONPATH on which a folder is before everything else."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])

"""The cache of decoded images is written once and atomically."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from defensemble_training import DataError, load_dataset
from tests.support.facts import assert_facts, raises
from tests.support.written import pictures, write_class_folders, write_split, write_tables

LOAD_WITH_PROGRESS = """
import sys
from defensemble_training import load_dataset
print(load_dataset("folder", int(sys.argv[2]), data_dir=sys.argv[1], on_progress=lambda *step: print(*step, flush=True)).digest)
"""
LOAD = "import sys; from defensemble_training import load_dataset as l; print(l('folder', int(sys.argv[2]), data_dir=sys.argv[1]).digest)"


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def test_images_are_decoded_once_and_then_memory_mapped(tmp_path: Path, cache: Path) -> None:
    write_tables(tmp_path / "set")
    progress: list[tuple[str, int, int]] = []
    first = load_dataset("folder", data_dir=tmp_path / "set", on_progress=lambda *step: progress.append(step))
    assert progress == [("decoding train images", 12, 12), ("decoding test images", 6, 6)]
    second = load_dataset("folder", data_dir=tmp_path / "set", on_progress=lambda *step: progress.append(step))
    assert len(progress) == 2
    (entry,) = entries(cache)
    assert sorted(path.name for path in (cache / entry).iterdir()) == [
        *("meta.json", "test.npy", "test_labels.npy", "train.npy", "train_labels.npy"),
    ]
    for data in (first, second):
        assert isinstance(data.train.pixels.base, np.memmap)
        assert not data.train.pixels.flags.writeable
        assert (data.digest, data.mean, data.source) == (first.digest, first.mean, first.source)
    assert len(first.digest) == 16


def test_changed_files_are_decoded_again(tmp_path: Path, cache: Path) -> None:
    write_split(tmp_path / "set")
    before = load_dataset("folder", data_dir=tmp_path / "set")
    (tmp_path / "set/train/ant/000.png").write_bytes((tmp_path / "set/train/bee/001.png").read_bytes())
    after = load_dataset("folder", data_dir=tmp_path / "set")
    assert before.digest != after.digest
    assert load_dataset("folder", 16, data_dir=tmp_path / "set").digest not in (before.digest, after.digest)
    assert len(entries(cache)) == 3


def test_images_are_decoded_again_if_the_rules_change(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path / "set")
    for rules in ("1", "2", "2"):
        monkeypatch.setattr("defensemble_training.data.cache.RULES", rules)
        load_dataset("folder", data_dir=tmp_path / "set")
    assert len(entries(cache)) == 2


def test_folders_with_equal_names_sizes_and_times_are_distinguished(tmp_path: Path, cache: Path) -> None:
    def write(folder: Path, seed: int) -> None:
        for split, base in (("train", seed), ("test", seed + 1)):
            write_class_folders(folder / split, pictures(3, seed=base), [0, 1, 2], ".bmp")
        for path in folder.rglob("*.bmp"):
            os.utime(path, ns=(10**18, 10**18))

    write(tmp_path / "one", 1)
    write(tmp_path / "other", 5)
    first, second = (load_dataset("folder", data_dir=tmp_path / name) for name in ("one", "other"))
    assert first.digest != second.digest
    (tmp_path / "link").symlink_to("one")
    assert load_dataset("folder", data_dir=tmp_path / "link").digest == first.digest
    assert len(entries(cache)) == 2
    write(tmp_path / "one", 5)  # in place: only the change times of the inodes differ
    assert load_dataset("folder", data_dir=tmp_path / "one").digest == second.digest
    assert len(entries(cache)) == 3


@pytest.mark.parametrize("damage", ["short", "gone", "meta", "pickle", "labels"])
def test_damaged_entry_is_written_again(tmp_path: Path, cache: Path, damage: str) -> None:
    write_tables(tmp_path / "set")
    digest = load_dataset("folder", data_dir=tmp_path / "set").digest
    (entry,) = entries(cache)
    if damage == "short":
        os.truncate(cache / entry / "train.npy", 500)
    elif damage == "gone":
        (cache / entry / "test_labels.npy").unlink()
    elif damage == "meta":
        (cache / entry / "meta.json").write_text(json.dumps({"digest": "0" * 16}))
    elif damage == "labels":
        np.save(cache / entry / "train_labels.npy", np.zeros(5, np.int64))
    else:
        np.save(cache / entry / "train_labels.npy", np.array([print], dtype=object), allow_pickle=True)
    assert load_dataset("folder", data_dir=tmp_path / "set").digest == digest
    assert entries(cache) == [entry]


def test_failure_leaves_no_files(tmp_path: Path, cache: Path) -> None:
    write_tables(tmp_path / "set")

    def interrupt(task: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_dataset("folder", data_dir=tmp_path / "set", on_progress=interrupt)
    assert entries(cache) == []


def test_waiting_process_takes_over_from_a_killed_one(tmp_path: Path, cache: Path) -> None:
    write_tables(tmp_path / "set", n_train=300, size=64)
    script = f"import time; from defensemble_training import load_dataset as l; l('folder', 8, data_dir={str(tmp_path / 'set')!r}, "
    script += "on_progress=lambda *step: (print(*step, flush=True), time.sleep(60)))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith("decoding")
        (part,) = entries(cache)
        assert part.startswith(".")
        waiting = subprocess.Popen(
            [sys.executable, "-c", LOAD_WITH_PROGRESS, str(tmp_path / "set"), "8"], stdout=subprocess.PIPE, text=True
        )
        assert waiting.stdout is not None
        assert_facts(waiting.stdout.readline(), "waiting | another process | 0 1")
        holder.send_signal(signal.SIGKILL)
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert output.splitlines()[-1] == load_dataset("folder", 8, data_dir=tmp_path / "set").digest
    assert entries(cache) == [part.removeprefix(".").removesuffix(".part")]


def test_concurrent_processes_decode_once(tmp_path: Path, cache: Path) -> None:
    write_tables(tmp_path / "set", n_train=300, size=64)
    started = [
        subprocess.Popen([sys.executable, "-c", LOAD, str(tmp_path / "set"), "16"], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert len(entries(cache)) == 1


def test_full_disk_leaves_no_files(tmp_path: Path, cache: Path) -> None:
    write_tables(tmp_path / "set", n_train=60, size=32)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); " + LOAD  # so that a real write fails
    done = subprocess.run([sys.executable, "-c", limited, str(tmp_path / "set"), "32"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert_facts(done.stderr, "File too large | 1,251,856 bytes")
    assert entries(cache) == []
    assert len(load_dataset("folder", 32, data_dir=tmp_path / "set").train) == 60


def test_small_disk_is_rejected_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(small))
        write_tables(tmp_path / "set")
        with raises(DataError, "1,052,176 bytes | small | 524,288"):
            load_dataset("folder", data_dir=tmp_path / "set", on_progress=lambda *step: pytest.fail("it decoded"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_unwritable_cache_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("words")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write_tables(tmp_path / "set")
    with pytest.raises(DataError, match="file/defensemble/datasets"):
        load_dataset("folder", data_dir=tmp_path / "set")

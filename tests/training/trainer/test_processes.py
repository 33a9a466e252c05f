"""Training with two processes on the CPU equals training with one, started by Fabric and by torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from defensemble_training import SpecError
from defensemble_training.trainer.train import _check_batches
from tests.support.checkout import ROOT
from tests.support.facts import assert_facts

# A network without BatchNorm, because its statistics are not synchronised on CPUs.
SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
from defensemble_training import Compute, RunFolder, recipe_from_preset, train_module
from tests.support.bars import bars_dataset

def build_module():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

recipe = recipe_from_preset("fast", epochs=5, batch_size=16, held_out=9)
compute = Compute("cpu", int(sys.argv[2]), threads=1)
run = RunFolder(Path(sys.argv[1]), overwrite=True, save_every_s=0.0)
module, record = train_module(build_module, bars_dataset(), recipe=recipe, compute=compute, run=run)
torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
"""


def train_in_processes(folder: Path, processes: int, *, torchrun: bool = False) -> tuple[np.ndarray, np.ndarray]:
    script = folder.parent / f"{folder.name}.py"
    script.write_text(SCRIPT)
    python = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if torchrun else [sys.executable]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    command = [*python, str(script), str(folder), "1" if torchrun else str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["event"] == "epoch"]
    assert len(epochs) == 5
    return np.array([row["loss"] for row in epochs]), np.array([[row["train_accuracy"], row["held_out_accuracy"]] for row in epochs])


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    loss, accuracies = train_in_processes(tmp_path / "one", 1)
    losses, accuracies_of_two = train_in_processes(tmp_path / "two", 2)
    assert losses == pytest.approx(loss, rel=1e-4)
    assert accuracies_of_two == pytest.approx(accuracies, abs=1e-9)
    assert loss[-1] < 0.7 * loss[0], "without learning, equal curves would prove little"


def test_each_process_needs_two_images_per_step() -> None:
    _check_batches(1438, 5, 2)
    with pytest.raises(SpecError, match=r"each of 2 processes must have at least 2 images .* batches of 2 of the 1438 "):
        _check_batches(1438, 2, 2)


@pytest.mark.slow
def test_too_many_processes_for_the_batch_size_are_rejected(tmp_path: Path) -> None:
    options = ["--processes", "2", "--batch-size", "2", "--width", "1", "--threads", "1"]
    command = [sys.executable, "-m", "defensemble", "train", *options, "a.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert_facts(done.stderr, "2 processes | BatchNorm | batches of 2 | 1438")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun_sets_the_number_of_processes(tmp_path: Path) -> None:
    loss, _ = train_in_processes(tmp_path / "one", 1)
    losses, _ = train_in_processes(tmp_path / "two", 2, torchrun=True)
    assert losses == pytest.approx(loss, rel=1e-4)


def test_ctrl_c_ends_the_run_and_its_processes_while_torch_waits_for_them() -> None:
    """The handler stands for one that Python cannot run, because the main thread waits in native code."""
    script = """
import signal, subprocess, sys, time
from defensemble_training.trainer.compute import _exit_on_sigint
def handler(number, frame): pass
handler.raises_keyboard_interrupt = True
signal.signal(signal.SIGINT, handler)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
with _exit_on_sigint(lambda: [child]):
    print("ready", flush=True)
    while True:
        time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)  # returns once the child has ended too, which holds the pipe
    assert (process.returncode, stderr) == (130, "")

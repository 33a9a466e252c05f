"""Where a network is trained: CPU or GPUs, number of processes, precision. Lightning Fabric runs it.

Fabric rather than Accelerate: a function creates and drops a Fabric object, whereas Accelerate keeps its state in singletons that two runs
of one process (a demo, a test) would share. Fabric leaves the loop, the data and the checkpoints to us, and depends on six small packages.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import SpecError, TrainingError
from ..validation import check_choice, checked_integer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

DEVICES = ("auto", "cpu", "gpu")
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Compute:
    """Device, processes and precision of a run.

    Attributes:
        device: `cpu`, `gpu` (CUDA), or `auto`: a GPU if there is one.
        processes: Processes on this machine, one per GPU; on CPUs they communicate with gloo. Ignored under `torchrun`, which sets it.
        nodes: Number of machines. More than one needs `torchrun` or the environment variables that it sets.
        precision: `fp32` or `bf16` (autocast; weights stay float32). None: `bf16` on GPUs, else `fp32`.
        channels_last: Whether activations are channels-last in memory. None: only on GPUs. True is an error on CPUs.
        compile: Whether to fuse the network with `torch.compile`. Takes about a minute, and on CPUs a C++ compiler.
        threads: CPU threads per process. None: torch's default.

    Raises:
        SpecError: A value is out of range.

    Example:
        >>> module, record = train(spec, dataset, compute=Compute("gpu", processes=2))
    """

    device: str = "auto"
    processes: int = 1
    nodes: int = 1
    precision: str | None = None
    channels_last: bool | None = None
    compile: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        check_choice("device", self.device, DEVICES)
        checked_integer("processes", self.processes, minimum=1, maximum=1024)
        checked_integer("nodes", self.nodes, minimum=1, maximum=1024)
        if self.precision is not None:
            check_choice("precision", self.precision, tuple(PRECISIONS))
        if self.channels_last and not self.on_gpu:
            # torch 2.13's oneDNN: "double free or corruption" or a segmentation fault within an epoch, with two threads and 8 channels.
            raise SpecError("channels_last=True needs a GPU: it crashes torch 2.13 on CPUs. Omit it (--no-channels-last).")
        if self.threads is not None:
            checked_integer("threads", self.threads, minimum=1, maximum=1024)

    @property
    def on_gpu(self) -> bool:
        """Whether the run uses a GPU on this machine."""
        return self.device == "gpu" or (self.device == "auto" and torch.cuda.is_available())

    @property
    def chosen_precision(self) -> str:
        """The precision of the run: `fp32` or `bf16`."""
        return self.precision or ("bf16" if self.on_gpu else "fp32")

    def fabric(self) -> Fabric:
        """Start the processes of the run, and return the Fabric object that connects them.

        Raises:
            SpecError: This machine has fewer GPUs than processes.
        """
        from lightning_fabric import Fabric

        processes, nodes = self.processes, self.nodes
        if "TORCHELASTIC_RUN_ID" in os.environ:  # under torchrun
            processes = int(os.environ["LOCAL_WORLD_SIZE"])
            nodes = int(os.environ["WORLD_SIZE"]) // processes
        gpus = torch.cuda.device_count()
        if self.on_gpu and gpus < processes:
            if not gpus:
                raise SpecError("device is 'gpu', but torch finds no GPU on this machine. Use device='cpu' (--device cpu).")
            raise SpecError(f"processes must be at most {gpus}, the number of GPUs of this machine, got {processes}")
        fabric = Fabric(
            accelerator="cuda" if self.on_gpu else "cpu",
            devices=processes,
            num_nodes=nodes,
            strategy="ddp" if processes * nodes > 1 else "auto",
            precision=PRECISIONS[self.chosen_precision],  # type: ignore[arg-type]
        )
        with _exit_on_sigint(lambda: getattr(fabric.strategy.launcher, "procs", [])):
            fabric.launch()
        return fabric

    def uses_channels_last(self) -> bool:
        """Whether activations are channels-last in memory."""
        return self.on_gpu if self.channels_last is None else self.channels_last


@contextmanager
def _exit_on_sigint(children: Callable[[], Sequence[subprocess.Popen[bytes]]]) -> Iterator[None]:
    """End the command and its `children` with status 130 on Ctrl-C, even while torch waits for them.

    Python runs a handler of SIGINT only after that wait, up to 30 minutes. Fabric kills this process when an interrupted child ends first,
    which gives the status 137. A thread gets the signal instead. Without the handler of the `defensemble` script, nothing changes.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not getattr(handler, "raises_keyboard_interrupt", False) or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        if os.read(reader, 1) == bytes([signal.SIGINT]):
            for child in children():
                child.kill()
            os._exit(128 + signal.SIGINT)

    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=wait, name="exit-on-sigint", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(writer)  # ends the thread
        watcher.join()
        os.close(reader)


def is_first_process() -> bool:
    """Return whether this process prints and writes for the run, by the variables that `torchrun` and Fabric's launcher set."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


@contextmanager
def translate_out_of_memory(batch_size: int) -> Iterator[None]:
    """Raise out-of-memory errors as a `TrainingError` that names the options that need less memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        # torch's CPU allocator raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"out of memory ({str(error).splitlines()[0][:200]}) with a batch size of {batch_size}. "
            "Use a smaller batch_size (--batch-size), a smaller width (--width), or precision bf16 (--precision bf16)."
        ) from error

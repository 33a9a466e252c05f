"""On what a network is trained: processor or GPUs, how many processes, which precision. Lightning Fabric does the work.

Fabric, and not Accelerate: it is an object that a function makes and drops, where Accelerate keeps its state in singletons that two runs of
one process (a demo, a test) share; it leaves the loop, the data and the checkpoints to us; and it brings six small packages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    """Where and how the arithmetic of a run is done.

    Attributes:
        device: `cpu`, `gpu` (CUDA), or `auto`: a GPU where there is one.
        processes: on this machine, one a GPU; on a processor they talk by gloo. Under `torchrun` its own number is taken.
        nodes: machines; more than one needs `torchrun`, or the environment variables that it sets.
        precision: `fp32`, `bf16` (autocast; weights stay float32), or None: `bf16` on GPUs, else `fp32`.
        channels_last: memory format of the activations; None: on GPUs; True is refused elsewhere.
        compile: whether `torch.compile` fuses the network; needs a C++ compiler on a processor, and a minute.
        threads: of the processor, a process; None leaves torch's own choice.

    Raises:
        SpecError: a value outside of its range.
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
            raise SpecError("channels_last=True is for GPUs: on a processor it has crashed torch 2.13; leave it out (--no-channels-last)")
        if self.threads is not None:
            checked_integer("threads", self.threads, minimum=1, maximum=1024)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is meant, on this machine."""
        return self.device == "gpu" or (self.device == "auto" and torch.cuda.is_available())

    @property
    def chosen_precision(self) -> str:
        """`fp32` or `bf16`."""
        return self.precision or ("bf16" if self.on_gpu else "fp32")

    def fabric(self) -> Fabric:
        """Start the run's processes, and return what connects this one to the others.

        Raises:
            SpecError: there are not that many GPUs here.
        """
        from lightning_fabric import Fabric

        processes, nodes = self.processes, self.nodes
        if "TORCHELASTIC_RUN_ID" in os.environ:  # under torchrun
            processes = int(os.environ["LOCAL_WORLD_SIZE"])
            nodes = int(os.environ["WORLD_SIZE"]) // processes
        gpus = torch.cuda.device_count()
        if self.on_gpu and gpus < processes:
            if not gpus:
                raise SpecError("device='gpu' was asked for, and torch finds no GPU on this machine; take device='cpu' (--device cpu)")
            raise SpecError(f"processes must be at most the GPUs of this machine, {gpus}, got {processes}; take fewer")
        fabric = Fabric(
            accelerator="cuda" if self.on_gpu else "cpu",
            devices=processes,
            num_nodes=nodes,
            strategy="ddp" if processes * nodes > 1 else "auto",
            precision=PRECISIONS[self.chosen_precision],  # type: ignore[arg-type]
        )
        fabric.launch()
        return fabric

    def uses_channels_last(self) -> bool:
        """Whether activations are channels-last in memory."""
        return self.on_gpu if self.channels_last is None else self.channels_last


def is_first_process() -> bool:
    """Whether this process is the one of a run that prints and writes, by what `torchrun` or Fabric's launcher told it."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


@contextmanager
def translate_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn an end of memory into a `TrainingError` that names the options that lower the need."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        # The processor's allocator has no class of its own for it.
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"memory ended ({str(error).splitlines()[0][:200]}) with a batch size of {batch_size}; "
            "take a lower batch_size (--batch-size), a lower width (--width), or precision bf16 (--precision bf16)"
        ) from error

"""What an interrupted run goes on from: one safetensors file with weights, momentum and, as JSON in its metadata, everything else.

Nothing random is in it: what a step draws follows from the seed and the step (`augmentation.py`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from defensemble_images.regular_files import irregular_file_kind

from ..atomic_write import write_atomic
from ..content_digest import DIGEST_KEY, content_digest, digest_mismatch
from ..errors import TrainingError, UncheckedContentWarning

FORMAT = 2
_FORMAT_WITHOUT_DIGEST = 1
METADATA_KEY = "defensemble.run"
STATE_FILE = "state.safetensors"
LAST_GOOD_FILE = "last_good.safetensors"
# The fields of a `RunState` that are kept as JSON; the others are tensors.
_DESCRIBED = ("identity", "step", "seconds", "sums", "history", "best_accuracy")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its state, log and learning curve.

    Attributes:
        path: the folder; made where it does not exist.
        resume: go on where an interrupted run of the same arguments stopped, or start where there is none.
        anew: start even where an interrupted run was left.
        save_every_s: seconds between two states within an epoch; one is written after each epoch anyway.
        tensorboard: folder for TensorBoard's own log, where one is wanted.
    """

    path: Path
    resume: bool = False
    overwrite: bool = False
    save_every_s: float = 300.0
    tensorboard: Path | None = None

    @property
    def is_interrupted(self) -> bool:
        """Whether the folder holds the state of a run that did not finish."""
        return (self.path / STATE_FILE).exists()

    def own_files(self) -> set[Path]:
        """Names that a run writes under in its folder, resolved."""
        return {(self.path / name).resolve() for name in (STATE_FILE, LAST_GOOD_FILE)}

    def finish(self) -> None:
        """Remove the state: what it was kept for is done. The log and the learning curve stay."""
        (self.path / STATE_FILE).unlink(missing_ok=True)


@dataclass
class RunState:
    """Where a run stands."""

    # What makes the run this run, as values for JSON: spec, recipe, seed, data. A run goes on with an equal one only.
    identity: dict[str, Any]
    step: int = 0  # steps done
    seconds: float = 0.0  # that these took
    sums: tuple[float, int, int] = (0.0, 0, 0)  # of the epoch that was begun: loss, images right, images seen
    history: list[dict[str, Any]] = field(default_factory=list)  # one mapping an epoch that is done, with the keys of a line of the log
    best_accuracy: float | None = None  # on the held-out images, of the weights in `best`; None where nothing is chosen by them
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)  # the module's state_dict
    momentum: Mapping[str, torch.Tensor] = field(default_factory=dict)  # of SGD, by parameter; empty before the first step
    best: Mapping[str, torch.Tensor] = field(default_factory=dict)  # the best state_dict so far, where one is chosen


def save_state(folder: Path, state: RunState) -> None:
    """Write a state, durably: at every moment the old one is there, or the whole new one."""
    groups = {"weights": state.weights, "momentum": state.momentum, "best": state.best}
    tensors = {f"{group}/{name}": tensor.detach().cpu().contiguous() for group, named in groups.items() for name, tensor in named.items()}
    described = {"format": FORMAT, **{name: getattr(state, name) for name in _DESCRIBED}}
    described[DIGEST_KEY] = content_digest(described, tensors)
    write_atomic(folder / STATE_FILE, save(tensors, {METADATA_KEY: json.dumps(described)}))


def load_state(folder: Path) -> RunState | None:
    """Read the state of a run; None where there is none. One without a digest, of an older version, causes an `UncheckedContentWarning`.

    Raises:
        TrainingError: the file is damaged, or of another version.
        OSError: it cannot be read.
    """
    path = folder / STATE_FILE
    mend = "remove it to start the run anew"
    try:
        kind = irregular_file_kind(path.stat().st_mode)
        if kind is not None:
            raise TrainingError(f"{path} is {kind}, expected the state of a run; {mend}")
        # By its descriptor: safetensors opens the file twice, between which a run that goes on may rename a new one to this path.
        with path.open("rb") as opened, safe_open(f"/proc/self/fd/{opened.fileno()}", framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            got = described.get("format") if isinstance(described, dict) else None
            if got not in (FORMAT, _FORMAT_WITHOUT_DIGEST):
                raise TrainingError(f"{path} is no state of a run that this version reads (format {got!r}, expected {FORMAT}); {mend}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            if got != FORMAT:
                warnings.warn(
                    f"{path} is of an older version and carries no digest of its content, so damage cannot be noticed; the run's next "
                    "state carries one",
                    UncheckedContentWarning,
                    stacklevel=2,
                )
            elif (mismatch := digest_mismatch(described, tensors)) is not None:
                raise TrainingError(f"{path} is damaged or was changed: {mismatch}; {mend}")
            groups: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "momentum": {}, "best": {}}
            for key, tensor in tensors.items():
                group, _, name = key.partition("/")
                groups[group][name] = tensor
            values: dict[str, Any] = {name: described[name] for name in _DESCRIBED}
            loss, right, seen = values["sums"]
            return RunState(**{**values, **groups, "sums": (float(loss), int(right), int(seen))})
    except FileNotFoundError:
        return None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} cannot be read as the state of a run ({error}): it is damaged; {mend}") from error


def check_same_run(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise a `TrainingError` that names every value that differs, unless a run goes on as it began."""
    different = _differences("", found, wanted)
    if different:
        format_names = "; ".join(f"{name}: the run has {old!r}, asked for was {new!r}" for name, old, new in different)
        raise TrainingError(
            f"the run in {folder} was begun otherwise: {format_names}. Ask for the same to resume it, or start anew with --force"
        )


def _differences(name: str, found: Any, wanted: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        keys = [*found, *(key for key in wanted if key not in found)]
        return [one for key in keys for one in _differences(f"{name}.{key}".lstrip("."), found.get(key), wanted.get(key))]
    return [] if found == wanted else [(name, found, wanted)]

"""Save and load the state of a run, to resume it: one safetensors file with weights and momentum, and everything else as JSON metadata.

The state contains no random generator, because the random numbers of a step depend only on the seed and the step (`augmentation.py`).
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
# The fields of `RunState` that are saved as JSON. The others are tensors.
_JSON_FIELDS = ("identity", "step", "seconds", "sums", "history", "best_accuracy")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run's state, log and learning curve.

    Attributes:
        path: The folder, which is created if necessary.
        resume: Whether to resume an interrupted run with the same arguments. Without such a run, a new one starts.
        overwrite: Whether to start a new run even if the folder holds an interrupted one.
        save_every_s: Seconds between two saved states within an epoch. A state is also saved after each epoch.
        tensorboard: Folder for a TensorBoard log, or None.

    Example:
        >>> module, record = train(spec, dataset, run=RunFolder(Path("digits.run"), resume=True))
    """

    path: Path
    resume: bool = False
    overwrite: bool = False
    save_every_s: float = 300.0
    tensorboard: Path | None = None

    @property
    def is_interrupted(self) -> bool:
        """Whether the folder holds the state of an unfinished run."""
        return (self.path / STATE_FILE).exists()

    def own_files(self) -> set[Path]:
        """Return the resolved paths of the files that a run writes in its folder."""
        return {(self.path / name).resolve() for name in (STATE_FILE, LAST_GOOD_FILE)}

    def finish(self) -> None:
        """Remove the state of a completed run. The log and the learning curve remain."""
        (self.path / STATE_FILE).unlink(missing_ok=True)


@dataclass
class RunState:
    """The state of a run after a step."""

    identity: dict[str, Any]  # spec, recipe, seed and data as JSON values; a run is only resumed with equal ones
    step: int = 0  # completed steps
    seconds: float = 0.0  # duration of the completed steps
    sums: tuple[float, int, int] = (0.0, 0, 0)  # of the current epoch: loss, correct images, all images
    history: list[dict[str, Any]] = field(default_factory=list)  # one mapping per completed epoch, with the keys of its log line
    best_accuracy: float | None = None  # held-out accuracy of the weights in `best`; None if the best epoch is not selected
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)  # the module's state_dict
    momentum: Mapping[str, torch.Tensor] = field(default_factory=dict)  # of SGD, by parameter; empty before the first step
    best: Mapping[str, torch.Tensor] = field(default_factory=dict)  # state_dict of the best epoch, if one is selected


def save_state(folder: Path, state: RunState) -> None:
    """Save a state, atomically and durably."""
    groups = {"weights": state.weights, "momentum": state.momentum, "best": state.best}
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous() for group, members in groups.items() for name, tensor in members.items()
    }
    values = {"format": FORMAT, **{name: getattr(state, name) for name in _JSON_FIELDS}}
    values[DIGEST_KEY] = content_digest(values, tensors)
    write_atomic(folder / STATE_FILE, save(tensors, {METADATA_KEY: json.dumps(values)}))


def load_state(folder: Path) -> RunState | None:
    """Load the state of a run. Return None if there is none.

    A state of an older version, which has no digest, loads with an `UncheckedContentWarning`.

    Raises:
        TrainingError: The file is damaged or has another format.
        OSError: The file cannot be read.
    """
    path = folder / STATE_FILE
    fix = "Remove it to start a new run."
    try:
        kind = irregular_file_kind(path.stat().st_mode)
        if kind is not None:
            raise TrainingError(f"{path} is {kind}; expected the state of a run. {fix}")
        # Through its descriptor: safetensors opens a path twice, and a continuing run may rename a new file to this path in between.
        with path.open("rb") as opened, safe_open(f"/proc/self/fd/{opened.fileno()}", framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            got = metadata.get("format") if isinstance(metadata, dict) else None
            if got not in (FORMAT, _FORMAT_WITHOUT_DIGEST):
                raise TrainingError(
                    f"{path} has the run-state format {got!r}; this version reads {_FORMAT_WITHOUT_DIGEST} and {FORMAT}. {fix}"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            if got != FORMAT:
                warnings.warn(
                    f"{path} was written by an older version without a content digest, so damage cannot be detected. The next state of "
                    "this run will have one.",
                    UncheckedContentWarning,
                    stacklevel=2,
                )
            elif (mismatch := digest_mismatch(metadata, tensors)) is not None:
                raise TrainingError(f"{path} is damaged or was changed: {mismatch}. {fix}")
            groups: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "momentum": {}, "best": {}}
            for key, tensor in tensors.items():
                group, _, name = key.partition("/")
                groups[group][name] = tensor
            values: dict[str, Any] = {name: metadata[name] for name in _JSON_FIELDS}
            loss, correct, count = values["sums"]
            return RunState(**{**values, **groups, "sums": (float(loss), int(correct), int(count))})
    except FileNotFoundError:
        return None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged: it cannot be read as the state of a run ({error}). {fix}") from error


def check_same_run(saved: Mapping[str, Any], requested: Mapping[str, Any], folder: Path) -> None:
    """Raise a `TrainingError` that lists every difference between a saved run and the requested one, if there are any."""
    differences = _differences("", saved, requested)
    if differences:
        shown = "; ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in differences)
        raise TrainingError(
            f"the run in {folder} was started with other arguments: {shown}. Use the same arguments to resume it, or start a new run with "
            "overwrite=True (--force)."
        )


def _differences(name: str, saved: Any, requested: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(saved, Mapping) and isinstance(requested, Mapping):
        keys = [*saved, *(key for key in requested if key not in saved)]
        return [item for key in keys for item in _differences(f"{name}.{key}".lstrip("."), saved.get(key), requested.get(key))]
    return [] if saved == requested else [(name, saved, requested)]

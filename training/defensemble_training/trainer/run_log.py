"""Write the log of a run, one JSON object per line, and its learning curve as an image."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..atomic_write import write_atomic
from ..errors import TrainingError

LOG_FILE = "log.jsonl"
CURVE_FILE = "learning_curve.png"


class RunLog:
    """The log of a run in its folder.

    Each line is a JSON object with `event` (`start`, `resume`, `epoch`, `interrupted`, `failed` or `end`), `time` (UTC, ISO 8601), and the
    values of the event. If a run is killed after it logs an epoch but before it saves the state, the epoch is logged again on resume.
    """

    def __init__(self, folder: Path, tensorboard: Path | None = None) -> None:
        self._path = folder / LOG_FILE
        self._board = None if tensorboard is None else _board(tensorboard)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Append an event."""
        line = json.dumps({"event": event, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **values})
        with self._path.open("a") as file:
            file.write(line + "\n")
        if self._board is not None and event == "epoch":
            for name in ("loss", "train_accuracy", "held_out_accuracy", "learning_rate"):
                if values[name] is not None:
                    self._board.add_scalar(name, values[name], values["epoch"])
            self._board.flush()

    def clear(self) -> None:
        """Delete the log of an earlier run."""
        self._path.unlink(missing_ok=True)


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError("a TensorBoard log needs the package tensorboard. Install it with: pip install tensorboard") from error
    return SummaryWriter(str(folder))


def write_curve(path: Path, history: Iterable[Mapping[str, Any]], title: str) -> None:
    """Plot loss and accuracies over the epochs of a run, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = list(history)
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)  # the run's name may contain $
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [row["loss"] for row in rows], marker=".", color="tab:blue")
    loss.set_ylabel("training loss, nats")
    accuracy.plot(epochs, [100 * row["train_accuracy"] for row in rows], marker=".", color="tab:blue", label="training images, augmented")
    held_out = [row["held_out_accuracy"] for row in rows]
    if all(value is not None for value in held_out):
        accuracy.plot(epochs, [100 * value for value in held_out], marker=".", color="tab:orange", label="held-out images")
    accuracy.set_ylabel("accuracy, %")
    accuracy.legend(loc="lower right", fontsize=8, frameon=False)
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font may lack a character of the run's name
        figure.savefig(content, format="png", dpi=120)
    write_atomic(path, content.getvalue())

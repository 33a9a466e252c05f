"""What `defensemble predict` does once its arguments are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from defensemble._client import Client
from defensemble._images import images_from_file, labelled_files
from defensemble._intervals import rate
from defensemble._model import ModelInfo
from defensemble._prediction import Prediction

SCHEMA = "defensemble.predict/1"
_BATCH_SIZE = 64
_WIDTH_OF_A_FILE = 120


def predict_files(
    client: Client,
    files: Sequence[Path],
    outputs: Sequence[str],
    labelled: Path | None = None,
    *,
    top: int = 1,
    batch_size: int | None = None,
    resize: bool = False,
    as_json: bool = False,
) -> None:
    """Prints what the client's model says about the files, and about the labelled folder with its accuracy.

    Raises:
        DefensembleError: An image does not fit, or the server did not answer.
        OSError: A file cannot be read.
    """
    outputs = outputs if "probabilities" in outputs else ["probabilities", *outputs]  # the table needs them
    info = client.describe()
    pictures, truth = labelled_files(labelled, info.class_names) if labelled is not None else ([], np.zeros(0, np.int64))
    names, images = _read([*files, *pictures], info, resize)
    size = batch_size or min(_BATCH_SIZE, info.max_batch_size or _BATCH_SIZE)
    predictions = []
    with Progress(console=Console(stderr=True), transient=True, disable=len(images) <= size or not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"asking {info.name}", total=len(images))
        for start in range(0, len(images), size):
            predictions.append(client.predict(images[start : start + size], outputs))
            progress.advance(task, len(predictions[-1]))
    rows = _rows(names, predictions, top)
    accuracy = None
    if labelled is not None:
        indices = np.concatenate([prediction.indices for prediction in predictions])[-len(truth) :]
        accuracy = {"folder": str(labelled), "model": info.name, **rate(indices == truth).json()}
        for row, label in zip(rows[-len(truth) :], truth, strict=True):
            row["truth"] = info.class_names[label]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "model": info.name, "predictions": rows, "accuracy": accuracy}, indent=2, allow_nan=False))
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    console.print(_table(info, rows, with_truth=labelled is not None))
    if accuracy is not None:
        told = (
            f"accuracy {accuracy['value']:.4f}, Wilson 95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}, n = {accuracy['n']}"
        )
        console.print(told, highlight=False)


def _read(files: Sequence[Path], info: ModelInfo, resize: bool) -> tuple[list[str], NDArray[np.float32]]:
    names: list[str] = []
    parts = []
    for file in files:
        images = images_from_file(file, info.image_shape, resize=resize)
        names += [str(file)] if len(images) == 1 else [f"{file}[{index}]" for index in range(len(images))]
        parts.append(images)
    return names, np.concatenate(parts)


def _rows(names: Sequence[str], predictions: Sequence[Prediction], top: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for prediction in predictions:
        best = np.argsort(-prediction.probabilities, axis=1, kind="stable")[:, :top]
        for index, (label, nats) in enumerate(zip(prediction.labels, prediction.entropy, strict=True)):
            scores = prediction.probabilities[index]
            row: dict[str, Any] = {
                "file": names[len(rows)],
                "label": label,
                "index": int(best[index, 0]),
                "probability": float(scores[best[index, 0]]),
                "entropy": float(nats),
                "top": [{"label": prediction.class_names[k], "index": int(k), "probability": float(scores[k])} for k in best[index]],
            }
            for name in ("mutual_information", "member_probabilities"):
                if name in prediction.received:
                    row[name] = prediction.received[name][index].tolist()
            rows.append(row)
    return rows


def _table(info: ModelInfo, rows: Sequence[dict[str, Any]], with_truth: bool) -> Table:
    table = Table(title=f"{escape(info.name)}: {len(rows)} image{'' if len(rows) == 1 else 's'}")
    table.add_column("file", overflow="fold")
    if with_truth:
        table.add_column("truth")
    table.add_column("label")
    table.add_column("probability", justify="right")
    table.add_column("entropy (nats)", justify="right")
    with_information = bool(rows) and "mutual_information" in rows[0]
    if with_information:
        table.add_column("mutual information (nats)", justify="right")
    for row in rows:
        cells = [row["file"]]
        if with_truth:
            cells.append(row.get("truth", ""))
        cells.append("\n".join(one["label"] for one in row["top"]))
        cells.append("\n".join(f"{one['probability']:.4f}" for one in row["top"]))
        cells.append(f"{row['entropy']:.4f}")
        if with_information:
            cells.append(f"{row['mutual_information']:.4f}")
        table.add_row(*(escape(cell) for cell in cells))
    return table

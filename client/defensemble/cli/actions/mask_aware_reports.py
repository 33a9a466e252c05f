"""The mask-aware form of exported models, as lines below the table of reports and as a table of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from defensemble_repository.export_report import MULTIPLICATIONS

_LISTED_STOPS = 3


def form_notes(name: str, form: Mapping[str, Any]) -> list[str]:
    """Return the lines about the form of a file: whether it is mask-aware and why, the counts and the comparison with the plain graph.

    Args:
        name: The model and its version.
        form: The entry `mask_aware` of its report.
    """
    if form["operator"] is None and not form.get("layers"):
        return [f"{name}: plain file: {form['reason']}"]
    dense, unpadded, kept = (_millions(form["multiplications"][key]) for key in MULTIPLICATIONS)
    gains = ", ".join(f"{gain:.2f} at {batch}" for batch, gain in form["expected_gain"].items())
    kind = f"mask-aware ({form['operator']}), up to {', '.join(form['boundary'])}" if form["operator"] is not None else "plain ONNX"
    notes = [
        f"{name}: {kind}: {form['reason']}",
        f"{name}: multiplications per image: {dense} dense, {unpadded} without padding, {kept} kept; expected gain by batch: {gains}",
    ]
    stops = form["stopped_at"]
    notes += [f"{name}: masks are not followed past {stop['node']}: {stop['reason']}" for stop in stops[:_LISTED_STOPS]]
    if len(stops) > _LISTED_STOPS:
        notes.append(f"{name}: nor past {len(stops) - _LISTED_STOPS} other nodes; --json lists them")
    verified = form["verification"]
    if verified is not None:
        differences = f"{verified['fallback']:.0e}"
        if verified["operator"] is not None:
            differences = f"{verified['operator']:.0e} on the operator, {differences} without it"
        notes.append(f"{name}: differs from the plain graph by at most {differences}")
    return notes


def layer_table(name: str, form: Mapping[str, Any]) -> Table:
    """Return the layers of a mask-aware file: multiplications, the kept share of their inputs and outputs, and the form of each batch.

    Args:
        name: The model and its version.
        form: The entry `mask_aware` of its report.
    """
    table = Table(title=f"{name}, multiplications per image", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in ("dense", "no padding", "kept", "input", "output"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("form by batch", overflow="fold")
    for layer in form["layers"]:
        counts = [_millions(layer[key]) for key in MULTIPLICATIONS]
        supports = [f"{100 * layer[key]:.1f} %" for key in ("input_support", "output_support")]
        table.add_row(layer["name"], *counts, *supports, ", ".join(f"{batch}: {kind}" for batch, kind in layer["form"].items()))
    return table


def _millions(count: float) -> str:
    return f"{count / 1e6:,.2f} M"

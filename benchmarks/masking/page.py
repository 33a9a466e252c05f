"""The page of the benchmark of the mask-aware form, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import figures_table, format_measurement, format_spread, note_paragraph, quick_warning, short_commit, table

_TITLES = {
    "mask_aware": "mask-aware, ONNX Runtime",
    "mask_aware_avx2": "mask-aware, the operator with AVX2",
    "dense": "dense with masks, ONNX Runtime",
    "dense_openvino": "dense with masks, OpenVINO",
    "standard": "standard network (keep 1), ONNX Runtime",
    "standard_openvino": "standard network (keep 1), OpenVINO",
}


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    return f"""# Mask-aware execution
{quick_warning(result)}
{_how(result, json_name)}

## Compared with the standard network

ResNet-18 of width 64 with masks, mask-aware, against the standard network of the same width (keep 1), which has no masks and is as fast as
a runtime makes it. One thread, float32. Above 1, the mask-aware network is faster. Median of the rounds, with minimum and maximum.

{_against_standard(result)}

{where_standard_is_ahead(result)}

## Compared with the same network, computed densely

ONNX Runtime computes every neuron of the masked network, and then masks it.

{_speeds(result["detail"])}

### Two threads

{_speeds(result["two_threads"])}

## Five members in one process

Five networks at keep 0.1 that run in turn, and the mean of their logits.

{_speeds({"0.1": result["members"]})}

## Five members served

Five networks at keep 0.1 behind Triton with this project's backend, {result["served"]["setting"]} (callers x images of a call), over gRPC:

{_served(result["served"])}

## Every architecture

Speed against the same network computed densely, where `--mask-aware auto` chooses the form; "off" where it does not.

{_grid(result["grid"])}

## File, loading, memory

ResNet-18, keep 0.1. Each form in processes of its own; memory is what loading and running batches of 1 and 16 added.

{_costs(result["costs"])}

## Goals

{figures_table(result["figures"], _figure_names(result["figures"]))}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    versions = result["versions"]
    openvino = f", OpenVINO {versions['openvino']}" if "openvino" in versions else ""
    return "\n".join(
        [
            f"{format_measurement(result, json_name, 'mask_aware')}ONNX Runtime {versions['onnxruntime']}{openvino}, torch "
            f"{versions['torch']}, commit {short_commit(result)}, seed {result['seed']}.",
            f"The operator uses {result['instruction_set']}. Every comparison is interleaved: forms run in turn, call by call.",
            "",
            f"The networks are untrained, which does not affect the speed; their images are {result['n']} test images of "
            f"{result['data']['source']}",
            f"(digest `{result['data']['digest']}`).",
            *note_paragraph(result),
        ]
    )


def _ms(entry: Mapping[str, Any], name: str) -> float:
    return float(entry[name]["ms_per_image"]["median"])


def _against_standard(result: Mapping[str, Any]) -> str:
    rows = []
    for keep, batches in result["detail"].items():
        for batch, entry in batches.items():
            cells = [f"{_ms(entry, 'mask_aware'):.2f}"]
            for name in ("standard", "standard_openvino"):
                cells.append(f"{_ratio(entry, name)}" if name in entry else "not measured")
            rows.append((keep, batch, *cells))
    return table(("keep", "batch", "mask-aware, ms per image", "against standard, ONNX Runtime", "against standard, OpenVINO"), rows)


def _ratio(entry: Mapping[str, Any], name: str) -> str:
    ours, theirs = entry["mask_aware"]["ms_per_image"]["rounds"], entry[name]["ms_per_image"]["rounds"]
    ratios = sorted(their / our for our, their in zip(ours, theirs, strict=True))
    return f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def where_standard_is_ahead(result: Mapping[str, Any]) -> str:
    """Return a sentence on the settings in which the standard network is faster, and the runtimes that were compared."""
    entries = [(f"keep {keep} at batch {batch}", entry) for keep, batches in result["detail"].items() for batch, entry in batches.items()]
    ahead = [
        where
        for where, entry in entries
        if any(name in entry and _ms(entry, name) < _ms(entry, "mask_aware") for name in ("standard", "standard_openvino"))
    ]
    has_openvino = all("standard_openvino" in entry for _, entry in entries)
    if not ahead:
        runtimes = "both runtimes" if has_openvino else "ONNX Runtime; OpenVINO was not measured"
        return f"The standard network is slower in all of these settings, in {runtimes}."
    runtimes = "one of the runtimes or both" if has_openvino else "ONNX Runtime; OpenVINO was not measured"
    return f"The standard network is ahead at {', '.join(ahead)}, in {runtimes}."


def _speeds(detail: Mapping[str, Any]) -> str:
    names = [name for name in _TITLES if name in next(iter(next(iter(detail.values())).values())) and name != "dense"]
    rows = []
    for keep, batches in detail.items():
        for batch, entry in batches.items():
            cells = [f"{format_spread(entry[name]['speed'])}, {_ms(entry, name):.2f} ms" for name in names]
            rows.append((keep, batch, f"{_ms(entry, 'dense'):.2f} ms", *cells))
    return table(("keep", "batch", "dense, per image", *(f"speed: {_TITLES[name]}" for name in names)), rows)


def _served(served: Mapping[str, Any]) -> str:
    rates = served["images_per_s"]
    return "\n".join(
        [
            table(
                ("members", "images/s"),
                [(name.replace("_", "-"), format_spread(rates[name], ".0f")) for name in ("dense", "mask_aware")],
            ),
            "",
            f"Mask-aware by dense, round by round: {format_spread(served['speed'])}. Their probabilities differ by at most "
            f"{served['largest_difference']:.1g}.",
        ]
    )


def _grid(grid: Mapping[str, Any]) -> str:
    batches = next(list(entry["time"]) for keeps in grid.values() for entry in keeps.values() if "time" in entry)
    rows = []
    for arch, keeps in grid.items():
        for keep, entry in keeps.items():
            expected = f"{entry['expected_gain']['1']:.2f} / {entry['expected_gain']['16']:.2f}"
            if "time" in entry:
                cells = [format_spread(entry["time"][batch]["mask_aware"]["speed"]) for batch in batches]
            else:
                cells = ["off"] * len(batches)
            rows.append((arch, keep, expected, *cells))
    return table(("network", "keep", "expected at 1 / 16", *(f"batch {batch}" for batch in batches)), rows)


def _costs(costs: Mapping[str, Any]) -> str:
    sizes, memory = costs["file_bytes"], costs["resident_bytes"]
    rows = [
        ("file, bytes", f"{sizes['plain']:,}", f"{sizes['mask_aware']:,}", f"{costs['file']:.4f}"),
        ("load, s", *(format_spread(costs["load_s"][name], ".3f") for name in ("plain", "mask_aware")), format_spread(costs["load"])),
        ("memory, MB", *(f"{memory[name]['median'] / 1e6:.1f}" for name in ("plain", "mask_aware")), format_spread(costs["resident"])),
    ]
    return table(("", "dense", "mask-aware", "ratio"), rows)


def _figure_names(figures: Mapping[str, Any]) -> dict[str, str]:
    titles = {
        "slowest_of_the_grid": "slowest of all architectures, keeps and batches, against dense",
        "served": "five members served, against dense",
        "load": "time to load, of dense",
        "resident": "memory, of dense",
        "file": "file, of dense",
    }
    return {name: titles.get(name, name.replace("_", " ")) for name in figures}

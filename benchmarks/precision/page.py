"""The page of the benchmark of precisions, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import quick_warning, short_commit, table


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    return f"""# Precisions: float32, float16 and int8
{quick_warning(result)}
{_how(result, json_name)}

## Outputs

On ONNX Runtime without graph optimisations, n = {result["n"]:,} test images each; accuracy and agreement with Wilson 95 % intervals.

{_answers(result["networks"])}

## Goals

{_goals(result)}

## Size and time

Speed is float32's time divided by the form's, with all optimisations, on one thread, in the same rounds: above 1 is faster. Median of
{result["rounds"]} rounds, with minimum and maximum.

{_times(result["networks"], result["wide"])}

{_verdicts(result)}

## Size of the masks

A mask is a BOOL initialiser with one byte per neuron. Packed: eight neurons per byte, unpacked by nodes that ONNX Runtime folds when it
loads; the outputs are bitwise equal. Exports are not packed: this is what packing would save.

{_masks(result["networks"])}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    hardware, versions, calibration = result["hardware"], result["versions"], result["calibration"]
    instructions = ", ".join(hardware["int8_instructions"]) or "none"
    return "\n".join(
        [
            f"Repeat it with `python benchmarks/precisions.py --json docs/results/{json_name}`, which also writes this page. The",
            f"numbers are from [{json_name}]({json_name}), measured on {result['measured_at'][:10]} in {result['duration_s']:,.0f} s on",
            f"{hardware['cpu']} ({hardware['cores']} cores, no GPU; int8 instructions: {instructions}), Python {versions['python']}, ONNX",
            f"Runtime {versions['onnxruntime']}, onnx {versions['onnx']}, commit {short_commit(result)}.",
            f"Load average before and after: {hardware['load_before']} and {hardware['load_after']}; above 1, other programs were running.",
            "Times are processor time, not wall time, and ratios are within rounds, but caches and memory are shared.",
            "",
            f"- Images: {result['n']:,} test images of {result['data']['source']} (digest `{result['data']['digest']}`).",
            f"- int8 is calibrated on {calibration['count']} {calibration['source']}, seed {calibration['seed']} (SHA-256 "
            f"`{calibration['sha256'][:16]}...`).",
            "- The networks of width 64 are untrained, and only timed.",
        ]
    )


def _answers(networks: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    headers = ("network", "form", "accuracy, %", "points to float32", "agreement, %", "largest difference of a probability")
    for name, forms in networks.items():
        for form, entry in forms.items():
            base = form == "fp32"
            only = f"only this correct {entry['only_this_right']}, only float32 correct {entry['only_fp32_right']}"
            points = f"{entry['accuracy_points']:+.2f} ({only})"
            difference = f"{entry['largest_probability_difference']:.2g}"
            cells = (
                _rate(entry["accuracy"]),
                "-" if base else points,
                "-" if base else _rate(entry["agreement"]),
                "-" if base else difference,
            )
            rows.append((f"`{name}`", form, *cells))
    return table(headers, rows)


def _goals(result: Mapping[str, Any]) -> str:
    names = {
        "fp16_agreement": "float16's agreement with float32",
        "fp16_probability_difference": "float16's largest difference of a probability",
        "int8_agreement": "int8's agreement with float32",
        "int8_accuracy_points": "int8's difference of accuracy",
    }
    return "\n".join(
        f"- {names[name]}: {figure['value']:.4g} for the worst network, `{figure['network']}`; goal: {figure['goal']}; "
        f"**{'reached' if figure['holds'] else 'not reached'}**."
        for name, figure in result["figures"].items()
    )


def _times(networks: Mapping[str, Any], wide: Mapping[str, Any]) -> str:
    batches = list(next(iter(networks.values()))["fp32"]["time"])
    rows: list[tuple[str, ...]] = []
    headers = ("network", "form", "file, bytes", "load, ms", *(f"speed at batch {batch} (ms per image)" for batch in batches))
    for name, forms in {**networks, **wide}.items():
        for form, entry in forms.items():
            load = _spread(entry["load_ms"], ".0f") if "load_ms" in entry else "-"
            cells = [
                f"{_spread(entry['time'][batch]['speed_by_fp32'], '.2f')} ({entry['time'][batch]['ms_per_image']['median']:.2f})"
                for batch in batches
            ]
            rows.append((f"`{name}`" if name in networks else name, form, f"{entry['file_bytes']:,}", load, *cells))
    return table(headers, rows)


def _verdicts(result: Mapping[str, Any]) -> str:
    settings_by_verdict = [
        (verdict, f"{name} at {batch}") for name, batches in result["int8_beside_fp32"].items() for batch, verdict in batches.items()
    ]
    lines = [f"int8 compared with float32, in {len(settings_by_verdict)} settings of a network at a batch:", ""]
    for verdict, text in (("faster", "faster in every round"), ("slower", "slower in every round"), ("alike", "neither")):
        settings = [setting for its_verdict, setting in settings_by_verdict if its_verdict == verdict]
        lines.append(f"- {text}: {len(settings)}{': ' * bool(settings)}{', '.join(settings)}")
    return "\n".join(lines)


def _masks(networks: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    headers = (
        "network",
        "form",
        "masks, bytes",
        "fraction of the file",
        "file when packed",
        "load, ms: BOOL",
        "packed",
        "speed when packed, batch 16",
    )
    for name, forms in networks.items():
        for form, entry in forms.items():
            if entry["mask_bytes"]:
                packed = entry["packed_masks"]
                fraction = f"{100 * entry['mask_bytes'] / entry['file_bytes']:.1f} %"
                loads = (_spread(entry["load_ms"], ".1f"), _spread(packed["load_ms"], ".1f"))
                cells = (
                    f"{entry['mask_bytes']:,}",
                    fraction,
                    f"{packed['file_bytes']:,}",
                    *loads,
                    _spread(packed["speed_by_bool_at_16"], ".2f"),
                )
                rows.append((f"`{name}`", form, *cells))
    return table(headers, rows)


def _rate(entry: Mapping[str, Any]) -> str:
    return f"{100 * entry['value']:.2f} ({100 * entry['low']:.2f} to {100 * entry['high']:.2f})"


def _spread(entry: Mapping[str, Any], form: str) -> str:
    return f"{entry['median']:{form}} [{entry['min']:{form}}-{entry['max']:{form}}]"

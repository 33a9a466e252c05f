"""The page about precisions: made of its JSON and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import commit, look, table


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Markdown; the same result gives the same text."""
    return f"""# Precisions: float32, float16 and int8
{look(result)}
{_how(result, json_name)}

## Answers

On ONNX Runtime without graph optimisations, n = {result["n"]:,} test images for each; accuracy and agreement with Wilson 95 % intervals.

{_answers(result["networks"])}

## What was asked for

{_goals(result)}

## Size and time

Speed is float32's time by this form's, with all optimisations, on one thread, in the same rounds: above 1 is faster. Median of
{result["rounds"]} rounds, in brackets the smallest and the largest.

{_times(result["networks"], result["wide"])}

{_verdicts(result)}

## The masks' room

A mask is a BOOL initialiser under its name, one byte a neuron. Packed: eight neurons a byte, unpacked by nodes that ONNX Runtime folds when
it loads; the answers are the same bit for bit. This is what packing would save, not what is exported.

{_masks(result["networks"])}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    hardware, versions, calibration = result["hardware"], result["versions"], result["calibration"]
    instructions = ", ".join(hardware["int8_instructions"]) or "none"
    return "\n".join(
        [
            "Repeat it with `python benchmarks/precisions.py --json docs/results/precisions.json`, which writes this page too. The",
            f"numbers are those of [{json_name}]({json_name}), measured on {result['measured_at'][:10]} in "
            f"{result['duration_s']:,.0f} s on",
            f"{hardware['cpu']} ({hardware['cores']} cores, no GPU; int8 instructions: {instructions}), Python {versions['python']}, ONNX",
            f"Runtime {versions['onnxruntime']}, onnx {versions['onnx']}, commit {commit(result)}.",
            f"Load of the machine before and after: {hardware['load_before']} and {hardware['load_after']}; above 1, others ran beside",
            "it. Times are of the processor, not of the clock, and ratios are within rounds, but caches and memory are shared.",
            "",
            f"- Images: {result['n']:,} test images of {result['data']['source']} (digest `{result['data']['digest']}`).",
            f"- int8 is calibrated on {calibration['count']} {calibration['source']}, seed {calibration['seed']} (SHA-256 "
            f"`{calibration['sha256'][:16]}...`).",
            "- The networks of width 64 are untrained, and timed alone.",
        ]
    )


def _answers(networks: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    headers = ("network", "form", "accuracy, %", "points to float32", "agreement, %", "largest difference of a probability")
    for name, forms in networks.items():
        for form, told in forms.items():
            base = form == "fp32"
            points = f"{told['accuracy_points']:+.2f} (right here alone {told['only_this_right']}, there alone {told['only_fp32_right']})"
            difference = f"{told['largest_probability_difference']:.2g}"
            cells = (
                _rate(told["accuracy"]),
                "-" if base else points,
                "-" if base else _rate(told["agreement"]),
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
        f"- {names[name]}: {figure['value']:.4g} for the worst network, `{figure['network']}`; goal: {figure['goal']}: "
        f"**{'reached' if figure['holds'] else 'not reached'}**."
        for name, figure in result["figures"].items()
    )


def _times(networks: Mapping[str, Any], wide: Mapping[str, Any]) -> str:
    batches = list(next(iter(networks.values()))["fp32"]["time"])
    rows: list[tuple[str, ...]] = []
    headers = ("network", "form", "file, bytes", "load, ms", *(f"speed at batch {batch} (ms an image)" for batch in batches))
    for name, forms in {**networks, **wide}.items():
        for form, told in forms.items():
            load = _spread(told["load_ms"], ".0f") if "load_ms" in told else "-"
            cells = [
                f"{_spread(told['time'][one]['speed_by_fp32'], '.2f')} ({told['time'][one]['ms_per_image']['median']:.2f})"
                for one in batches
            ]
            rows.append((f"`{name}`" if name in networks else name, form, f"{told['file_bytes']:,}", load, *cells))
    return table(headers, rows)


def _verdicts(result: Mapping[str, Any]) -> str:
    told = [(verdict, f"{name} at {batch}") for name, batches in result["int8_beside_fp32"].items() for batch, verdict in batches.items()]
    lines = [f"int8 beside float32, in {len(told)} settings of a network at a batch:", ""]
    for verdict, text in (("faster", "faster in every round"), ("slower", "slower in every round"), ("alike", "neither")):
        settings = [setting for found, setting in told if found == verdict]
        lines.append(f"- {text}: {len(settings)}{': ' * bool(settings)}{', '.join(settings)}")
    return "\n".join(lines)


def _masks(networks: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    headers = (
        "network",
        "form",
        "masks, bytes",
        "of the file",
        "file when packed",
        "load, ms: BOOL",
        "packed",
        "speed when packed, batch 16",
    )
    for name, forms in networks.items():
        for form, told in forms.items():
            if told["mask_bytes"]:
                packed = told["packed_masks"]
                share = f"{100 * told['mask_bytes'] / told['file_bytes']:.1f} %"
                loads = (_spread(told["load_ms"], ".1f"), _spread(packed["load_ms"], ".1f"))
                cells = (
                    f"{told['mask_bytes']:,}",
                    share,
                    f"{packed['file_bytes']:,}",
                    *loads,
                    _spread(packed["speed_by_bool_at_16"], ".2f"),
                )
                rows.append((f"`{name}`", form, *cells))
    return table(headers, rows)


def _rate(told: Mapping[str, Any]) -> str:
    return f"{100 * told['value']:.2f} ({100 * told['low']:.2f} to {100 * told['high']:.2f})"


def _spread(told: Mapping[str, Any], form: str) -> str:
    return f"{told['median']:{form}} [{told['min']:{form}}-{told['max']:{form}}]"

"""Model cards: a page about a network of the zoo, generated only from its checkpoint."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from defensemble import wilson
from defensemble_training import PRESETS, ModelSpec, TrainingRecord, load_checkpoint, read_metadata


def model_card(path: Path) -> str:
    """Return the model card of a checkpoint as Markdown; the same file gives the same text.

    Raises:
        CheckpointError: The checkpoint is damaged.
        OSError: The file cannot be read.
    """
    module, spec, record = load_checkpoint(path)
    content = path.read_bytes()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    precision = ", ".join(sorted(_float_types(path)))
    rows = {
        "file": f"`{path.name}`, {len(content):,} bytes, weights as {precision}",
        "SHA-256": f"`{hashlib.sha256(content).hexdigest()}`",
        "network": f"{spec.arch}, width {spec.width} (the paper's is 64), {parameters:,} parameters, images {_shape(spec)} in [0, 1]",
        "keep": f"{spec.keep:g}" + (": a standard network, without masks" if spec.keep == 1 else ""),
        **_masks(spec, read_metadata(path).mask_digest),
        "data": f"{record.data_source or record.data} (digest `{record.data_digest}`); {record.n_train:,} images trained on, "
        f"{record.n_held_out:,} held out",
        "recipe": _recipe(record),
        "seed": str(record.seed),
        "test accuracy": _accuracy(record),
        "loss": f"{record.loss:.4f} nats in the last epoch, on the augmented training images",
        "device": f"{record.device}, {record.precision}, processes: {record.processes}, threads: {record.threads}",
        "seconds": f"{record.seconds:,.0f}, on a machine that may have run other programs",
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())),
        "classes": ", ".join(record.class_names),
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"""# {path.name.removesuffix(".safetensors")}

| | |
|---|---|
{table}

Trained with

```console
$ defensemble {_command(record)}
```

The accuracy was measured before the weights were rounded for the file. The test images were evaluated once, after the last epoch.

**Licence**: the weights have the project's licence, Apache-2.0; they contain no images. For the use of defective networks, see the patent
named in the project's README.

**Intended use**: trying out export, serving, ensembles and probes, and comparing networks of this zoo under transferred attacks.
**Not intended for**: real decisions, or judging the paper's method: the network is narrow, and was trained for {record.epochs} epochs
instead of the paper's 350.
"""


def _command(record: TrainingRecord) -> str:
    """Return the command in today's spelling: older records have `--data NAME --data-dir FOLDER` for `--dataset NAME=FOLDER`."""
    command = re.sub(r"--data (\S+) --data-dir (\S+)", r"--dataset \1=\2", record.command)
    return command.replace("--data ", "--dataset ")


def _masks(spec: ModelSpec, digest: str) -> dict[str, str]:
    if spec.keep == 1:
        return {}
    blocks = ", ".join(map(str, spec.blocks))
    return {
        "masks": f"blocks {blocks}, pattern {spec.pattern}, sampling {spec.sampling}, mask seed {spec.mask_seed}",
        "mask digest": f"`{digest}`",
    }


def _recipe(record: TrainingRecord) -> str:
    """Return the closest preset, the epochs, and the differences from the preset."""
    got = dict(record.recipe)
    changes = {
        preset: [f"{key} {got.get(key)}" for key, value in recipe.to_values().items() if key != "epochs" and got.get(key) != value]
        for preset, recipe in PRESETS.items()
    }
    preset = min(changes, key=lambda name: len(changes[name]))
    return ", ".join([f"preset `{preset}`", f"{record.epochs} epochs", *changes[preset]])


def _accuracy(record: TrainingRecord) -> str:
    if not record.n_test:
        return "not measured"
    correct = round(record.accuracy * record.n_test)
    low, high = wilson(correct, record.n_test)
    return f"{correct / record.n_test:.2%} ({correct:,} of {record.n_test:,}; Wilson 95 % interval {low:.2%} to {high:.2%})"


def _shape(spec: ModelSpec) -> str:
    return "x".join(map(str, spec.input_shape))


def _float_types(path: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        kinds = {str(file.get_slice(name).get_dtype()) for name in file.keys()}
    return {kind.replace("F", "float") for kind in kinds if kind.startswith("F")}

"""Make the pictures of docs/: robustness, masks, first-layer activations, a learning curve."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from defensemble_training import Compute, Dataset, ModelSpec, RunFolder, defect_mask, defect_masks, load_dataset, recipe_from_preset, train
from defensemble_training.models.masks import PATTERNS

Grid = NDArray[Any]

HERE = Path(__file__).parent
KEEPS = (0.1, 0.3, 0.5)
LAYERS = (("stem.defect", (64, 32, 32), "stem"), ("block2.0.defect1", (128, 16, 16), "block 2"))  # of ResNet-18 at 3x32x32
INK = ListedColormap(["#e4e4e4", "#17365c"])
BLUES = colormaps["Blues"]
ACTIVATIONS = colormaps["viridis"].with_extremes(bad="#e4e4e4")
DIGIT = 3  # of the test images, whose first answers are 1 3 3 8
ROBUSTNESS = HERE.parent / "results/zoo_cifar10.json"
KINDS_OF_IMAGES = {"clean": "clean images", "fgsm": "FGSM, 8/255", "pgd": "PGD-7, 8/255"}
LARGEST_FILE = 150_000
DPI = 100


def tiled(channels: Grid, across: int, scale: int, gap: int) -> Grid:
    """Channels (C, H, W) side by side, `across` in a row, each neuron `scale` pixels wide, with gaps of nothing between them."""
    enlarged = channels.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = enlarged.shape
    down = -(-count // across)
    grid = np.full((down * (height + gap) - gap, across * (width + gap) - gap), np.nan)
    for index, channel in enumerate(enlarged):
        top, left = index // across * (height + gap), index % across * (width + gap)
        grid[top : top + height, left : left + width] = channel
    return grid


def masks_picture() -> Figure:
    """For each pattern and keep probability, eight channels of the masks of two layers of ResNet-18, in whole pixels."""
    tile, gap, left, top, between, after = 64, 4, 100, 84, 6, 18
    wide, high = 4 * tile + 3 * gap, 2 * tile + gap
    width = left + len(PATTERNS) * (wide + after)
    height = top + len(KEEPS) * (len(LAYERS) * (high + between) + after)
    figure = Figure(figsize=(width / DPI, height / DPI), facecolor="white")
    FigureCanvasAgg(figure)
    title = "Masks of ResNet-18 (mask_seed 0): the first 8 channels of the stem, 64x32x32,\nand of block 2's first convolution, 128x16x16"
    figure.text(0.5, 1 - 6 / height, f"{title}.  Dark: kept.  Light: always 0.", ha="center", va="top", fontsize=10)
    for column, pattern in enumerate(PATTERNS):
        x = left + column * (wide + after)
        figure.text((x + wide / 2) / width, 1 - (top - 6) / height, pattern, ha="center", va="bottom", fontsize=12, weight="bold")
        for row, (keep, layer) in enumerate((keep, layer) for keep in KEEPS for layer in LAYERS):
            name, shape, title = layer
            y = top + row * (high + between) + row // len(LAYERS) * after
            mask = np.broadcast_to(defect_mask(shape, keep, pattern, seed=0, name=name), shape)[:8].astype(float)
            axes = figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))
            axes.imshow(tiled(mask, 4, tile // shape[1], gap), cmap=INK, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            axes.axis("off")
            if column == 0:
                label = f"keep {keep}\n{title}"
                figure.text((left - 10) / width, 1 - (y + high / 2) / height, label, ha="right", va="center", fontsize=11)
    return figure


def activations_picture(image: Grid, networks: Sequence[tuple[str, nn.Module]]) -> Figure:
    """What the first layer answers to one image: a row for a network, and for one with a mask a row without it and a row with it."""
    rows: list[tuple[str, Grid, float]] = []
    for name, network in networks:
        activations, mask = first_layer(network, image)
        brightest = float(activations.max())  # the same before the mask and behind it
        if mask is None:
            rows.append((name, activations, brightest))
        else:
            rows += [
                (f"{name},\nbefore its mask", activations, brightest),
                (f"{name},\nbehind its mask", np.where(mask, activations, np.nan), brightest),
            ]
    figure = Figure(figsize=(9.6, 5.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(
        "The first layer's 8 channels, behind ReLU, in three networks trained on digits, for one test image.\n"
        "Violet: 0, yellow: the highest of the network.  Light grey: defective, always 0.",
        fontsize=10,
    )
    pictures = figure.subplots(len(rows), 9)
    for (name, channels, brightest), axes in zip(rows, pictures, strict=True):
        axes[0].imshow(image[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0].set_ylabel(name, fontsize=10, rotation=0, ha="right", va="center")
        for one, channel in zip(axes[1:], channels, strict=True):
            one.imshow(channel, cmap=ACTIVATIONS, vmin=0, vmax=brightest, interpolation="nearest")
        for one in axes:
            one.set(xticks=[], yticks=[])
            one.spines[:].set_visible(False)
    for column, one in enumerate(pictures[0]):
        one.set_title("image" if column == 0 else f"channel {column - 1}", fontsize=10)
    return figure


def first_layer(network: nn.Module, image: Grid) -> tuple[Grid, Grid | None]:
    """What the stem answers to an image (C, H, W) without its mask, behind ReLU, as (channels, H, W); and its mask, where it has one."""
    with torch.inference_mode():
        answered = torch.from_numpy(image)[None]
        for name in ("normalize", "stem.conv", "stem.bn"):
            answered = network.get_submodule(name)(answered)
    return functional.relu(answered)[0].numpy(), defect_masks(network).get("stem.defect.mask")


def robustness_picture(result: Mapping[str, Any]) -> Figure:
    """Draw the accuracy of the standard network, of each defective one and of their average, clean and attacked, with 95 % intervals."""
    members = result["average"]["of"]
    rows = {"standard network": result["networks"]["standard"]["rates"]}
    rows |= {f"defective, {name}": result["networks"][name]["rates"] for name in sorted(members)}
    rows["ensemble of the five"] = result["average"]["rates"]
    colours = ["#9a9a9a", *(BLUES(0.25 + 0.09 * index) for index in range(len(members))), "#17365c"]
    figure = Figure(figsize=(9, 3.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(rows)
    for index, ((name, rates), colour) in enumerate(zip(rows.items(), colours, strict=True)):
        accuracies = [rates[kind]["accuracy"] for kind in KINDS_OF_IMAGES]
        places = np.arange(len(accuracies)) + (index - (len(rows) - 1) / 2) * width
        heights = [100 * one["value"] for one in accuracies]
        errors = [[100 * (one["value"] - one["low"]) for one in accuracies], [100 * (one["high"] - one["value"]) for one in accuracies]]
        bars = axes.bar(places, heights, width, label=name, color=colour, yerr=errors, error_kw={"elinewidth": 1, "ecolor": "#444444"})
        if name in ("standard network", "ensemble of the five"):
            axes.bar_label(bars, fmt="%.0f", fontsize=9, padding=2, weight="bold")
    axes.set_xticks(range(len(KINDS_OF_IMAGES)), list(KINDS_OF_IMAGES.values()))
    axes.set(ylim=(0, 100), ylabel="accuracy, %", title=f"CIFAR-10, {result['n']:,} test images, attacks transferred from another network")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def trained(dataset: Dataset, keep: float, run: RunFolder | None = None) -> nn.Module:
    """A small network, trained as `defensemble train --choose best` trains it."""
    spec = ModelSpec("resnet18", keep, (0, 1, 2), width=8, mean=dataset.mean, std=dataset.std, input_shape=dataset.input_shape)
    recipe = recipe_from_preset("fast", choose="best", held_out=len(dataset.train) // 10)
    module, record = train(spec, dataset, recipe=recipe, seed=0, compute=Compute("cpu", threads=1), run=run)
    click.echo(f"keep {keep}: {record.accuracy:.4f} of {record.n_test} test images, {record.seconds:.0f} s")
    return module


def png_of(figure: Figure) -> bytes:
    """The figure as PNG, on opaque white so that it is read on dark pages too, in 256 colours."""
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(content, format="png", optimize=True)
    return content.getvalue()


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=HERE, help="Folder.  [default: the script's]")
def main(out: Path) -> None:
    r"""Make the pictures that the pages in docs/ show.

    \b
    robustness.png      accuracy of the zoo on CIFAR-10, clean and attacked, from docs/results/zoo_cifar10.json
    masks.png           masks of two layers of ResNet-18 for each pattern, at keep 0.1, 0.3 and 0.5
    activations.png     first-layer activations of networks trained on digits, with and without masks, for one test digit
    learning_curve.png  the learning curve that the run of keep 0.3 left in its folder

    Trains three networks on scikit-learn's digits, seed 0: half a minute on an idle core.
    """
    dataset = load_dataset("digits")
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "keep0.3.run")
        standard, some, few = trained(dataset, 1.0), trained(dataset, 0.3, run), trained(dataset, 0.1)
        curve = (run.path / "learning_curve.png").read_bytes()
    networks = [("standard", standard), ("keep 0.3", some), ("keep 0.1", few)]
    pictures = {
        "robustness.png": png_of(robustness_picture(json.loads(ROBUSTNESS.read_text()))),
        "masks.png": png_of(masks_picture()),
        "activations.png": png_of(activations_picture(dataset.test.images()[DIGIT], networks)),
        "learning_curve.png": curve,
    }
    for name, content in pictures.items():
        if len(content) > LARGEST_FILE:
            raise click.ClickException(f"{name} takes {len(content):,} bytes, and may take {LARGEST_FILE:,}")
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
        click.echo(f"{out / name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()

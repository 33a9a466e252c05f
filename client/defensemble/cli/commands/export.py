"""`defensemble export`: checkpoints, and other people's ONNX files, to entries of a model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import AVERAGE, PATH, RESIZE, numbers, weights_option

_numbers = numbers(float, "0.485,0.456,0.406")


def _shape(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Channels, height and width, with commas between them."""
    sides = [] if value is None else value.split(",")
    if value is not None and (len(sides) != 3 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides)):
        raise click.BadParameter(f"expected three positive integers, channels,height,width, such as 3,224,224, got {value!r:.120}")
    return None if value is None else tuple(int(side) for side in sides)


@click.command("export", short_help="Networks to ONNX members, an ensemble, one fused graph, engines, in a model repository.")
@click.argument("checkpoints", nargs=-1, type=PATH, metavar="[CHECKPOINT]...")
@click.option("--repository", type=PATH, default=Path("model_repository"), help="Folder that Triton loads.")
@click.option("--as", "name", metavar="NAME", help="Name of the member, where one network is given.  [default: its file's name]")
@click.option("--ensemble", help="Name of the ensemble that these networks form or, with --replace, join.  [default: ensemble]")
@click.option("--no-ensemble", is_flag=True, help="Export the networks alone, each served under its own name.")
@click.option("--average", type=AVERAGE, help="What is averaged.  [default: what an existing ensemble averages, else probabilities]")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    callback=weights_option,
    metavar="NAME=W",
    help="A member's weight, above 0. Repeatable.  [default: what it has in an existing ensemble, else 1]",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(1, 4096),
    help="Largest batch that a request may have; must equal that of an existing config.pbtxt.  [default: that one, else 64]",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Add the next version of an existing model and keep the old ones; an existing ensemble takes it as a member and keeps its others.",
)
@click.option(
    "--data-dir",
    type=PATH,
    help="Folder of the data that the networks were trained on.  [default: the decoded images of the training, else the usual places]",
)
@click.option("--images", "images_file", type=PATH, metavar="FILE.npy", help="Real images to verify on, instead of those of the data.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    help="Precision in which the graph computes; its input and output stay float32.",
)
@click.option(
    "--calibration-images",
    "calibration_file",
    type=PATH,
    metavar="FILE.npy",
    help="Images that int8 is calibrated on.  [default: training images of the data]",
)
@click.option("--calibration-count", type=click.IntRange(1), metavar="N", help="Number of calibration images to draw.  [default: 512]")
@click.option("--calibration-seed", type=click.IntRange(0), metavar="N", help="Seed of that draw.  [default: 0]")
@click.option("--fuse", "fused_name", metavar="NAME", help="Also write one graph of all members and their average, as the model NAME.")
@click.option("--engine", is_flag=True, help="Build TensorRT engines of what was exported; see `defensemble build-engine`.")
@click.option("--from-onnx", "onnx_file", type=PATH, metavar="FILE", help="An ONNX classifier of any origin; needs --as.")
@click.option("--output", metavar="NAME", help="With --from-onnx: the output that holds the logits.  [default: the only one]")
@click.option(
    "--labels",
    "labels_file",
    type=PATH,
    metavar="FILE",
    help="With --from-onnx: class names, one per line.  [default: the numbers 0 to K-1]",
)
@click.option(
    "--mean",
    metavar="NUMBERS",
    callback=_numbers,
    help="With --from-onnx: mean of images in [0, 1], 1 or C numbers; subtracted in the first layer.  [default: none]",
)
@click.option(
    "--std",
    metavar="NUMBERS",
    callback=_numbers,
    help="With --from-onnx: standard deviation of images in [0, 1]; divided by in the first layer.  [default: none]",
)
@click.option("--input-shape", metavar="C,H,W", callback=_shape, help="With --from-onnx: shape of an image, where the file leaves it free.")
@click.option(
    "--resize",
    type=RESIZE,
    help="With --from-onnx: how images of another size were resized in its training; crop: scale, then cut out the centre; squash: scale "
    "height and width separately.  [default: unknown, images must have the exact size]",
)
@click.option(
    "--custom-operators",
    multiple=True,
    metavar="DOMAIN",
    help="With --from-onnx: domain of operators to allow, such as com.microsoft. Repeatable.",
)
@click.option(
    "--import-timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="With --from-onnx: longest time to load and try the file, and again for each 64 images that it is compared on.  [default: 120]",
)
@click.option("--report", is_flag=True, help="Show the results of the verification; without a network, those of the whole repository.")
def command(**given: Any) -> None:
    r"""Export networks to ONNX, each verified, and write them and an ensemble of them into a model repository.

    Each CHECKPOINT is compared with torch, the file of --from-onnx with its own answers before the conversion. Members are named after
    their files. Nothing is written unless every network was exported and verified; a report is written next to each file.

    With --replace, an existing ensemble takes the versions exported now, and members that it did not have yet. It keeps its other
    members, weights, average and manual edits of its config.pbtxt, except for comments, which are lost there and in the members'
    config.pbtxt.

    --fuse also writes one graph with the outputs of the ensemble; with --no-ensemble, that graph alone; without networks, a graph of an
    ensemble that is in the repository.

    \b
    Examples:
      defensemble export checkpoints/keep*.safetensors --repository model_repository
      defensemble export standard.safetensors --no-ensemble
      defensemble export zoo/cifar10/keep*.safetensors --data-dir data/cifar10
      defensemble export keep0.3.safetensors keep0.5.safetensors --ensemble pair --average logits --weight keep0.3=2
      defensemble export checkpoints/keep0.3.safetensors --replace                   # its next version votes, the others stay
      defensemble export new.safetensors --replace --ensemble pair --weight new=2    # joins the pair
      defensemble export checkpoints/keep*.safetensors --precision int8 --report
      defensemble export keep0.3.safetensors keep0.5.safetensors --fuse fused --no-ensemble
      defensemble export --fuse fused --ensemble pair                                # of an ensemble in the repository
      defensemble export --from-onnx resnet.onnx --as resnet --labels labels.txt --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
      defensemble export --report                                                    # of the whole repository
    """
    from ..actions.export import Request, run

    run(Request(**given))

"""`defensemble import-onnx`: import an ONNX classifier of any origin as a member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from .. import export_options as shared
from ..choices import RESIZES
from ..options import EXISTING_PATH, make_timeout_option, new_repository_option, numbers
from ..verb import Verb

_statistics = numbers(float, "0.485,0.456,0.406")


def _parse_shape(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Parse channels, height and width with commas between them (a click callback)."""
    if value is None:
        return None
    sides = value.split(",")
    if len(sides) != 3 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise click.BadParameter(f"expected three positive integers, channels,height,width, such as 3,224,224, got {value!r:.120}")
    return tuple(int(side) for side in sides)


@cloup.command("import-onnx", cls=Verb, short_help="Import an ONNX classifier of any origin as a member.")
@click.argument("file", type=EXISTING_PATH, metavar="FILE.onnx")
@cloup.option_group(
    "Model repository",
    new_repository_option,
    click.option("--name", metavar="NAME", required=True, help="Name of the member."),
    shared.max_batch_size_option,
    shared.replace_option,
    shared.engine_option,
)
@cloup.option_group(
    "The classifier",
    click.option("--output", metavar="NAME", help="Output with the logits.  [default: the only output]"),
    click.option(
        "--labels",
        "labels_file",
        type=EXISTING_PATH,
        metavar="FILE",
        help="Class names, one per line.  [default: the numbers 0 to K-1]",
    ),
    click.option(
        "--mean",
        metavar="NUMBERS",
        callback=_statistics,
        help="Mean of images in [0, 1], 1 or C numbers; the first layer subtracts it.  [default: none]",
    ),
    click.option(
        "--std",
        metavar="NUMBERS",
        callback=_statistics,
        help="Standard deviation of images in [0, 1], 1 or C numbers; the first layer divides by it.  [default: none]",
    ),
    click.option("--input-shape", metavar="C,H,W", callback=_parse_shape, help="Shape of an image, if the file leaves it open."),
    click.option(
        "--resize",
        type=click.Choice(RESIZES),
        help="How the training images were resized. crop: scale, then cut out the centre; squash: scale height and "
        "width separately.  [default: unknown, images must have the exact size]",
    ),
    click.option(
        "--custom-operators",
        "custom_domains",
        multiple=True,
        metavar="DOMAIN",
        help="Domain of operators to allow, such as com.microsoft. Repeatable.",
    ),
    make_timeout_option("Longest time to load and try the file, and again for each 64 images that it is compared on.  [default: 120]"),
)
@shared.ensemble_options
@cloup.option_group(
    "Precision and verification",
    shared.precision_option,
    shared.mask_aware_option,
    shared.images_option("random images only"),
    *shared.calibration_options("required for int8"),
)
def command(
    file: Path,
    name: str,
    output: str | None,
    labels_file: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    input_shape: tuple[int, int, int] | None,
    resize: str | None,
    custom_domains: tuple[str, ...],
    timeout_s: float | None,
    **options: Any,
) -> None:
    r"""Convert FILE.onnx, a classifier from any framework, to a member, compare both on images, and add it to a model repository.

    The file needs one image input, (N,C,H,W), and an output of logits, (N,K). Without --images it is compared on random images only.
    Nothing is written unless the member computes what the file computes.

    \b
    Examples:
      defensemble import-onnx resnet.onnx --name resnet --labels labels.txt --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
      defensemble import-onnx resnet.onnx --name resnet --replace --precision fp16 --images photos.npy
    """
    if (mean is None) != (std is None):
        raise click.UsageError("--mean and --std belong together: give both, or neither")
    settings = shared.member_settings(**options)
    from ..actions.export import import_onnx

    import_onnx(
        file,
        name,
        settings,
        labels_file=labels_file,
        timeout_s=timeout_s,
        output=output,
        mean=mean,
        std=std,
        input_shape=input_shape,
        resize=resize,
        custom_domains=custom_domains,
    )

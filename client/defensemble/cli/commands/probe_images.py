"""The probes of changed images without an attacker: `defensemble probe corruptions`, `shuffle`, `folders` and `cue-conflict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from ..choices import CORRUPTIONS
from ..options import EXISTING_PATH, PATH, ChoiceList, numbers
from ..probe_options import probe_options
from ..verb import Verb

if TYPE_CHECKING:
    from ..actions.probe import ProbeArguments


@cloup.command("corruptions", cls=Verb, short_help="Measure robustness to the 15 common corruptions.")
@cloup.option_group(
    "Corruptions",
    click.option(
        "--corruptions",
        type=ChoiceList(CORRUPTIONS),
        metavar="A,B,...",
        default=list(CORRUPTIONS),
        show_default=False,
        help=f"Some of {', '.join(CORRUPTIONS)}.  [default: all]",
    ),
    click.option("--severities", callback=numbers(int, "1,3,5"), metavar="A,B,...", help="Severities.  [default: 1,2,3,4,5]"),
    click.option(
        "--cache",
        type=PATH,
        metavar="FOLDER",
        help="Folder of the corrupted images, which later runs use again.  [default: ~/.cache/defensemble/corruptions]",
    ),
)
@probe_options("corruptions")
def corruptions(arguments: ProbeArguments, corruptions: list[str], severities: tuple[int, ...] | None, cache: Path | None) -> None:
    r"""Corrupt labelled images by noise, blur, weather and compression (arXiv 1903.12261), and print the accuracy of each model.

    The strengths are those of ImageNet-C, for images of any size: small images suffer more than in CIFAR-10-C. The JSON has the mean error
    per corruption and of all, which is not divided by that of AlexNet.

    \b
    Examples:
      defensemble probe corruptions http://localhost:8000 --dataset cifar10 --limit 1000
      defensemble probe corruptions http://localhost:8000 --dataset cifar10 --corruptions fog,frost --severities 1,3,5
    """
    from ...probes.corruptions import SEVERITIES, Corruptions
    from ..actions.probe import finish, run_probe

    probe = Corruptions(tuple(corruptions), SEVERITIES if severities is None else severities, cache, seed=arguments.seed)
    finish(run_probe(probe, arguments), arguments)


@cloup.command("shuffle", cls=Verb, short_help="Measure the accuracy on images with permuted tiles.")
@cloup.option_group(
    "Shuffle", click.option("--k", callback=numbers(int, "2,4"), metavar="A,B,...", help="Tiles per side of the image.  [default: 2,4,8]")
)
@probe_options("shuffle")
def shuffle(arguments: ProbeArguments, k: tuple[int, ...] | None) -> None:
    r"""Cut each image into k x k tiles, permute them at random, and print the accuracy of each model.

    The tiles never stay in their order. A model that needs the shape of an object loses more than one that needs its texture.

    \b
    Examples:
      defensemble probe shuffle http://localhost:8000 --dataset cifar10
    """
    from ...probes.shuffle import Shuffle
    from ..actions.probe import finish, run_probe

    finish(run_probe(Shuffle(seed=arguments.seed) if k is None else Shuffle(k, seed=arguments.seed), arguments), arguments)


@cloup.command("folders", cls=Verb, short_help="Measure accuracy on stylised images, and the shape bias.")
@cloup.option_group(
    "Folders",
    click.option(
        "--stylised",
        type=EXISTING_PATH,
        multiple=True,
        metavar="FOLDER",
        help="Stylised images, with one folder per class. Repeatable.",
    ),
    click.option(
        "--cue-conflict",
        "conflicts",
        type=EXISTING_PATH,
        multiple=True,
        metavar="FOLDER",
        help="Images whose shape and texture are of different classes, as SHAPE/SHAPE<n>-TEXTURE<m>.png. Repeatable.",
    ),
)
@probe_options("folders", has_dataset=False)
def folders(arguments: ProbeArguments, stylised: tuple[Path, ...], conflicts: tuple[Path, ...]) -> None:
    r"""Measure the accuracy on folders of stylised images, and the shape bias on folders of cue conflicts (arXiv 1811.12231).

    The shape bias is the share of decisions for the shape's class among those for the shape's or the texture's. Classes of the folders and
    of the models are matched by name. --limit is that of each folder.

    \b
    Examples:
      defensemble probe folders http://localhost:8000 --stylised stylised/val
      defensemble probe folders http://localhost:8000 --cue-conflict stimuli
    """
    from ...probes.folders import Folders, ImageFolder, load_folders
    from ..actions.probe import finish, folder_loader, run_probe

    if not stylised and not conflicts:
        raise click.UsageError("pass --stylised FOLDER, --cue-conflict FOLDER, or both")
    chosen = [*map(ImageFolder, stylised), *(ImageFolder(path, "cue conflict") for path in conflicts)]

    def load(info: Any, on_progress: Any) -> Any:
        return load_folders(chosen, info, folder_loader(arguments, info, on_progress))

    finish(run_probe(Folders(seed=arguments.seed), arguments, load=load), arguments)


@cloup.command("cue-conflict", cls=Verb, short_help="Generate cue conflicts, and measure the shape bias.")
@cloup.option_group(
    "Cue conflicts",
    click.option(
        "--folder",
        type=PATH,
        metavar="FOLDER",
        help="Folder of the generated images. If it has them, they are used again.  [default: cue-conflict, next to --out]",
    ),
    click.option(
        "--images", type=click.IntRange(min=1), metavar="N", default=1000, help="Number of conflicts, and of the images for each control."
    ),
)
@probe_options("cue-conflict")
def cue_conflict(arguments: ProbeArguments, folder: Path | None, images: int) -> None:
    r"""Compose images with the shape of one class and the texture of another, and print the shape bias of each model.

    Each image is composed of patches of one image such that its luminance follows that of another. Controls with one cue only show how much
    each model recognises of it. Compare models with each other: the values are not those of the public stimuli.

    \b
    Examples:
      defensemble probe cue-conflict http://localhost:8000 --dataset cifar10
    """
    from ...probes.cue_conflict import write_cue_conflict
    from ...probes.data import load_probe_data
    from ...probes.folders import Folders, load_folders
    from ..actions.probe import finish, folder_loader, run_probe

    written_to = folder or arguments.out.parent / "cue-conflict"

    def load(info: Any, on_progress: Any) -> Any:
        source = load_probe_data(
            arguments.source, info, None, arguments.seed, arguments.data_dir, options=arguments.reading, on_progress=on_progress
        )
        written = write_cue_conflict(written_to, source, info.class_names, count=images, seed=arguments.seed, on_progress=on_progress)
        return load_folders(written, info, folder_loader(arguments, info, on_progress))

    finish(run_probe(Folders(seed=arguments.seed), arguments, load=load), arguments)

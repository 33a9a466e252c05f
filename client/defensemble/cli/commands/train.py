"""`defensemble train`: train a CNN and save a checkpoint."""

from __future__ import annotations

from typing import Any

import click
import cloup

from ..choices import (
    ARCHITECTURES,
    ATTACKS,
    DATASETS,
    DEVICES,
    DROPS,
    PATTERNS,
    PRESETS,
    SAMPLINGS,
    SCHEDULES,
    STEMS,
    TRAINING_PRECISIONS,
    WEIGHT_SELECTIONS,
)
from ..options import PATH, bytes_from_size, dataset_option, numbers
from ..verb import Verb

_parse_integers = numbers(int, "0,1,2")

_data_options = cloup.option_group(
    "Data",
    dataset_option(
        f"Dataset to train on: one of {', '.join(DATASETS)}, found in the usual places or downloaded; NAME=FOLDER: its files in FOLDER; "
        "FOLDER: your own images, one folder per class.",
        default="digits",
    ),
    click.option(
        "--size",
        type=int,
        metavar="PIXELS",
        help="Height and width of the network's input; larger images are scaled and cropped.  [default: the dataset's]",
    ),
    click.option("--skip-damaged", is_flag=True, help="Skip images that cannot be decoded, instead of stopping at the first."),
    click.option(
        "--max-memory",
        callback=bytes_from_size,
        metavar="SIZE",
        help="Memory for decoding images or for a row group of a parquet file, such as 4G.  [default: half of the free memory]",
    ),
)
_network_options = cloup.option_group(
    "Network",
    click.option("--arch", type=click.Choice(ARCHITECTURES), default="resnet18", help="Architecture."),
    click.option(
        "--width", type=int, metavar="N", help="Channels of the first stage (the paper: 64).  [default: 8 for digits and mnist, else 64]"
    ),
    click.option(
        "--channel-multiplier", type=int, metavar="N", default=1, help="Factor on the channels of the defective blocks (the paper's xn)."
    ),
    click.option("--stem", type=click.Choice(STEMS), default="cifar", help="First layers; imagenet: a 7x7 convolution and a max-pool."),
)
_mask_options = cloup.option_group(
    "Defect masks",
    click.option("--keep", type=float, metavar="PROBABILITY", default=0.3, help="Keep probability, in (0, 1]; 1.0 trains a standard CNN."),
    click.option("--blocks", callback=_parse_integers, default="0,1,2", metavar="N,N,...", help="Blocks with masks; block 0 is the stem."),
    click.option(
        "--pattern", type=click.Choice(PATTERNS), default="neuron", help="Unit that a mask drops; shared: a position in all channels."
    ),
    click.option("--sampling", type=click.Choice(SAMPLINGS), default="bernoulli", help="How masks are drawn; exact: a fixed count."),
    click.option("--mask-seed", type=int, metavar="SEED", default=0, help="Seed of the masks."),
)
_baseline_options = cloup.option_group(
    "Dropout baseline",
    click.option("--drop", type=click.Choice(DROPS), help="Dropout during training, to compare masks with.  [default: none]"),
    click.option("--drop-keep", type=float, metavar="PROBABILITY", help="Keep probability of --drop, in (0, 1].  [default: 0.9]"),
    click.option("--drop-blocks", callback=_parse_integers, metavar="N,N,...", help="Blocks of --drop.  [default: 3,4]"),
)
# An option that is not used keeps the preset's value.
_recipe_options = cloup.option_group(
    "Recipe",
    click.option("--preset", type=click.Choice(PRESETS), default="fast", help="Recipe whose values the options below change."),
    click.option("--epochs", type=int, metavar="N", help="Passes over the training images.  [default: fast: 8, paper: 350]"),
    click.option("--batch-size", type=int, metavar="N", help="Images per step, over all processes.  [default: fast: 64, paper: 128]"),
    click.option("--learning-rate", type=float, metavar="RATE", help="Highest learning rate of the schedule.  [default: 0.1]"),
    click.option(
        "--schedule",
        type=click.Choice(SCHEDULES),
        help="Learning rate schedule; steps: divide by ten after each milestone.  [default: fast: one-cycle, paper: steps]",
    ),
    click.option(
        "--milestones",
        callback=_parse_integers,
        metavar="N,N,...",
        help="Epochs after which the learning rate falls.  [default: paper: 150,250]",
    ),
    click.option("--momentum", type=float, metavar="VALUE", help="Momentum of SGD.  [default: 0.9]"),
    click.option("--nesterov/--no-nesterov", default=None, help="Use Nesterov momentum.  [default: fast: yes, paper: no]"),
    click.option("--weight-decay", type=float, metavar="VALUE", help="Weight decay of SGD.  [default: 5e-4]"),
    click.option("--label-smoothing", type=float, metavar="VALUE", help="Label smoothing of the loss, in [0, 1).  [default: 0]"),
    click.option(
        "--largest-shift",
        type=float,
        metavar="FRACTION",
        help="Largest random shift, as a fraction of height and width.  [default: fast: 0.0625, paper: 0.125]",
    ),
    click.option("--flip/--no-flip", default=None, help="Mirror images at random, if the dataset allows it.  [default: yes]"),
    click.option(
        "--adversarial",
        type=click.Choice(ATTACKS),
        metavar="ATTACK",
        help="Train on adversarial examples of this attack, such as adversarial-training or pgd16.  [default: none]",
    ),
    click.option(
        "--choose",
        type=click.Choice(WEIGHT_SELECTIONS),
        help="Weights to save: of the last epoch, or the best on held-out images.  [default: last]",
    ),
    click.option(
        "--held-out", type=int, metavar="N", help="Training images to hold out.  [default: a tenth with --choose best, else none]"
    ),
    click.option("--seed", type=int, default=0, help="Seed of the initial weights, the order of images and their shifts.", metavar="SEED"),
)
_compute_options = cloup.option_group(
    "Hardware",
    click.option("--device", type=click.Choice(DEVICES), default="auto", help="Device; auto: a GPU if there is one."),
    click.option(
        "--processes", type=int, metavar="N", default=1, help="Processes on this machine, one per GPU; torchrun sets its own number."
    ),
    click.option(
        "--precision", type=click.Choice(TRAINING_PRECISIONS), help="Precision of the computation.  [default: bf16 on GPUs, else fp32]"
    ),
    click.option(
        "--channels-last/--no-channels-last", default=None, help="Use the memory format channels_last, on GPUs only.  [default: on GPUs]"
    ),
    click.option("--compile", is_flag=True, help="Use torch.compile: a minute to compile, then faster steps."),
    click.option("--threads", type=int, metavar="N", help="CPU threads per process.  [default: torch's choice]"),
)
_output_options = cloup.option_group(
    "Output",
    click.option("--half", is_flag=True, help="Save the weights as float16: half the file size."),
    click.option(
        "--run", "run_folder", type=PATH, metavar="FOLDER", help="Folder for state, log and learning curve.  [default: OUTPUT.run]"
    ),
    click.option("--resume", is_flag=True, help="Continue an interrupted run with the same options; start one if there is none."),
    click.option("--tensorboard", type=PATH, metavar="FOLDER", help="Write the log for TensorBoard too."),
    click.option("--force", is_flag=True, help="Overwrite OUTPUT, and discard an interrupted run."),
)


@cloup.command("train", cls=Verb, short_help="Train a CNN and save a checkpoint.")
@cloup.argument("output", type=PATH, metavar="OUTPUT.safetensors", help="Checkpoint to write.")
@_data_options
@_network_options
@_mask_options
@_baseline_options
@_recipe_options
@_compute_options
@_output_options
def command(**options: Any) -> None:
    r"""Train a CNN, and save its weights, defect masks, architecture and training record as a checkpoint.

    Test images never influence what is saved: the last epoch's weights or, with --choose best, those with the best accuracy on held-out
    images. You can interrupt or kill a run at any time: --resume continues it, with the same result, bit for bit on a CPU. The folder
    OUTPUT.run gets the log (log.jsonl) and the learning curve (learning_curve.png). Next: `defensemble export OUTPUT.safetensors`.

    \b
    Examples:
      defensemble train keep0.3.safetensors
      defensemble train --dataset photos --size 64 a.safetensors  # photos/CLASS/IMAGE
      defensemble train --dataset cifar10 --preset paper paper.safetensors
    """
    from ..actions.train import run

    run(**options)

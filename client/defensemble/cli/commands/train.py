"""`defensemble train`: data and a spec to a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from ..options import PATH, bytes_from_size, numbers, with_options

_numbers = numbers(int, "0,1,2")
# What changes a preset: None is the preset's own value.
_recipe_options = with_options(
    click.option("--preset", default="fast", help="Recipe: fast (one-cycle, 8 epochs) or paper (the authors')."),
    click.option("--epochs", type=int, help="Passes over the training images.  [default: the preset's, as below]"),
    click.option("--batch-size", type=int, help="Images per step, over all processes."),
    click.option("--learning-rate", type=float, help="Highest learning rate of the schedule."),
    click.option("--schedule", help="Learning rate schedule: one-cycle, or steps (a tenth after each milestone)."),
    click.option("--milestones", callback=_numbers, metavar="N,N,...", help="Epochs after which the learning rate falls."),
    click.option("--momentum", type=float, help="Momentum of SGD."),
    click.option("--nesterov/--no-nesterov", default=None, help="Use Nesterov momentum."),
    click.option("--weight-decay", type=float, help="Weight decay of SGD."),
    click.option("--label-smoothing", type=float, help="Label smoothing; 0.1 is the usual baseline."),
    click.option(
        "--largest-shift",
        type=float,
        help="Largest random shift, as a fraction of height and width; 0.125 is a padding of 4 for 32 pixels.",
    ),
    click.option("--flip/--no-flip", default=None, help="Mirror images at random, where the dataset allows it."),
    click.option("--adversarial", metavar="ATTACK", help="Train on adversarial examples of this attack, such as adversarial-training."),
    click.option("--choose", help="Weights to keep: last (of the last epoch) or best (on held-out images)."),
    click.option("--held-out", type=int, help="Number of training images to hold out.  [default: a tenth with --choose best, else none]"),
)


@click.command("train", short_help="A defective or standard CNN, trained and saved as a checkpoint.")
@click.argument("output", type=PATH, metavar="OUTPUT.safetensors")
@click.option(
    "--data",
    default="digits",
    help="Dataset: digits, mnist, cifar10, tiny-imagenet, imagenet, stylized-imagenet, or folder (your own images in --data-dir).",
)
@click.option("--data-dir", type=PATH, help="Folder with the images (parquet files or class folders), instead of a download from the hub.")
@click.option(
    "--size", type=int, help="Height and width of the network's input; other images are scaled and cropped to it.  [default: the dataset's]"
)
@click.option("--skip-damaged", is_flag=True, help="Leave out images that cannot be read, instead of stopping at the first.")
@click.option(
    "--max-memory",
    callback=bytes_from_size,
    metavar="SIZE",
    help="Memory that images may take while they are decoded, and those of one row group of a parquet file, such as 4G.  "
    "[default: half of the free memory]",
)
@click.option("--arch", default="resnet18", help="resnet18, resnet50, densenet121, senet18, vgg19, wrn32_4.")
@click.option("--keep", type=float, default=0.3, help="Keep probability of the masks, in (0, 1]; 1.0 is a standard CNN.")
@click.option("--blocks", callback=_numbers, default="0,1,2", metavar="N,N,...", help="Defective blocks; 0 is the stem.")
@click.option("--pattern", default="neuron", help="What a mask drops: neuron, channel or shared (over channels).")
@click.option("--sampling", default="bernoulli", help="How a mask is drawn: bernoulli, or exact (a fixed count).")
@click.option("--mask-seed", type=int, default=0, help="Seed of the masks.")
@click.option("--width", type=int, help="Channels of the first stage; the paper uses 64.  [default: 8 for digits and mnist, else 64]")
@click.option("--channel-multiplier", type=int, default=1, help="Factor on the channels of the defective blocks (the paper's xn).")
@click.option("--stem", default="cifar", help="cifar, or imagenet (7x7 and a max-pool, for 224x224).")
@click.option("--drop", metavar="KIND", help="Baseline: spatial_dropout or drop_block, in --drop-blocks.")
@click.option("--drop-keep", type=float, help="Keep probability of --drop.  [default: 0.9]")
@click.option("--drop-blocks", callback=_numbers, metavar="N,N,...", help="Blocks of --drop.  [default: 3,4]")
@_recipe_options
@click.option("--seed", type=int, default=0, help="Seed of initialisation, order and shifts.")
@click.option("--device", default="auto", help="cpu, gpu, or auto: a GPU where there is one.")
@click.option("--processes", type=int, default=1, help="Processes on this machine, one per GPU; `torchrun` sets its own number.")
@click.option("--precision", help="fp32 or bf16.  [default: bf16 on GPUs, else fp32]")
@click.option("--channels-last/--no-channels-last", default=None, help="Memory format; refused on CPUs.  [default: on GPUs]")
@click.option("--compile", is_flag=True, help="Use torch.compile: takes a minute at the start, faster afterwards.")
@click.option("--threads", type=int, help="CPU threads per process.  [default: torch's choice]")
@click.option("--half", is_flag=True, help="Write the weights in float16: half the file size.")
@click.option("--run", "run_folder", type=PATH, help="Folder for state, log and curve.  [default: OUTPUT.run]")
@click.option("--resume", is_flag=True, help="Continue an interrupted run with the same options; start one if there is none.")
@click.option("--tensorboard", type=PATH, metavar="DIR", help="Write the log for TensorBoard too.")
@click.option("--force", is_flag=True, help="Overwrite OUTPUT, and discard an interrupted run.")
def command(**given: Any) -> None:
    r"""Train a CNN and write it with its masks, spec and training record to OUTPUT.safetensors.

    Test images choose nothing: the last epoch's weights are kept, or with --choose best those that do best on held-out images. A run can be
    interrupted or killed at any time; --resume continues it, and the result is the same, bit for bit on a CPU. The folder OUTPUT.run gets
    the log (log.jsonl) and the learning curve (learning_curve.png). Next: `defensemble export OUTPUT.safetensors`.

    \b
    Examples:
      defensemble train keep0.3.safetensors
      defensemble train --keep 1.0 standard.safetensors
      defensemble train --data cifar10 --data-dir data/cifar10 --width 16 --epochs 12 --batch-size 128 keep0.3.safetensors
      defensemble train --data folder --data-dir photos --size 64 photos.safetensors      # photos/CLASS/IMAGE, a fifth is the test part
      defensemble train --data cifar10 --preset paper --keep 0.1 --device gpu --resume keep0.1.safetensors
      defensemble train --data cifar10 --preset paper --keep 1.0 --adversarial adversarial-training robust.safetensors
      defensemble train --pattern channel --sampling exact --blocks 3,4 --force top.safetensors
    """
    from ..actions.train import run

    run(**given)

"""`defensemble load`: how much load served models hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from ..choices import LOAD_ARRIVALS, OUTPUTS
from ..options import (
    IMAGE_SOURCE,
    PATH,
    SERVER_URL,
    ChoiceList,
    NumberRange,
    dataset_option,
    make_timeout_option,
    numbers,
    tls_files,
    tls_options,
)
from ..verb import Verb

if TYPE_CHECKING:
    from ...load import Slo
    from ..datasets import DatasetLocation


def _parse_slo(context: click.Context, option: click.Parameter, value: str | None) -> Slo | None:
    if value is None:
        return None
    from ..._exceptions import InputError
    from ...load.settings import slo_from_text

    try:
        return slo_from_text(value)
    except InputError as error:
        raise click.BadParameter(str(error)) from error


def _parse_batch(context: click.Context, option: click.Parameter, value: str) -> dict[int, float]:
    from ..._exceptions import InputError
    from ...load.settings import batch_sizes_from_text

    try:
        return batch_sizes_from_text(value)
    except InputError as error:
        raise click.BadParameter(str(error)) from error


def _check_load(settings: Mapping[str, Any], *, find_capacity: bool) -> None:
    callers, rates = settings["callers"] or (), settings["rates"] or ()
    if callers and rates:
        raise click.UsageError("--callers is a closed loop and --rate an open one: use one of them")
    if find_capacity and settings["slo"] is None:
        raise click.UsageError("--find-capacity needs an objective: pass --slo, such as --slo p99=50ms")
    if find_capacity and (callers or len(rates) > 1):
        raise click.UsageError("--find-capacity chooses the rates: pass at most one --rate, the first to try, and no --callers")


@cloup.command("load", cls=Verb, short_help="Load-test served models.")
@cloup.argument(
    "urls",
    nargs=-1,
    required=True,
    type=SERVER_URL,
    metavar="URL...",
    help="Servers: http://HOST:PORT, https://, grpc:// or grpcs://. Each step runs on one after the other, never at the same time.",
)
@cloup.option_group(
    "Load",
    click.option(
        "--callers",
        callback=numbers(int, "1,2,4,8"),
        metavar="N,M,...",
        help="Closed loop: callers of each step, which wait for an answer before their next call.  [default: 1,2,4,8]",
    ),
    click.option(
        "--rate",
        "rates",
        callback=numbers(float, "50,100,200"),
        metavar="R,S,...",
        help="Open loop: calls per second of each step. Latency counts from the time for which a call was scheduled.",
    ),
    click.option("--arrivals", type=click.Choice(LOAD_ARRIVALS), default="poisson", help="Arrivals of an open loop."),
    click.option(
        "--find-capacity",
        is_flag=True,
        help="Search the highest rate that holds --slo: doubles the rate, then halves the interval to 5 %. --rate: the first to try.",
    ),
    click.option(
        "--slo",
        callback=_parse_slo,
        metavar="OBJECTIVE",
        help="Latency objective, such as p99=50ms: a failed call counts as infinitely slow.  [default: none]",
    ),
    click.option(
        "--step", "step_s", type=NumberRange(0.1, 86400), metavar="SECONDS", default=5.0, help="Duration of each step, or of each trial."
    ),
    click.option(
        "--warm-up", "warm_up_s", type=NumberRange(0, 86400), metavar="SECONDS", default=1.0, help="Calls before each step, not counted."
    ),
    click.option(
        "--ramp",
        "ramp_s",
        type=NumberRange(0, 86400),
        metavar="SECONDS",
        default=0.0,
        help="Linear increase before the warm-up.",
    ),
)
@cloup.option_group(
    "Calls",
    click.option("--model", metavar="NAME", help="Model to call.  [default: the only ensemble]"),
    click.option(
        "--outputs",
        type=ChoiceList(OUTPUTS),
        metavar="NAME,...",
        default="probabilities",
        help=f"Outputs to request, of {', '.join(OUTPUTS)}.",
    ),
    click.option(
        "--batch",
        "batch_sizes",
        callback=_parse_batch,
        metavar="N|N:SHARE,...",
        default="1",
        help="Images per call; several sizes with their shares of the calls, such as 1:0.8,16:0.2.",
    ),
    click.option(
        "--images",
        type=IMAGE_SOURCE,
        metavar="FILE",
        multiple=True,
        help="Images to send: an image file, a folder, a pattern or a .npy file. Repeatable.  [default: random images]",
    ),
    dataset_option("Images to send: the test part of a dataset, or a folder with one folder per class, with the model's classes."),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        default=256,
        help="Number of images to read at most; calls use them again and again.",
    ),
    make_timeout_option("Timeout of a call, after which it has failed. There are no retries.", 10.0),
    click.option(
        "--max-in-flight",
        type=click.IntRange(min=1),
        metavar="N",
        default=512,
        help="Most calls under way in an open loop; a call that finds no free slot is not sent, and counts as failed.",
    ),
    click.option(
        "--processes",
        type=click.IntRange(min=1),
        metavar="N",
        help="Processes that make the calls.  [default: 1, and more, up to the cores, if the warm-up shows that they do not suffice]",
    ),
    click.option("--seed", type=click.IntRange(min=0), metavar="SEED", default=0, help="Seed of arrivals, batch sizes and random images."),
)
@cloup.option_group(
    "Output",
    click.option("--json", "json_file", type=PATH, metavar="FILE", help="Write the result; an earlier file is kept as NAME.1.json."),
    click.option("--html", "html_file", type=PATH, metavar="FILE", help="Write a report with charts."),
)
@cloup.option_group("TLS", *tls_options)
def command(
    urls: tuple[str, ...],
    find_capacity: bool,
    images: tuple[str, ...],
    dataset: DatasetLocation | None,
    limit: int,
    json_file: Path | None,
    html_file: Path | None,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    **settings: Any,
) -> None:
    r"""Load-test served models: throughput, latency and failures at each load, with the server's own counters for the same time.

    A failed call is never a latency, and is not repeated. An open loop reports no latency for a step in which the load generator itself
    sent more than 1 % of the calls more than 1 ms late. On the server's machine both share the cores: use another one if you can.
    Ctrl-C ends the test and keeps what was measured.

    The exit status is 0 if every step is valid and had answers, and the last step of each server holds --slo (with --find-capacity: if a
    capacity was found); 1 otherwise; 2 for wrong options; 130 after Ctrl-C.

    \b
    Examples:
      defensemble load http://localhost:8000
      defensemble load http://localhost:8000 grpc://localhost:8001 --callers 1,8 --batch 1:0.8,16:0.2
      defensemble load http://localhost:8000 --rate 50,100,200 --slo p99=50ms --step 10 --json load.json --html load.html
      defensemble load http://localhost:8000 --find-capacity --slo p99=50ms
    """
    from ..actions.load import ImageChoice, LoadOutput, load_test
    from ..interrupts import clean_up_on_sigint

    if images and dataset is not None:
        raise click.UsageError("--images and --dataset exclude each other: use one of them")
    _check_load(settings, find_capacity=find_capacity)
    clean_up_on_sigint()
    tls = tls_files(urls, ca_file, cert_file, key_file)
    choice, output = ImageChoice(images, dataset, limit), LoadOutput(json_file, html_file)
    status = load_test(urls, settings, choice, output, searches_capacity=find_capacity, tls=tls)
    if status:
        raise click.exceptions.Exit(status)

"""Load tests: steps of a load on one or several targets, and the search for the highest rate that holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from .._exceptions import InputError
from .._transport.base import TlsFiles
from .capacity import CapacitySearch, trial_from_step
from .result import Capacity, LoadResult, Slo
from .session import LoadSession, OnProgress
from .settings import LoadSettings

if TYPE_CHECKING:
    from .session import ImagesToSend


def run_load(
    urls: str | Sequence[str],
    settings: LoadSettings,
    images: ImagesToSend | None = None,
    *,
    images_name: str | None = None,
    tls: TlsFiles | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> LoadResult:
    """Run each step of a load on each target.

    Several targets are never called at the same time: each step runs on one target after the other. Ctrl-C ends the test; the result has
    what was measured until then. In a script, call it below `if __name__ == "__main__"`, because it spawns processes.

    Args:
        urls: One or several servers.
        settings: The load and the calls.
        images: The images to send, as `Client.predict` takes them, or a function that returns them for a model; None for random ones.
        images_name: Where the images came from, for the result.
        tls: PEM files, for servers that are called over TLS.
        on_progress: Called about once a second, and with each result of a step.

    Raises:
        InputError: An argument is invalid, or a model does not accept the calls.
        MissingExtraError: The extra `load` is not installed.
        ServiceError: A server cannot be reached before the test.
        WorkerEndedError: A process of the load generator ended.

    Example:
        >>> result = run_load("http://localhost:8000", LoadSettings(callers=(1, 8), step_s=10))
        >>> [step.requests_per_s for step in result.targets[0].steps]
    """
    if not settings.callers and not settings.rates:
        raise InputError("got neither callers nor rates: pass callers for a closed loop, or rates for an open loop")
    with LoadSession(urls, settings, images, images_name, tls, on_progress) as session:
        for load in settings.rates or settings.callers:
            for target in session.targets:
                if not session.is_interrupted:
                    session.run_step(target, load)
        return session.result()


def find_capacity(
    urls: str | Sequence[str],
    settings: LoadSettings,
    images: ImagesToSend | None = None,
    *,
    images_name: str | None = None,
    tls: TlsFiles | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> LoadResult:
    """Search the highest rate at which each target holds the latency objective, in an open loop.

    The rate is doubled until it does not hold, then the interval is halved until it is narrower than 5 %; the final rate must hold three
    times in all. A rate holds if the objective's quantile over all calls, failures as infinite, is within the objective, and the number of
    calls under way does not grow. The first rate is that of `settings.rates`, by default that of a single caller.

    Args:
        urls: One or several servers, which are searched one after the other.
        settings: The objective, at most one rate, and the calls.
        images: See `run_load`.
        images_name: See `run_load`.
        tls: See `run_load`.
        on_progress: See `run_load`.

    Raises:
        InputError: See `run_load`; or there is no objective.
        MissingExtraError: See `run_load`.
        ServiceError: See `run_load`.
        WorkerEndedError: See `run_load`.

    Example:
        >>> result = find_capacity("http://localhost:8000", LoadSettings(slo=Slo(0.99, 50)))
        >>> result.targets[0].capacity.rate_per_s
    """
    slo = settings.slo
    if slo is None:
        raise InputError("the capacity needs an objective: pass slo, such as Slo(0.99, 50.0)")
    if settings.callers or len(settings.rates) > 1:
        raise InputError("the search for the capacity chooses its rates: pass at most one rate, the first to try, and no callers")
    first = settings.rates[0] if settings.rates else None
    settings = replace(settings, rates=(first or 1.0,))
    with LoadSession(urls, settings, images, images_name, tls, on_progress) as session:
        found: dict[str, Capacity] = {}
        for target in session.targets:
            if session.is_interrupted:
                break
            search = CapacitySearch(first or session.single_caller_rate(target))
            while not session.is_interrupted and (rate := search.next_rate()) is not None:
                recording, step = session.run_step(target, rate)
                if not session.is_interrupted:
                    search.add(trial_from_step(step, recording, slo))
            capacity = search.result(was_interrupted=session.is_interrupted)
            found[target.url] = msgspec.structs.replace(
                capacity, problem=capacity.problem or _too_few_calls(capacity, settings.step_s, slo)
            )
        return session.result(found)


def _too_few_calls(capacity: Capacity, step_s: float, slo: Slo) -> str | None:
    """Return why a capacity depends on chance: of too few calls, the objective's quantile is the slowest one."""
    if capacity.rate_per_s is None:
        return None
    calls, needed = capacity.rate_per_s * step_s, math.ceil(1 / (1 - slo.quantile) - 1e-9)
    if calls >= needed:
        return None
    seconds = math.ceil(needed / capacity.rate_per_s)
    return f"its trials had about {calls:.0f} calls, of which {slo.name} is the slowest: use steps of {seconds} s or longer"

"""The action of `defensemble status`: what servers serve, and how much they have to do."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from defensemble_repository.names import AVERAGING_NAME

from ..._client.calls import ServerHealth
from ..._client.client import Client
from ..._client.model_info import is_ensemble_metadata, steps_from_config
from ..._client.retries import RetryPolicy
from ..._client.runtime import BlockingRuntime
from ..._exceptions import ForbiddenError, ModelNotFoundError, NotReadyError, RequestRefusedError, ServiceError
from ..._transport.address import TLS_SCHEMES, address_from_url
from ..._transport.base import ModelMetadata, ModelState, ModelStatistics, TlsFiles
from ...ensembles.local_servers import find_local_server, local_server_status
from ..cells import cell

if TYPE_CHECKING:
    from defensemble_server import ServerStatus

SCHEMA = "defensemble.status/1"
_FILE_WIDTH = 160  # characters per line where standard output is not a terminal
_REFUSALS = (ForbiddenError, ModelNotFoundError, RequestRefusedError)


@dataclass(frozen=True)
class ServerSample:
    """What a server reported at a time.

    Attributes:
        taken: Time of the counters, by the monotonic clock.
        health: Whether it responds.
        round_trip_s: Time of a small request; None if it does not respond.
        kinds: `ensemble`, `average`, `member` or `model`, for each loaded model.
        counters: The counters of each version of each loaded model; None if the server reports none.
        unavailable: Models that are not loaded, of servers that list them.
        local: Restarts and uptime, for a server of `defensemble serve` on this machine.
    """

    taken: float
    health: ServerHealth
    round_trip_s: float | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    counters: Sequence[ModelStatistics] | None = None
    unavailable: Sequence[ModelState] = ()
    local: ServerStatus | None = None


class WatchedServer:
    """A server that is asked again and again. It is only asked what costs it nothing: no model runs for it.

    Args:
        client: A client of this server only, without retries.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lists_states = True
        self._metadata: dict[str, ModelMetadata] = {}

    async def sample(self) -> ServerSample:
        """Ask the server. Blocks: a coroutine only for `BlockingRuntime`, whose threads do not delay Ctrl-C."""
        (health,) = self._client.health()
        local = local_server_status(health.url)
        if health.error is not None:
            return ServerSample(time.monotonic(), health, local=local)
        try:
            started = time.monotonic()
            self._client.server_metadata()
            round_trip_s = time.monotonic() - started
            try:
                counters = self._client.statistics()
                names = sorted({entry.name for entry in counters})
            except RequestRefusedError:
                counters, names = None, self._models()
            taken = time.monotonic()
            return ServerSample(taken, health, round_trip_s, self._kinds(names), counters, self._unavailable(), local)
        except ServiceError as error:
            return ServerSample(time.monotonic(), replace(health, error=error), local=local)

    def _models(self) -> list[str]:
        try:
            return self._client.models()
        except _REFUSALS:
            return []

    def _kinds(self, names: Sequence[str]) -> dict[str, str]:
        steps = {name: self._steps(name) for name in names}
        members = {step for found in steps.values() for step in found or ()}

        def kind(name: str) -> str:
            if steps[name] is not None:
                return "ensemble"
            return "average" if AVERAGING_NAME.fullmatch(name) else "member" if name in members else "model"

        return {name: kind(name) for name in names}

    def _steps(self, name: str) -> tuple[str, ...] | None:
        """Return the models that an ensemble runs, empty if the server does not show them; None for another model."""
        transport, timeout_s = self._client.transport, self._client.timeout_s
        try:
            if name not in self._metadata:
                self._metadata[name] = transport.model_metadata(name, timeout_s)
        except (*_REFUSALS, NotReadyError):  # unloaded since it was listed
            return None
        if not is_ensemble_metadata(self._metadata[name]):
            return None
        try:
            return steps_from_config(transport.model_config(name, timeout_s))
        except (*_REFUSALS, NotReadyError):
            return ()

    def _unavailable(self) -> list[ModelState]:
        """Return the models that failed to load or are loading, from servers that show this client their repository."""
        if not self._lists_states:
            return []
        try:
            states = self._client.transport.repository_index(self._client.timeout_s)
        except _REFUSALS:
            self._lists_states = False
            return []
        return [state for state in states if state.state not in ("READY", "") and state.reason != "unloaded"]


def show_status(urls: Sequence[str], *, interval_s: float | None, as_json: bool, timeout_s: float, tls: TlsFiles | None) -> bool:
    """Print what servers serve, once or again and again. Returns whether all respond.

    Args:
        urls: The servers.
        interval_s: Seconds between the beginnings of two looks, until Ctrl-C; None for one look.
        as_json: Whether to print JSON: one object, or a line for each look.
        timeout_s: Timeout of each request.
        tls: PEM files for TLS.
    """
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    with ExitStack() as stack:
        servers = [WatchedServer(stack.enter_context(_client(url, timeout_s, tls))) for url in dict.fromkeys(urls)]
        samples = take_samples(servers)
        if interval_s is None:
            _print(console, samples, [None] * len(samples), as_json=as_json, indent=2)
            return all(sample.health.error is None for sample in samples)
        live = stack.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal and not as_json else None
        before: Sequence[ServerSample | None] = [None] * len(samples)
        while True:
            next_look = time.monotonic() + interval_s
            if live is not None:
                live.update(tables_from_samples(samples, before), refresh=True)
            else:
                _print(console, samples, before, as_json=as_json, indent=None)
            time.sleep(max(0.0, next_look - time.monotonic()))
            before, samples = samples, take_samples(servers)


def take_samples(servers: Sequence[WatchedServer]) -> list[ServerSample]:
    """Ask all servers at the same time."""
    runtime = BlockingRuntime()
    started = [runtime.start(server.sample()) for server in servers]
    return [handle.result() for handle in started]


def values_from_samples(samples: Sequence[ServerSample], before: Sequence[ServerSample | None]) -> dict[str, Any]:
    """Return samples as values for JSON.

    Args:
        samples: One sample of each server.
        before: The previous sample of each: rates and means are of the time in between. None: means are of the time since a model was
            loaded, and there are no rates.
    """
    servers = []
    for sample, previous in zip(samples, before, strict=True):
        health, local = sample.health, sample.local
        servers.append(
            {
                "url": health.url,
                "name": health.name,
                "version": health.version,
                "live": health.is_live,
                "ready": health.is_ready,
                "error": None if health.error is None else str(health.error),
                "round_trip_ms": None if sample.round_trip_s is None else round(1000 * sample.round_trip_s, 3),
                "restarts": None if local is None else local.restarts,
                "uptime_s": None if local is None else round(local.uptime_s, 3),
                "wrong": {} if local is None else dict(local.wrong),
                "restarting": local is not None and local.restarting_since is not None,
                "has_statistics": sample.counters is not None,
                "models": _models(sample, previous),
            }
        )
    return {"schema": SCHEMA, "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "servers": servers}


def tables_from_samples(samples: Sequence[ServerSample], before: Sequence[ServerSample | None]) -> Group:
    """Return the tables that show samples: one of the servers, the errors below it, and one of models for each server.

    Args:
        samples: See `values_from_samples`.
        before: See `values_from_samples`.
    """
    servers = values_from_samples(samples, before)["servers"]
    errors = [Text(f"{_error(server)}\n") for server in servers if server["error"] is not None]
    return Group(
        _server_table(servers), *errors, *(_model_table(server, with_title=len(servers) > 1) for server in servers if server["models"])
    )


def _client(url: str, timeout_s: float, tls: TlsFiles | None) -> Client:
    local = find_local_server(url)
    key = None if local is None else local.admin_key  # shows which models are not loaded, and what ensembles consist of
    own_tls = tls if address_from_url(url).scheme in TLS_SCHEMES else None
    return Client(url, timeout_s=timeout_s, retry=RetryPolicy(max_retries=0), tls=own_tls, admin_key=key)


def _models(sample: ServerSample, previous: ServerSample | None) -> list[dict[str, Any]]:
    models = []
    if sample.counters is None:
        models = [_model(name, None, kind, "READY") for name, kind in sample.kinds.items()]
    earlier = {(entry.name, entry.version): entry for entry in (previous.counters if previous is not None else None) or ()}
    for entry in sample.counters or ():
        model = _model(entry.name, entry.version, sample.kinds[entry.name], "READY")
        since = earlier.get((entry.name, entry.version))
        if since is None or entry.requests < since.requests:  # it was loaded again meanwhile
            since = ModelStatistics(entry.name, entry.version, 0, 0, 0)
        elif previous is not None:
            seconds = sample.taken - previous.taken
            model["requests_per_s"] = round((entry.requests - since.requests) / seconds, 3)
            model["images_per_s"] = round((entry.images - since.images) / seconds, 3)
        model |= {"requests": entry.requests, "images": entry.images, "failures": entry.failures}
        succeeded = entry.requests - entry.failures - (since.requests - since.failures)
        if succeeded > 0:
            model["latency_ms"] = round((entry.success_ns - since.success_ns) / succeeded / 1e6, 3)
            model["queue_ms"] = round((entry.queue_ns - since.queue_ns) / succeeded / 1e6, 3)
        models.append(model)
    models += [_model(state.name, state.version, "model", state.state, state.reason) for state in sample.unavailable]
    rank = {"ensemble": 0, "member": 1, "model": 2, "average": 3}
    return sorted(models, key=lambda model: (rank[model["kind"]], model["name"], model["version"] or 0))


def _model(name: str, version: int | None, kind: str, state: str, reason: str = "") -> dict[str, Any]:
    numbers = ("requests_per_s", "images_per_s", "latency_ms", "queue_ms", "failures", "requests", "images")
    return {"name": name, "version": version, "kind": kind, "state": state, "reason": reason, **dict.fromkeys(numbers)}


def _print(
    console: Console, samples: Sequence[ServerSample], before: Sequence[ServerSample | None], *, as_json: bool, indent: int | None
) -> None:
    if as_json:
        click.echo(json.dumps(values_from_samples(samples, before), indent=indent, allow_nan=False))
    else:
        console.print(tables_from_samples(samples, before))


def _server_table(servers: Sequence[Mapping[str, Any]]) -> Table:
    table = _table()
    for name in ("server", "version", "state"):
        table.add_column(name, overflow="fold")
    for name in ("restarts", "uptime", "round trip"):
        table.add_column(name, justify="right", no_wrap=True)
    for server in servers:
        uptime = "" if server["uptime_s"] is None else str(timedelta(seconds=int(server["uptime_s"])))
        round_trip = "" if server["round_trip_ms"] is None else f"{server['round_trip_ms']:.1f} ms"
        restarts = "" if server["restarts"] is None else str(server["restarts"])
        version = f"{server['name']} {server['version']}".strip()
        table.add_row(*map(cell, (server["url"], version, _state(server), restarts, uptime, round_trip)))
    return table


def _model_table(server: Mapping[str, Any], *, with_title: bool) -> Table:
    models = server["models"]
    table = _table(cell(server["url"]) if with_title else None)
    # On a narrow terminal, only names and reasons are shortened.
    table.add_column("model", overflow="ellipsis", min_width=10)
    table.add_column("v", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("state", overflow="fold", min_width=len("READY"))
    numbers = {"latency_ms": ".2f", "queue_ms": ".2f", "failures": ",", "requests": ","}
    if any(model["requests_per_s"] is not None for model in models):
        del numbers["requests"]  # with it, the table does not fit into 80 columns
        numbers = {"requests_per_s": ",.1f", "images_per_s": ",.1f", **numbers}
    else:
        numbers["images"] = ","
    for name in numbers:
        table.add_column(name.replace("_per_s", "\nper s").replace("_ms", "\nms"), justify="right", no_wrap=True)
    for model in models:
        state = f"{model['state']}: {model['reason']}" if model["reason"] else model["state"]
        cells = [model["name"], "" if model["version"] is None else str(model["version"]), model["kind"], state]
        cells += ["-" if model[name] is None else f"{model[name]:{form}}" for name, form in numbers.items()]
        table.add_row(*map(cell, cells))
    return table


def _table(title: str | None = None) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _error(server: Mapping[str, Any]) -> str:
    url, error = server["url"], server["error"]
    return str(error) if url in error else f"{url}: {error}"


def _state(server: Mapping[str, Any]) -> str:
    if server["restarting"]:
        return "restarting"
    if server["error"] is not None:
        return "error"
    if server["wrong"]:
        return f"WRONG answers: {', '.join(server['wrong'])}"
    state = "ready" if server["ready"] else "live, not ready" if server["live"] else "not live"
    return state if server["has_statistics"] else f"{state}; reports no statistics"

"""The models of one server, and how edits load and unload them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from defensemble_repository.errors import ConfigError
from defensemble_repository.filesystem.atomic_write import shared_mode, write_atomic
from defensemble_repository.names import AVERAGING_NAME, CONFIG_FILE
from defensemble_repository.view import RepositoryView

from .._client.client import Client
from .._exceptions import (
    ConnectionFailedError,
    DeadlineExceededError,
    ModelNotFoundError,
    NotReadyError,
    RequestRefusedError,
    ServerFailedError,
    ServiceError,
)
from .._transport.base import OutputRequest
from .._transport.error_mapping import call_context, service_error
from .local_servers import find_local_server, may_restart

_POLL_S = 0.02
# How long to wait for a server that no longer answers. The guard of `serve` restarts a server in about a second.
RESTART_WAIT_S = 5.0
# How long a model must have had no requests to count as idle.
_IDLE_S = 0.05
_NETWORK_IDLE_S = 1.0
_NETWORK_POLL_S = 0.1
_T = TypeVar("_T")


@dataclass(frozen=True)
class InferCall:
    """The arguments of `ModelServer.infer`."""

    model: str
    inputs: Mapping[str, NDArray[np.float32]]
    outputs: Sequence[str]
    version: int | None = None


class ModelServer:
    """One server and its models. Every call raises ServiceError if the server refuses it or does not answer.

    Args:
        client: A client of the server that may load and unload models; its timeout applies to all calls except loads.
        load_timeout_s: The timeout of loads.
        on_progress: Receives a message when an edit waits for a server that no longer answers.
    """

    def __init__(self, client: Client, *, load_timeout_s: float, on_progress: Callable[[str], None] = lambda text: None) -> None:
        self._transport = client.transport
        self._timeout_s = client.timeout_s
        self._load_timeout_s = load_timeout_s
        self._on_progress = on_progress
        self._has_answered = False
        self._is_local = False  # whether `serve` ran it on this machine when it first answered

    def __repr__(self) -> str:
        return f"ModelServer({self.url!r})"

    @property
    def url(self) -> str:
        """The URL of the server."""
        return self._transport.url

    def wait_until_back(self) -> bool:
        """Wait for a server that no longer answers and may be restarting; return whether it answers again within `RESTART_WAIT_S`.

        Triton listens once its models are loaded. A server on this machine that will not be restarted is not waited for.
        """
        is_local = self._is_local or find_local_server(self.url) is not None
        if not (self._has_answered or may_restart(self.url)):
            return False
        self._on_progress(f"wait for {self.url}, which may be restarting")
        deadline = time.monotonic() + RESTART_WAIT_S
        while True:
            try:
                self._transport.repository_index(min(self._timeout_s, RESTART_WAIT_S))
            except (ConnectionFailedError, DeadlineExceededError, NotReadyError):
                if time.monotonic() >= deadline or (is_local and find_local_server(self.url) is None):
                    return False
            else:
                return True
            time.sleep(_POLL_S)

    def ready(self) -> dict[str, set[int]]:
        """Return the loaded versions of each model; fails for clients that the server does not allow to edit."""
        versions: dict[str, set[int]] = {}
        index = self._transport.repository_index(self._timeout_s)
        for state in index:
            if state.state == "READY" and state.version is not None:
                versions.setdefault(state.name, set()).add(state.version)
        # Triton keeps serving a model whose folder was deleted, but its index omits the model.
        names = {state.name for state in index}
        for statistics in self._transport.statistics(self._timeout_s):
            if statistics.name not in names:
                versions.setdefault(statistics.name, set()).add(statistics.version)
        if not self._has_answered:
            self._has_answered, self._is_local = True, find_local_server(self.url) is not None
        return versions

    def core_version(self) -> str:
        """Return the version of the server, such as `"2.51.0"`."""
        return self._transport.server_metadata(self._timeout_s).version

    def config(self, model: str) -> dict[str, Any] | None:
        """Return the configuration that a model was loaded with, as JSON; None if it is not loaded."""
        try:
            return self._transport.model_config(model, self._timeout_s)
        except (ModelNotFoundError, NotReadyError):
            return None
        except ServerFailedError:
            if model in self.ready():
                raise
            return None  # not loaded: not every protocol has a separate status for that

    def steps(self, model: str) -> list[tuple[str, int]]:
        """Return the models that a loaded ensemble runs, with their versions; empty if it is not loaded or not an ensemble."""
        return steps_of(self.config(model) or {})

    def models_used_by(self, loaded: Iterable[str]) -> set[str]:
        """Return the models that the ensembles among `loaded` run."""
        return {step for model in loaded if not is_averaging(model) for step, _ in self.steps(model)}

    def load(self, model: str) -> None:
        """Load a model from the server's folder, or reload it if its files have changed; the old one serves until then."""
        self._transport.load_model(model, self._load_timeout_s)

    def load_from_folder(self, folder: Path, model: str, *, verify: bool = True) -> bool:
        """Load a model from `folder`.

        Args:
            folder: The repository.
            model: The model.
            verify: Whether to compare configurations after a load that succeeded.

        Returns:
            Whether the server then has the configuration in `folder`; True if that is not verified.

        Raises:
            ServiceError: The server does not load the model, or reads another folder.
            OSError: The server considers the files older than those that it has loaded, and the configuration cannot be written again.
        """
        try:
            self.load(model)
        except (ServerFailedError, RequestRefusedError) as error:
            if not any(state.name == model for state in self._transport.repository_index(self._timeout_s)):
                raise self._other_folder_error("load", model, f"it does not see that model, which is in {folder}") from error
            if not self.is_outdated(folder, model):
                raise
        else:
            if not verify or not self.is_outdated(folder, model):
                return True
        # Triton (observed with core 2.51) considers a loaded model unchanged if its files, by the later of mtime and ctime, are not newer
        # than those that it has loaded, as with a backup that was moved into place. Writing the configuration again makes it newer.
        config = folder / model / CONFIG_FILE
        write_atomic(config, config.read_bytes(), mode=shared_mode(config))
        self.load(model)
        return not self.is_outdated(folder, model)

    def is_outdated(self, folder: Path, model: str) -> bool:
        """Return whether a model is loaded with another configuration than the one in `folder`."""
        from defensemble_export.editing import is_served_as_on_disk

        loaded = self.config(model)
        return loaded is not None and RepositoryView(folder).has(model) and not is_served_as_on_disk(RepositoryView(folder), model, loaded)

    def load_and_verify(self, folder: Path, model: str) -> None:
        """Load a model from `folder` and check that it is ready: Triton reports success for files that it refused before."""
        self.load_from_folder(folder, model)
        if model not in self.ready():
            index = self._transport.repository_index(self._timeout_s)
            reason = next((state.reason for state in index if state.name == model), "") or "no reason given"
            raise service_error(ServerFailedError, call_context(self.url, "load model", model), f"it is not ready after that ({reason})")

    def unload(self, model: str) -> None:
        """Unload a model."""
        self._transport.unload_model(model, self._timeout_s)

    def unload_deleted(self, folder: Path, model: str) -> None:
        """Unload a model whose folder in `folder` was deleted; if the server still sees it, the server reads another folder."""
        self.unload(model)
        # Triton's index lists all models in its folder, also those that are being unloaded.
        if any(state.name == model for state in self._transport.repository_index(self._timeout_s)):
            raise self._other_folder_error("unload", model, f"it still sees that model, which was removed from {folder}")

    def _other_folder_error(self, verb: str, model: str, reason: str) -> ServiceError:
        fix = "Name the folder that it serves: --repository FOLDER, or --replica URL=FOLDER if each server has its own."
        context = call_context(self.url, f"{verb} model", model)
        return service_error(ServerFailedError, context, f"{reason}: it reads another folder", {ServerFailedError: fix})

    def infer(
        self, model: str, inputs: Mapping[str, NDArray[np.float32]], outputs: Sequence[str], version: int | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Run a model; return its outputs as float64.

        Args:
            model: The model.
            inputs: The inputs, by name.
            outputs: The names of the outputs.
            version: The version; None for the one that the server chooses.
        """
        requests = [OutputRequest(name) for name in outputs]
        response = self._transport.infer(model, inputs, requests, self._timeout_s, version=version)
        context = call_context(self.url, "run model", model)
        missing = [name for name in outputs if name not in response]
        if missing:
            raise service_error(ServerFailedError, context, f"its response has no output {', '.join(missing)}")
        not_finite = [name for name in outputs if not np.isfinite(response[name]).all()]
        if not_finite:
            raise service_error(ServerFailedError, context, f"{', '.join(not_finite)} has values that are not finite")
        return {name: response[name].astype(np.float64) for name in outputs}

    def infer_all(self, calls: Sequence[InferCall]) -> list[dict[str, NDArray[np.float64]]]:
        """Run several models concurrently, to wait behind other clients only once; return the outputs of each as `infer` does."""
        if not calls:
            return []
        with ThreadPoolExecutor(len(calls), thread_name_prefix="defensemble-edit") as pool:
            return list(pool.map(lambda call: self.infer(call.model, call.inputs, call.outputs, call.version), calls))

    def wait_until_idle(self, models: Sequence[str], deadline_s: float) -> list[str]:
        """Wait until models have had no requests for a while; return those that are still busy at the deadline.

        Only ensembles call averaging models. Clients may call a network by its own name from time to time, so networks must be idle longer.
        """
        deadline = time.monotonic() + deadline_s
        last_changes: dict[str, tuple[int, float]] = {}  # the number of requests, and when it last changed
        while True:
            counts: dict[str, int] = dict.fromkeys(models, 0)
            for statistics in self._transport.statistics(self._timeout_s):
                if statistics.name in counts:
                    counts[statistics.name] += statistics.requests
            now = time.monotonic()
            for model, count in counts.items():
                if model not in last_changes or last_changes[model][0] != count:
                    last_changes[model] = count, now
            remaining_s = {model: last_changes[model][1] + (_IDLE_S if is_averaging(model) else _NETWORK_IDLE_S) - now for model in models}
            busy = [model for model, seconds in remaining_s.items() if seconds > 0]
            if not busy or now >= deadline:
                return busy
            # A network is polled more often than it must be idle, to know when its last call was.
            time.sleep(min(_NETWORK_POLL_S, max(remaining_s.values()), deadline - now))


def repeat_after_restart(servers: Sequence[ModelServer], act: Callable[[], _T], on_restart: Callable[[], None] = lambda: None) -> _T:
    """Run `act`; if the connection to a server is lost, wait until all servers answer again and run it once more.

    Args:
        servers: The servers that `act` calls.
        act: The action. It must find out itself what is loaded: a server that restarted has loaded what is on disk, and nothing else.
        on_restart: Called before the second run.

    Raises:
        ConnectionFailedError: A server does not answer again, or is lost a second time.
    """
    try:
        return act()
    except ConnectionFailedError:
        if not all(server.wait_until_back() for server in servers):
            raise
    on_restart()
    return act()


def steps_of(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the models that an ensemble runs, with their versions, from its configuration on a server; empty for other models."""
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    return [(str(step["model_name"]), int(step.get("model_version", -1))) for step in steps]


def is_averaging(model: str) -> bool:
    """Return whether a name has the form that exports and edits give to averaging models; other names may start the same way."""
    return AVERAGING_NAME.fullmatch(model) is not None


def unused_models(repository: Path, server: ModelServer, candidates: Collection[str], *, include_averaging: bool = False) -> list[str]:
    """Return the loaded models among the candidates that no ensemble runs, neither on the server nor on disk.

    Args:
        repository: The repository.
        server: The server.
        candidates: The models to consider.
        include_averaging: Whether all averaging models are candidates too.

    Returns:
        The models; empty if a configuration on disk cannot be read, which `check` reports.
    """
    from defensemble_export.editing import used_models

    ready = server.ready()
    chosen = [model for model in ready if model in candidates or (include_averaging and is_averaging(model))]
    if not chosen:
        return []
    try:
        used = used_models(RepositoryView(repository)) | server.models_used_by(ready)
    except ConfigError:
        return []
    return [model for model in chosen if model not in used]

"""One server, as an editor sees it: what it has loaded, and how that is changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from .._transport.error_mapping import service_error
from .local_servers import find_local_server, may_restart

_POLL_S = 0.02
# How long a server that is lost gets to answer again. The guard of `serve` restarts one in about a second.
RESTART_WAIT_S = 5.0
# For how long nobody must have asked a model.
_QUIET_S = 0.05
_QUIET_OF_A_NETWORK_S = 1.0
_POLL_OF_A_NETWORK_S = 0.1
_T = TypeVar("_T")


class Served:
    """The models of one server, which `client` may load and unload; loads get `load_timeout_s`, everything else the client's timeout.

    `on_progress` receives a message when the server is lost and waited for. Each call raises a ServiceError where the server refuses it
    or does not answer.
    """

    def __init__(self, client: Client, *, load_timeout_s: float, on_progress: Callable[[str], None] = lambda text: None) -> None:
        self._transport = client.transport
        self._timeout_s = client.timeout_s
        self._load_timeout_s = load_timeout_s
        self._on_progress = on_progress
        self._has_answered = False
        self._guarded = False  # whether `serve` ran it on this machine when it answered first

    def __repr__(self) -> str:
        return f"Served({self.url!r})"

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._transport.url

    def wait_until_back(self) -> bool:
        """Wait for a server that was lost and may be restarting. Returns whether it answers again within `RESTART_WAIT_S`.

        Triton listens once its models are loaded. A server of this machine that nobody will start is not waited for.
        """
        guarded = self._guarded or find_local_server(self.url) is not None
        if not (self._has_answered or may_restart(self.url)):
            return False
        self._on_progress(f"wait for {self.url}, which may be restarting")
        ends = time.monotonic() + RESTART_WAIT_S
        while True:
            try:
                self._transport.repository_index(min(self._timeout_s, RESTART_WAIT_S))
            except (ConnectionFailedError, DeadlineExceededError, NotReadyError):
                if time.monotonic() >= ends or (guarded and find_local_server(self.url) is None):
                    return False
            else:
                return True
            time.sleep(_POLL_S)

    def ready(self) -> dict[str, set[int]]:
        """The versions of each model that answer; fails for whom the server does not let edit."""
        found: dict[str, set[int]] = {}
        listed = self._transport.repository_index(self._timeout_s)
        for state in listed:
            if state.state == "READY" and state.version is not None:
                found.setdefault(state.name, set()).add(state.version)
        # A model whose folder is gone is served on, and Triton's index leaves it out.
        names = {state.name for state in listed}
        for told in self._transport.statistics(self._timeout_s):
            if told.name not in names:
                found.setdefault(told.name, set()).add(told.version)
        if not self._has_answered:
            self._has_answered, self._guarded = True, find_local_server(self.url) is not None
        return found

    def core(self) -> str:
        """The version of the server, such as "2.51.0"."""
        return self._transport.server_metadata(self._timeout_s).version

    def config(self, model: str) -> dict[str, Any] | None:
        """The configuration that a model was loaded with, as JSON; None where it is not loaded."""
        try:
            return self._transport.model_config(model, self._timeout_s)
        except (ModelNotFoundError, NotReadyError):
            return None
        except ServerFailedError:
            if model in self.ready():
                raise
            return None  # not loaded: Triton has no status of its own for that over every protocol

    def steps(self, model: str) -> list[tuple[str, int]]:
        """The models, with their versions, that an ensemble runs as it is loaded; none where it is not, or is no ensemble."""
        told = self.config(model) or {}
        steps = told.get("ensemble_scheduling", {}).get("step", [])
        return [(str(step["model_name"]), int(step.get("model_version", -1))) for step in steps]

    def used(self, loaded: Iterable[str]) -> set[str]:
        """The models that any of `loaded`, which are ensembles or not, runs."""
        return {step for model in loaded if not is_averaging(model) for step, _ in self.steps(model)}

    def load(self, model: str) -> None:
        """Load a model from the server's folder, or again where its files have changed; the old one serves until then."""
        self._transport.load_model(model, self._load_timeout_s)

    def load_from(self, folder: Path, model: str) -> bool:
        """Load a model that lies in `folder`; where the server does not see it there, says that it reads another folder.

        Returns whether what it then has loaded is the configuration in `folder`.

        Raises:
            OSError: It takes the files for older than what it has loaded, and the configuration cannot be written again.
        """
        try:
            self.load(model)
        except (ServerFailedError, RequestRefusedError) as error:
            if not any(state.name == model for state in self._transport.repository_index(self._timeout_s)):
                raise self._reads_another("load", model, f"it sees no such model, which lies in {folder}") from error
            if not self.differs(folder, model):
                raise
        else:
            if not self.differs(folder, model):
                return True
        # Triton (2.51, seen) takes a loaded model for unchanged whose files, by the later of their times of content and of status, are not
        # newer than those that it has loaded: a backup that was moved into place. Written again, the configuration is.
        config = folder / model / CONFIG_FILE
        write_atomic(config, config.read_bytes(), mode=shared_mode(config))
        self.load(model)
        return not self.differs(folder, model)

    def differs(self, folder: Path, model: str) -> bool:
        """Whether a model is loaded with another configuration than lies in `folder`."""
        from defensemble_export.editing import is_served_as_on_disk

        loaded = self.config(model)
        return loaded is not None and RepositoryView(folder).has(model) and not is_served_as_on_disk(RepositoryView(folder), model, loaded)

    def load_and_verify(self, folder: Path, model: str) -> None:
        """Load a model from `folder`, and look whether it is loaded: of files that it has refused once, Triton says OK the next time."""
        self.load_from(folder, model)
        if model not in self.ready():
            told = next((state.reason for state in self._transport.repository_index(self._timeout_s) if state.name == model), "")
            raise service_error(
                ServerFailedError, f"{self.url}, asked to load {model!r}", f"it is not ready after that ({told or 'no reason given'})"
            )

    def unload(self, model: str) -> None:
        """Take a model out of service."""
        self._transport.unload_model(model, self._timeout_s)

    def unload_deleted(self, folder: Path, model: str) -> None:
        """Take a model out of service whose folder in `folder` is gone; where the server still sees it, it reads another folder."""
        self.unload(model)
        # Triton's index lists what it sees in its folder, on its way out or not.
        if any(state.name == model for state in self._transport.repository_index(self._timeout_s)):
            raise self._reads_another("unload", model, f"it sees that model still, which was removed from {folder}")

    def _reads_another(self, verb: str, model: str, told: str) -> ServiceError:
        mend = "Name the folder that it was started on: --repository FOLDER, or --replica URL=FOLDER where each server has its own."
        what = f"{self.url}, asked to {verb} model {model!r}"
        return service_error(ServerFailedError, what, f"{told}: it reads another folder", {ServerFailedError: mend})

    def infer(
        self, model: str, inputs: Mapping[str, NDArray[np.float32]], outputs: Sequence[str], version: int | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Run a model; its outputs as float64."""
        asked = [OutputRequest(name) for name in outputs]
        answer = self._transport.infer(model, inputs, asked, self._timeout_s, version=version)
        what = f"{self.url}, asked to run model {model!r}"
        missing = [name for name in outputs if name not in answer]
        if missing:
            raise service_error(ServerFailedError, what, f"its answer lacks {', '.join(missing)}")
        wild = [name for name in outputs if not np.isfinite(answer[name]).all()]
        if wild:
            raise service_error(ServerFailedError, what, f"{', '.join(wild)} holds values that are not finite")
        return {name: answer[name].astype(np.float64) for name in outputs}

    def infer_all(
        self, asked: Sequence[tuple[str, int]], inputs: Mapping[str, NDArray[np.float32]], output: str
    ) -> dict[tuple[str, int], NDArray[np.float64]]:
        """One output of several models at their versions, asked at once, so that they share the wait behind other callers."""
        if not asked:
            return {}
        with ThreadPoolExecutor(len(asked), thread_name_prefix="defensemble-edit") as pool:
            answers = pool.map(lambda one: self.infer(one[0], inputs, [output], one[1])[output], asked)
            return dict(zip(asked, answers, strict=True))

    def wait_until_idle(self, models: Sequence[str], deadline_s: float) -> list[str]:
        """Wait until nobody asks `models` any more; those that are asked even so when the time is over.

        Averaging models nobody calls but ensembles; who calls a network by its own name may do so once in a while.
        """
        ends = time.monotonic() + deadline_s
        known: dict[str, tuple[int, float]] = {}  # how many requests, and since when
        while True:
            now: dict[str, int] = dict.fromkeys(models, 0)
            for told in self._transport.statistics(self._timeout_s):
                if told.name in now:
                    now[told.name] += told.requests
            moment = time.monotonic()
            for model, count in now.items():
                if model not in known or known[model][0] != count:
                    known[model] = count, moment
            busy = [model for model in models if moment - known[model][1] < (_QUIET_S if is_averaging(model) else _QUIET_OF_A_NETWORK_S)]
            if not busy or moment >= ends:
                return busy
            time.sleep(_POLL_S if any(map(is_averaging, busy)) else _POLL_OF_A_NETWORK_S)


def repeat_after_restart(servers: Sequence[Served], act: Callable[[], _T], on_restart: Callable[[], None] = lambda: None) -> _T:
    """Do what calls `servers`; where the connection to one is lost, wait until all answer, call `on_restart`, and do it again, once.

    `act` must find out for itself what is loaded: a server that was restarted has loaded what lies on disk, and nothing else. A server that
    does not answer again, or is lost a second time, is a ConnectionFailedError.
    """
    try:
        return act()
    except ConnectionFailedError:
        if not all(served.wait_until_back() for served in servers):
            raise
    on_restart()
    return act()


def is_averaging(model: str) -> bool:
    """Whether a name is one that an export or an edit gives to an averaging model; others may begin so too."""
    return AVERAGING_NAME.fullmatch(model) is not None


def unused_models(repository: Path, served: Served, candidates: Collection[str], *, all_averages: bool = False) -> list[str]:
    """The loaded ones of the `candidates`, or of `all_averages` too, that neither an ensemble that is served nor one on disk runs.

    Empty where that is not known, since a configuration on disk cannot be read: `check` tells of it.
    """
    from defensemble_export.editing import used_models

    ready = served.ready()
    chosen = [model for model in ready if model in candidates or (all_averages and is_averaging(model))]
    if not chosen:
        return []
    try:
        used = used_models(RepositoryView(repository)) | served.used(ready)
    except ConfigError:
        return []
    return [model for model in chosen if model not in used]

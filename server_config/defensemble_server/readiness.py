"""Verify that a started server answers correctly, by inference: Triton can report that it is ready while every request fails."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

from defensemble_repository.averaging import (
    ROUNDED_TOLERANCE,
    SUM_TOLERANCE,
    TOLERANCE,
    largest_difference,
    read_averaging,
    read_fused_averaging,
    reference_outputs,
    serves_fused_members,
)
from defensemble_repository.names import PENDING_FILE

from .addresses import claim_ports
from .admin_key import ADMIN_HEADER
from .errors import NotServableError, ServerError, StartError
from .options import ServeOptions
from .process.guard import last_lines
from .process.launch import read_content
from .process.refusals import read_refusals
from .process.state import connect_host, listens, process_start, url_host
from .repository import Model, Repository, format_problems, without_version

# Longest time for one call, within the time for the start.
_CALL_TIMEOUT_S = 120.0
# How long to wait for an edit in progress before its ensemble is compared with the files on disk.
_EDIT_TIMEOUT_S = 10.0
# How long to retry a request that the model's queue refuses, as a queue with a timeout shorter than a run does at first.
_REFUSED_S = 5.0


class _DeadlineError(ServerError):
    """The time for the start has expired."""


@dataclass(frozen=True)
class Probe:
    """The HTTP calls that a start needs; none continues after `deadline` (seconds of the monotonic clock)."""

    pool: urllib3.HTTPConnectionPool
    admin_key: str
    deadline: float

    def live(self) -> bool:
        """Return whether the HTTP front end answers; it opens once all models are loaded or refused."""
        try:
            timeout_s = min(2.0, max(0.01, self.deadline - time.monotonic()))
            return bool(self.pool.request("GET", "/v2/health/live", retries=False, timeout=timeout_s).status == 200)
        except urllib3.exceptions.HTTPError:
            return False

    def index(self) -> list[dict[str, str]]:
        """Return Triton's repository index: name, version, state and reason of each model."""
        listing: list[dict[str, str]] = self._call("POST", "/v2/repository/index", {})
        return listing

    def unload(self, model: str) -> None:
        """Unload a model."""
        self._call("POST", f"/v2/repository/models/{model}/unload", {})

    def infer(self, model: str, version: int | None, images: np.ndarray[Any, Any], output: str) -> np.ndarray[Any, Any]:
        """Return one output of one model for `images` (N,C,H,W), as float32."""
        inputs = [{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}]
        where = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
        answer = self._call("POST", f"{where}/infer", {"inputs": inputs, "outputs": [{"name": output}]}, retry_s=_REFUSED_S)
        got = answer["outputs"][0]
        values: np.ndarray[Any, Any] = np.array(got["data"], np.float32).reshape(got["shape"])
        return values

    def _call(self, method: str, path: str, body: dict[str, Any], *, retry_s: float = 0.0) -> Any:
        retry_until = time.monotonic() + retry_s
        while True:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0:
                raise _DeadlineError(path)
            try:
                response = self.pool.request(
                    method,
                    path,
                    body=json.dumps(body),
                    headers={ADMIN_HEADER: self.admin_key},
                    retries=False,
                    timeout=urllib3.Timeout(total=min(_CALL_TIMEOUT_S, left_s)),
                )
            except urllib3.exceptions.HTTPError as error:
                if time.monotonic() >= self.deadline:
                    raise _DeadlineError(path) from error
                raise StartError(f"{path}: the server did not answer: {error}") from error
            if response.status == 200:
                return json.loads(response.data) if response.data else None
            if response.status != 503 or time.monotonic() > retry_until:
                raise StartError(f"{path}: the server answered {response.status}: {response.data.decode(errors='replace')[:500]}")


def await_ready(
    pid: int, content: Repository, options: ServeOptions, admin_key: str, log: Path, timeout_s: float, *, guard_pid: int
) -> tuple[list[str], dict[str, str]]:
    """Wait until Triton answers, check its answers, and unload the models whose answers are wrong.

    Args:
        pid: Triton's process.
        content: The models that it is to serve.
        options: The options of the server, with its real ports.
        admin_key: Key for the administrative APIs.
        log: Triton's log.
        timeout_s: Seconds for all of this.
        guard_pid: The process of its guard.

    Returns:
        The names of the models that it serves, and for each other model the reason why not.

    Raises:
        PortError: Another program took a port first.
        NotServableError: Triton could not load any model.
        StartError: Triton ended, took too long, or no model answers correctly.
    """
    deadline = time.monotonic() + timeout_s
    with urllib3.HTTPConnectionPool(url_host(connect_host(options.host)), options.http_port, maxsize=1) as pool:
        probe = Probe(pool, admin_key, deadline)
        while not (probe.live() and (options.runtime == "docker" or _listens(pid, options.http_port))):
            if process_start(pid) is None:
                claim_ports(options.host, options.triton_ports, guard_pid=guard_pid)  # raises PortError if another program took a port
                raise StartError(f"Triton ended during startup{last_lines(log)}")
            if time.monotonic() > deadline:
                raise StartError(f"Triton was not ready within {timeout_s:g} s: it has not answered yet{last_lines(log)}")
            time.sleep(0.01)
        try:
            # Each line of the log has Triton's process ID; inside a container that ID is unknown here.
            return _checked(probe, content, options, read_refusals(log, None if options.runtime == "docker" else pid))
        except _DeadlineError as error:
            raise StartError(f"Triton was not ready within {timeout_s:g} s: no answer to {error}{last_lines(log)}") from error


def _listens(pid: int, port: int) -> bool:
    try:
        return listens(pid, port)
    except OSError:
        # For a process that is ending, the kernel reports ENOENT, ESRCH, EINVAL or ENXIO; for a running process these are errors.
        if process_start(pid) is not None:
            raise
        return False  # the caller checks next whether the process has ended


def _checked(probe: Probe, content: Repository, options: ServeOptions, refusals: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the models that a server serves, and why not the others; unload those with wrong answers."""
    failed = failed_models(probe, content, refusals)
    served = [name for name in content.models if name not in failed]
    if not served:
        problems = format_problems({**content.problems, **failed})
        raise NotServableError(f"Triton could load none of the models in {content.path}:\n{problems}")
    edit_deadline = min(probe.deadline, time.monotonic() + _EDIT_TIMEOUT_S)
    while wrong := check_answers(probe, content, served):
        # An edit may have changed the files or the served models in the meantime: only an answer that stays wrong counts.
        edited = read_content(content.path, options)
        served = [name for name in served if name in edited.models]
        same = all(edited.models[name] == content.models.get(name) for name in served)
        if time.monotonic() > edit_deadline or (same and not (content.path / PENDING_FILE).exists()):
            break
        content = edited
        time.sleep(0.1)
    if served and len(wrong) == len(served):
        raise StartError(f"none of the models in {content.path} answers correctly:\n{format_problems(wrong)}")
    for name in wrong:
        probe.unload(name)
    return [name for name in served if name not in wrong], {**content.problems, **failed, **wrong}


def fixed_images(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return one image (1,C,H,W) in [0, 1], the same on every machine: an asymmetric ramp."""
    size = int(np.prod(shape))
    ramp: np.ndarray[Any, Any] = (np.arange(size, dtype=np.float32) * np.float32(0.618034)) % 1
    return ramp.reshape(1, *shape)


def failed_models(probe: Probe, repository: Repository, refusals: Mapping[str, str]) -> dict[str, str]:
    """Return the models that Triton could not load, with the reason from its index, else from `refusals` (its log)."""
    index = probe.index()
    failed: dict[str, str] = {}
    for name, model in repository.models.items():
        entries = [entry for entry in index if entry["name"] == name]
        if entries and all(entry.get("reason") == "unloaded" for entry in entries):
            continue  # loaded, and since unloaded by an edit
        # A version is unavailable without a reason if the version policy excludes it, or another version failed.
        bad = [entry for entry in entries if entry.get("state") != "READY" and entry.get("reason") not in (None, "", "unloaded")]
        if bad or not any(entry.get("state") == "READY" for entry in entries):
            failed[name] = "; ".join(sorted({_refusal(entry, repository, model) for entry in bad}))

    def reason(name: str) -> str:
        step = next(
            (step.model_name for step in repository.models[name].config.ensemble_scheduling.step if step.model_name in failed), None
        )
        if step is not None and not failed[name]:
            return f"its step '{step}' cannot be served: {reason(step)}"
        return failed[name] or refusals.get(name) or "Triton gives no reason"

    return {name: reason(name) for name in failed}


def _refusal(entry: dict[str, str], repository: Repository, model: Model) -> str:
    if len(model.served_versions) == 1 or "version" not in entry:
        return entry["reason"]
    fix = without_version(repository.path / model.name, model, int(entry["version"]))
    return f"version {entry['version']}: {entry['reason']}; {fix}"


def check_answers(probe: Probe, repository: Repository, served: list[str]) -> dict[str, str]:
    """Send one fixed image to every served classifier, ensemble and fused graph, and compare averages with numpy's.

    Returns:
        What is wrong, by model: it does not answer, or with values that are not finite; an ensemble's answer is not the average of its
        members' answers, or a member is wrong; a fused graph's answer is not a distribution, or not the average of its members' answers
        if those are served too.
    """
    logits: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    wrong: dict[str, str] = {}
    loaded = {(entry["name"], int(entry["version"])) for entry in probe.index() if entry.get("state") == "READY"}
    for name in served:
        model = repository.models[name]
        for version in model.versions if model.is_classifier else ():
            if (name, version) not in loaded:
                continue
            try:
                answer = probe.infer(name, version, images_for(model), "logits")
            except StartError as error:
                wrong[name] = f"version {version} does not answer: {error}"
                continue
            if not np.isfinite(answer).all():
                wrong[name] = f"version {version} answers the fixed image with values that are not finite"
            logits[name, version] = answer
    for name in served:
        model = repository.models[name]
        if model.is_fused and (problem := _problem_of_average(probe, repository, model, logits)):
            wrong[name] = problem
        outputs = [tensor.name for tensor in model.config.output]
        if not model.is_ensemble or "probabilities" not in outputs or [tensor.name for tensor in model.config.input] != ["images"]:
            continue
        broken = sorted({step.model_name for step in model.config.ensemble_scheduling.step} & set(wrong))
        if broken:
            wrong[name] = f"its step '{broken[0]}' does not answer correctly: {wrong[broken[0]]}"
        elif problem := _problem_of_average(probe, repository, model, logits):
            wrong[name] = problem
    return wrong


def _problem_of_average(
    probe: Probe, repository: Repository, model: Model, logits: dict[tuple[str, int], np.ndarray[Any, Any]]
) -> str | None:
    """Return what is wrong with the answer of an ensemble or a fused graph, or None."""
    try:
        got = probe.infer(model.name, None, images_for(model), "probabilities")
    except StartError as error:
        return str(error)
    if model.is_fused:
        total = float(got.sum())
        if not (got.min() >= 0 and abs(total - 1) <= SUM_TOLERANCE):  # also true for NaN
            return f"it answers values from {got.min():.3g} to {got.max():.3g} with sum {total:.3g}, expected probabilities"
        average, weights, members = read_fused_averaging(model.name, model.config)
        if not serves_fused_members(model.name, model.config, repository.configs):
            return None  # models of the same names, but not the fused ones, are served
        precisions = {model.parameter(f"precision.{version}") for version in model.served_versions}
        tolerance = TOLERANCE if precisions <= {None, "fp32"} else ROUNDED_TOLERANCE
        names = f"{', '.join(f'{name}@{version}' for name, version in members)}, which are served too"
        fix = "its graph does not match its configuration; fuse the ensemble again"
    else:
        averaging = read_averaging(model.config, repository.configs)
        if averaging is None:
            return None  # a custom averaging model, whose correct answer is unknown
        (average, weights), members, tolerance, names = averaging, model.members, TOLERANCE, "its members"
        fix = "its averaging model does not match its configuration; export the ensemble again"
    if any(member not in logits for member in members):
        return None
    expected = reference_outputs([logits[member] for member in members], average, weights)
    difference = largest_difference(got, expected["probabilities"])
    if difference <= tolerance:
        return None
    return f"it differs by {difference:.3g} from the average ({average}) of {names}, more than the tolerance {tolerance}: {fix}"


def images_for(model: Model) -> np.ndarray[Any, Any]:
    """Return the fixed image for a model; a dynamic size counts as 1."""
    return fixed_images(tuple(max(1, size) for size in model.config.input[0].dims))

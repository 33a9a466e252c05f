"""Does a started server answer, and rightly? Triton's own readiness can say yes while every request fails, so real inferences are made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import urllib3

from ._errors import StartError
from .options import ADMIN_HEADER
from .repository import Model, Repository, averaging_of, fused_averaging, serves_what_was_fused, without_version

# Between an ensemble's answer and numpy's average of its members' answers, both float32.
TOLERANCE = 1e-5
# The same of a fused graph that holds members of a lower precision: its rounding depends on which nodes a runtime runs as one.
ROUNDED_TOLERANCE = 1e-2
# Between 1 and the sum of probabilities.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Probe:
    """HTTP calls to one server, for the few that starting needs."""

    pool: urllib3.HTTPConnectionPool
    admin_key: str

    def live(self) -> bool:
        """Whether the HTTP front end answers at all; it opens once all models were loaded or refused."""
        try:
            return bool(self.pool.request("GET", "/v2/health/live", retries=False, timeout=2.0).status == 200)
        except urllib3.exceptions.HTTPError:
            return False

    def index(self) -> list[dict[str, str]]:
        """Triton's list of models: name, version, state, reason."""
        listing: list[dict[str, str]] = self._call("POST", "/v2/repository/index", {})
        return listing

    def unload(self, model: str) -> None:
        """Take a model out of service."""
        self._call("POST", f"/v2/repository/models/{model}/unload", {})

    def infer(self, model: str, version: int | None, images: np.ndarray[Any, Any], output: str) -> np.ndarray[Any, Any]:
        """One output of one model for ``images`` (N,C,H,W), as float32."""
        inputs = [{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}]
        where = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
        answer = self._call("POST", f"{where}/infer", {"inputs": inputs, "outputs": [{"name": output}]})
        got = answer["outputs"][0]
        values: np.ndarray[Any, Any] = np.array(got["data"], np.float32).reshape(got["shape"])
        return values

    def _call(self, method: str, path: str, body: dict[str, Any]) -> Any:
        try:
            response = self.pool.request(
                method, path, body=json.dumps(body), headers={ADMIN_HEADER: self.admin_key}, retries=False, timeout=120.0
            )
        except urllib3.exceptions.HTTPError as error:
            raise StartError(f"{path}: the server did not answer: {error}") from error
        if response.status != 200:
            raise StartError(f"{path}: the server answered {response.status}: {response.data.decode(errors='replace')[:500]}")
        return json.loads(response.data) if response.data else None


def fixed_images(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """One image (1,C,H,W) in [0, 1], the same on every machine: a ramp that no symmetry hides."""
    size = int(np.prod(shape))
    ramp: np.ndarray[Any, Any] = (np.arange(size, dtype=np.float32) * np.float32(0.618034)) % 1
    return ramp.reshape(1, *shape)


def failed_models(probe: Probe, repository: Repository) -> dict[str, str]:
    """The models that Triton could not load, with its reason."""
    states: dict[str, list[dict[str, str]]] = {}
    for entry in probe.index():
        states.setdefault(entry["name"], []).append(entry)
    failed = {}
    for name, model in repository.models.items():
        # A version that the configuration's policy leaves out, or that is good beside a bad one, is unavailable without a reason.
        bad = [
            entry for entry in states.get(name, []) if entry.get("state") != "READY" and entry.get("reason") not in (None, "", "unloaded")
        ]
        if bad or not any(entry.get("state") == "READY" for entry in states.get(name, [])):
            failed[name] = "; ".join(sorted({_refusal(entry, repository, model) for entry in bad}))
    for name in [name for name, reason in failed.items() if not reason]:
        steps = [step.model_name for step in repository.models[name].config.ensemble_scheduling.step]
        step = next((step for step in steps if step in failed), None)
        if step is not None:
            failed[name] = f"its step '{step}' cannot be served: {failed[step] or 'Triton gives no reason'}"
        else:
            failed[name] = f"Triton gives no reason; one of its steps {steps} may not fit" if steps else "Triton gives no reason"
    return failed


def _refusal(entry: dict[str, str], repository: Repository, model: Model) -> str:
    if len(model.served_versions) == 1 or "version" not in entry:
        return entry["reason"]
    mend = without_version(repository.path / model.name, model, int(entry["version"]))
    return f"version {entry['version']}: {entry['reason']}; {mend}"


def check_answers(probe: Probe, repository: Repository, served: list[str]) -> dict[str, str]:
    """Send one fixed image through every classifier, ensemble and fused graph that is served, and compare averages with numpy's.

    Returns what is wrong, by model: it does not answer, or answers values that are not finite; an ensemble's answer is not the average of
    its members', or one of them is wrong; a fused graph's answer is no probabilities, or not the average of its members' where those are
    served too.
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
                answer = probe.infer(name, version, _images_for(model), "logits")
            except StartError as error:
                wrong[name] = f"version {version} does not answer: {error}"
                continue
            if not np.isfinite(answer).all():
                wrong[name] = f"version {version} answers values that are not finite on the fixed image"
            logits[name, version] = answer
    for name in served:
        model = repository.models[name]
        if model.is_fused and (told := _problem_of_fused(probe, repository, model, logits)):
            wrong[name] = told
        outputs = [tensor.name for tensor in model.config.output]
        if not model.is_ensemble or "probabilities" not in outputs or [tensor.name for tensor in model.config.input] != ["images"]:
            continue
        broken = sorted({step.model_name for step in model.config.ensemble_scheduling.step} & set(wrong))
        if broken:
            problem: str | None = f"its step '{broken[0]}' does not answer rightly: {wrong[broken[0]]}"
        else:
            problem = _problem_of_ensemble(probe, repository, model, logits)
        if problem:
            wrong[name] = problem
    return wrong


def _problem_of_ensemble(
    probe: Probe, repository: Repository, model: Model, logits: dict[tuple[str, int], np.ndarray[Any, Any]]
) -> str | None:
    try:
        got = probe.infer(model.name, None, _images_for(model), "probabilities")
    except StartError as error:
        return str(error)
    averaging = averaging_of(model, repository.models)
    if averaging is None or any(vote not in logits for vote in model.votes):
        return None  # somebody else's averaging: it answered, and what it should have answered is not known
    average, weights = averaging
    difference = _difference(got, average, weights, [logits[vote] for vote in model.votes])
    if difference <= TOLERANCE:
        return None
    return (
        f"it differs by {difference:.3g} from the average ({average}) of its members, allowed is {TOLERANCE}: "
        "its averaging model is not what its configuration says; export the ensemble again"
    )


def _problem_of_fused(
    probe: Probe, repository: Repository, model: Model, logits: dict[tuple[str, int], np.ndarray[Any, Any]]
) -> str | None:
    try:
        got = probe.infer(model.name, None, _images_for(model), "probabilities")
    except StartError as error:
        return str(error)
    total = float(got.sum())
    if not (got.min() >= 0 and abs(total - 1) <= SUM_TOLERANCE):  # also where one is NaN
        return f"it answers values from {got.min():.3g} to {got.max():.3g} with the sum {total:.3g}, which are no probabilities"
    average, weights, votes = fused_averaging(model)
    if any(vote not in logits for vote in votes) or not serves_what_was_fused(model, repository.models):
        return None  # its members are not served here, or others of the same names are
    precisions = {model.parameter(f"precision.{version}") for version in model.served_versions}
    tolerance = TOLERANCE if precisions <= {None, "fp32"} else ROUNDED_TOLERANCE
    difference = _difference(got, average, weights, [logits[vote] for vote in votes])
    if difference <= tolerance:
        return None
    return (
        f"it differs by {difference:.3g} from the average ({average}) of {', '.join(f'{name}@{version}' for name, version in votes)}, "
        f"which are served here too, allowed is {tolerance}: its graph is not what its configuration says; fuse them again"
    )


def _difference(got: np.ndarray[Any, Any], average: str, weights: list[float], logits: list[np.ndarray[Any, Any]]) -> float:
    """How far probabilities (1,K) are from numpy's average of the votes' logits."""
    votes = np.stack(logits).astype(np.float64)  # (M,1,K)
    normalised = np.array(weights).reshape(-1, 1, 1) / np.sum(weights)
    expected = (normalised * _softmax(votes)).sum(0) if average == "probabilities" else _softmax((normalised * votes).sum(0))
    return float(np.abs(got - expected).max())


def _images_for(model: Model) -> np.ndarray[Any, Any]:
    return fixed_images(tuple(max(1, size) for size in model.config.input[0].dims))


def _softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    normalised: np.ndarray[Any, Any] = powers / powers.sum(axis=-1, keepdims=True)
    return normalised

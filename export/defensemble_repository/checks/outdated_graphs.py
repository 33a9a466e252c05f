"""Which fused graphs hold other votes than their ensemble has now; no graph is opened."""

from __future__ import annotations

import math

from ..ensemble import Ensemble
from ..errors import ConfigError, RepositoryError
from ..names import CONFIG_FILE
from ..pbtxt import schema
from ..reader import ensemble_from_configs, is_ensemble, parameter, stated_members
from ..view import RepositoryView


def outdated_graphs(files: RepositoryView, now: Ensemble) -> list[str]:
    """Return the fused graphs that belong to `now`, an ensemble of `files`, but hold the votes of no ensemble there any more.

    A graph belongs to the ensemble that its configuration names. One that an older version wrote names none: it belongs to the ensemble
    that has its votes on disk, before what is planned in `files`, else to the one that shares most votes with it.
    """
    candidates = {}
    for name in files.models():
        config = _config_of_graph(files, name)
        graph = None if config is None else stated_members(config, now.name)  # None too where edited by hand, which the server reports
        if config is not None and graph is not None and {vote.model for vote in graph.members} & {vote.model for vote in now.members}:
            candidates[name] = (graph, parameter(config, "ensemble"))
    if not candidates:
        return []
    ensembles = [now, *(other for name in files.models() if name != now.name and (other := _ensemble_in(files, name)) is not None)]
    before = _ensemble_in(RepositoryView(files.repository), now.name)
    found = []
    for name, (graph, origin) in candidates.items():
        if any(_same_votes(graph, other) for other in ensembles):
            continue
        if origin is None and before is not None and _same_votes(graph, before):
            origin = now.name
        if origin is None:
            origin = max(ensembles, key=lambda other: (_likeness(graph, other), other.name)).name
        if origin == now.name:
            found.append(name)
    return found


def _config_of_graph(files: RepositoryView, model: str) -> schema.ModelConfig | None:
    """Return the configuration of a model that could be a fused graph, else None."""
    try:
        content = files.content(f"{model}/{CONFIG_FILE}") or b""
        # Parsing takes a millisecond a model, and most are none.
        config = files.config(model) if b"images" in content and b"members" in content else None
    except (ConfigError, OSError):
        return None  # what is wrong with another model is no concern of an ensemble's
    if config is None or is_ensemble(config) or [tensor.name for tensor in config.input] != ["images"]:
        return None
    return config


def _ensemble_in(files: RepositoryView, name: str) -> Ensemble | None:
    """Return an ensemble, or None where the model is none, or none that can be read."""
    try:
        if b"ensemble_scheduling" not in (files.content(f"{name}/{CONFIG_FILE}") or b""):
            return None
        config = files.config(name)
        models = dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step)
        return ensemble_from_configs(name, {**{model: files.config(model) for model in models if files.has(model)}, name: config})
    except (RepositoryError, OSError):
        return None


def _shares(ensemble: Ensemble) -> dict[tuple[str, int], float]:
    return {(vote.model, vote.version): weight for vote, weight in zip(ensemble.members, ensemble.weights, strict=True)}


def _same_votes(one: Ensemble, other: Ensemble) -> bool:
    """Whether two ensembles have the same members, versions, shares of the weights, and average, in whatever order."""
    mine, theirs = _shares(one), _shares(other)
    if one.average != other.average or mine.keys() != theirs.keys():
        return False
    return all(math.isclose(weight, theirs[vote], rel_tol=1e-9) for vote, weight in mine.items())


def _likeness(graph: Ensemble, ensemble: Ensemble) -> tuple[int, int, int, bool]:
    """How much of a graph's votes an ensemble has: more members of the same version, of any version, fewer others, the same average."""
    mine, theirs = _shares(graph), _shares(ensemble)
    models = {model for model, _ in mine} & {model for model, _ in theirs}
    return len(mine.keys() & theirs.keys()), len(models), -len(theirs), graph.average == ensemble.average

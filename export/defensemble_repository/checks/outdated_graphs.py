"""Find fused graphs whose members or weights differ from those of their ensemble, without opening a graph."""

from __future__ import annotations

import math

from ..ensemble import Ensemble
from ..errors import ConfigError, RepositoryError
from ..names import CONFIG_FILE
from ..pbtxt import schema
from ..reader import ensemble_from_configs, is_ensemble, parameter, stated_members
from ..view import RepositoryView


def outdated_graphs(files: RepositoryView, ensemble: Ensemble) -> list[str]:
    """Return the fused graphs of an ensemble that match no ensemble in the repository any more.

    A graph belongs to the ensemble that its configuration names. A graph of an older version names none: it belongs to the ensemble with
    the same members on disk, before the planned changes, or else to the most similar ensemble.

    Args:
        files: The repository, with the planned changes.
        ensemble: The ensemble after these changes.
    """
    candidates = {}
    for name in files.models():
        config = _config_of_graph(files, name)
        if config is None:
            continue
        graph = stated_members(config, ensemble.name)
        if graph is None:
            continue  # The parameters are not valid, which the server reports.
        if {member.model for member in graph.members} & {member.model for member in ensemble.members}:
            candidates[name] = (graph, parameter(config, "ensemble"))
    if not candidates:
        return []
    others = (_ensemble_in(files, name) for name in files.models() if name != ensemble.name)
    ensembles = [ensemble, *(other for other in others if other is not None)]
    before = _ensemble_in(RepositoryView(files.repository), ensemble.name)
    outdated = []
    for name, (graph, origin) in candidates.items():
        if any(_same_computation(graph, other) for other in ensembles):
            continue
        if origin is None and before is not None and _same_computation(graph, before):
            origin = ensemble.name
        if origin is None:
            origin = max(ensembles, key=lambda other: (_similarity(graph, other), other.name)).name
        if origin == ensemble.name:
            outdated.append(name)
    return outdated


def _config_of_graph(files: RepositoryView, model: str) -> schema.ModelConfig | None:
    """Return the configuration of a model that may be a fused graph, else None."""
    try:
        content = files.content(f"{model}/{CONFIG_FILE}") or b""
        # Parsing takes a millisecond per model, and most models are not fused graphs.
        config = files.config(model) if b"images" in content and b"members" in content else None
    except (ConfigError, OSError):
        return None  # Other checks report problems of other models.
    if config is None or is_ensemble(config) or [tensor.name for tensor in config.input] != ["images"]:
        return None
    return config


def _ensemble_in(files: RepositoryView, name: str) -> Ensemble | None:
    """Return an ensemble, or None if the model is not an ensemble, or cannot be read."""
    try:
        if b"ensemble_scheduling" not in (files.content(f"{name}/{CONFIG_FILE}") or b""):
            return None
        config = files.config(name)
        models = dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step)
        return ensemble_from_configs(name, {**{model: files.config(model) for model in models if files.has(model)}, name: config})
    except (RepositoryError, OSError):
        return None


def _shares(ensemble: Ensemble) -> dict[tuple[str, int], float]:
    return {(member.model, member.version): weight for member, weight in zip(ensemble.members, ensemble.weights, strict=True)}


def _same_computation(first: Ensemble, second: Ensemble) -> bool:
    """Return whether two ensembles have the same members, versions, normalised weights and average, in any order."""
    shares, expected = _shares(first), _shares(second)
    if first.average != second.average or shares.keys() != expected.keys():
        return False
    return all(math.isclose(weight, expected[member], rel_tol=1e-9) for member, weight in shares.items())


def _similarity(graph: Ensemble, ensemble: Ensemble) -> tuple[int, int, int, bool]:
    """Return a sort key: the number of common members, of common models, fewer other members, and an equal average."""
    members, others = _shares(graph).keys(), _shares(ensemble).keys()
    models = {model for model, _ in members} & {model for model, _ in others}
    return len(members & others), len(models), -len(others), graph.average == ensemble.average

"""All checks of ensembles and repositories, on what is on disk or on what an edit would make of it."""

from __future__ import annotations

from collections.abc import Mapping

from defensemble_repository.checks.ensemble import check_ensemble_configs
from defensemble_repository.checks.finding import Finding
from defensemble_repository.checks.inspection import Inspection
from defensemble_repository.checks.outdated_graphs import outdated_graphs
from defensemble_repository.checks.repository import check_models, check_root_links
from defensemble_repository.checks.wiring import step_path
from defensemble_repository.ensemble import Ensemble, averaging_model_name, two_model_names
from defensemble_repository.errors import EnsembleError
from defensemble_repository.names import CONFIG_FILE
from defensemble_repository.pbtxt import schema
from defensemble_repository.reader import ensemble_from_configs
from defensemble_repository.target import ANY, Target
from defensemble_repository.view import RepositoryView

from ..graphs.averaging import average_onnx, is_same_graph
from .graphs import check_graphs


def check_ensemble(files: RepositoryView, name: str, *, target: Target = ANY) -> list[Finding]:
    """Find all that is wrong with the ensemble `name`, its members and its averaging models, before an edit is written or loaded.

    Stricter than Triton on purpose: a step pins a version, names are those that an export gives, files are what their digests say, labels
    and profiles agree, and averaging models are what their parameters and their name say. Graphs are not opened: a server does that.

    Args:
        files: the repository, as it is or as it will be.
        name: the ensemble.
        target: the Triton that is to load it.
    """
    found = Inspection(files, target, all_profiles=True, for_edit=True, is_generated=_is_generated, check_ensemble=_check_votes)
    check_ensemble_configs(found, name)
    return found.findings


def check_repository(files: RepositoryView, target: Target, name: str | None = None) -> list[Finding]:
    """Find all that keeps `target` from serving the ensemble `name`, or each model of a repository, graphs included.

    Raises:
        OSError: the repository cannot be listed.
    """
    found = Inspection(files, target, all_profiles=True, is_generated=_is_generated, check_ensemble=_check_votes)
    if name is None:
        models, _ = check_models(found)
    else:
        check_root_links(found)
        check_ensemble_configs(found, name)
        config = found.config(name) if found.has(name) else None
        models = [step.model_name for step in config.ensemble_scheduling.step if found.has(step.model_name)] if config is not None else []
    check_graphs(found, models)
    return found.findings


def _is_generated(content: bytes, votes: Ensemble, classes: int) -> bool:
    """Whether the file of an averaging model is the graph of these votes."""
    return is_same_graph(content, average_onnx(votes, classes))


def _check_votes(found: Inspection, name: str, config: schema.ModelConfig, known: Mapping[str, schema.ModelConfig], refused: bool) -> None:
    """Whether this ensemble can be edited by its votes, and what they say of others."""
    path = f"{name}/{CONFIG_FILE}"
    try:
        votes = ensemble_from_configs(name, {**known, name: config})
    except EnsembleError as error:
        if not refused:  # else this would be said twice
            text = f"it can be served, but not edited: {error}"
            found.add_finding(name, text, path, "ensemble_scheduling", is_error=False)
        return
    if not refused:
        _say_names(found, name, config, votes, known)
    for graph in outdated_graphs(found.files, votes):
        again = f"`defensemble fuse {graph} --repository {found.files.repository} --ensemble {name} --replace`"
        text = f"'{graph}' is a fused graph of other votes than '{name}' has now: fuse it again ({again})"
        found.add_finding(graph, text, f"{graph}/{CONFIG_FILE}", ("parameters", "key", "members"), is_error=False)


def _say_names(found: Inspection, name: str, config: schema.ModelConfig, votes: Ensemble, known: Mapping[str, schema.ModelConfig]) -> None:
    """Say what is served, and what the next edit writes otherwise: two averaging models, or one named for other members or batches."""
    path, first = f"{name}/{CONFIG_FILE}", len(votes.members)
    averages = [step.model_name for step in list(config.ensemble_scheduling.step)[first:]]
    if len(averages) > 1:
        text = (
            f"{averages[0]} and {averages[1]} average it, the form of earlier versions, in which a call that is cancelled can crash the "
            f"server: `defensemble ensemble reload {name}` makes one model of them"
        )
        found.add_finding(name, text, path, *step_path(first, "model_name"), is_error=False)
        return
    described = known.get(averages[0])
    classes = next((int(size) for tensor in described.input for size in tensor.dims), 0) if described is not None else 0
    named = averaging_model_name(votes, classes, int(config.max_batch_size))
    if averages[0] not in (named, *two_model_names(votes, classes, int(config.max_batch_size))):
        text = (
            f"its answers are right, but its averaging model is named for other members or another max_batch_size: step {first + 1} is to "
            f"run {named}, which `defensemble ensemble reload {name}` generates"
        )
        found.add_finding(name, text, path, *step_path(first, "model_name"), is_error=False)

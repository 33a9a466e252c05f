"""All checks of ensembles and repositories, as they are on disk or as an edit would make them."""

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
    """Find the problems of an ensemble, its members and its averaging models, before an edit is written or loaded.

    Deliberately stricter than Triton: steps pin versions, names are those that an export gives, files match their digests, labels and
    profiles agree, and averaging models match their parameters and names. Graphs are not opened, because the server does that.

    Args:
        files: The repository, as it is or as it will be.
        name: The ensemble.
        target: The Triton that will load it.

    Example:
        >>> for finding in check_ensemble(RepositoryView(Path("model_repository")), "ensemble"):
        ...     print(finding)
    """
    inspection = Inspection(files, target, all_profiles=True, for_edit=True, is_generated=_is_generated, check_ensemble=_check_members)
    check_ensemble_configs(inspection, name)
    return inspection.findings


def check_repository(files: RepositoryView, target: Target, name: str | None = None) -> list[Finding]:
    """Find everything that keeps a Triton from serving an ensemble, or all models of a repository; graphs are opened.

    Args:
        files: The repository.
        target: The Triton that will load it.
        name: The ensemble; None for all models.

    Raises:
        OSError: The repository cannot be listed.
    """
    inspection = Inspection(files, target, all_profiles=True, is_generated=_is_generated, check_ensemble=_check_members)
    if name is None:
        models, _ = check_models(inspection)
    else:
        check_root_links(inspection)
        check_ensemble_configs(inspection, name)
        config = inspection.config(name) if inspection.has(name) else None
        steps = config.ensemble_scheduling.step if config is not None else []
        models = [step.model_name for step in steps if inspection.has(step.model_name)]
    check_graphs(inspection, models)
    return inspection.findings


def _is_generated(content: bytes, ensemble: Ensemble, classes: int) -> bool:
    """Return whether the file of an averaging model is the graph for this ensemble."""
    return is_same_graph(content, average_onnx(ensemble, classes))


def _check_members(
    inspection: Inspection, name: str, config: schema.ModelConfig, known: Mapping[str, schema.ModelConfig], has_errors: bool
) -> None:
    """Check that an ensemble can be edited, that its averaging model is named after it, and that fused graphs match its members."""
    path = f"{name}/{CONFIG_FILE}"
    try:
        ensemble = ensemble_from_configs(name, {**known, name: config})
    except EnsembleError as error:
        if not has_errors:  # otherwise it is reported already
            text = f"it can be served, but not edited: {error}"
            inspection.add_finding(name, text, path, "ensemble_scheduling", is_error=False)
        return
    if not has_errors:
        _check_averaging_names(inspection, name, config, ensemble, known)
    for graph in outdated_graphs(inspection.files, ensemble):
        again = f"`defensemble fuse {graph} --repository {inspection.files.repository} --ensemble {name} --replace`"
        text = f"'{graph}' is a fused graph of other members or weights than '{name}' has now; fuse it again ({again})"
        inspection.add_finding(graph, text, f"{graph}/{CONFIG_FILE}", ("parameters", "key", "members"), is_error=False)


def _check_averaging_names(
    inspection: Inspection, name: str, config: schema.ModelConfig, ensemble: Ensemble, known: Mapping[str, schema.ModelConfig]
) -> None:
    """Report what is served but the next edit would write differently: two averaging models, or one with an outdated name."""
    path, first = f"{name}/{CONFIG_FILE}", len(ensemble.members)
    averages = [step.model_name for step in list(config.ensemble_scheduling.step)[first:]]
    if len(averages) > 1:
        text = (
            f"it has two averaging models, {averages[0]} and {averages[1]}, the form of earlier versions, in which a cancelled call can "
            f"crash the server. Run `defensemble ensemble reload {name}` to replace them by one"
        )
        inspection.add_finding(name, text, path, *step_path(first, "model_name"), is_error=False)
        return
    average_config = known.get(averages[0])
    classes = next((int(size) for tensor in average_config.input for size in tensor.dims), 0) if average_config is not None else 0
    expected = averaging_model_name(ensemble, classes, int(config.max_batch_size))
    if averages[0] not in (expected, *two_model_names(ensemble, classes, int(config.max_batch_size))):
        text = (
            "its outputs are correct, but its averaging model is named for other members or another max_batch_size: step "
            f"{first + 1} should run {expected}. Run `defensemble ensemble reload {name}` to generate it"
        )
        inspection.add_finding(name, text, path, *step_path(first, "model_name"), is_error=False)

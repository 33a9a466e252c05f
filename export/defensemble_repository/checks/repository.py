"""All checks of a repository: each folder in it, whether an ensemble uses it or not."""

from __future__ import annotations

from collections.abc import Iterable

from ..filesystem.regular_files import check_regular
from ..names import AVERAGING_NAME, CONFIG_FILE, MODEL_NAME
from ..reader import is_ensemble
from .ensemble import check_ensemble_configs
from .finding import Finding
from .inspection import Inspection
from .model import check_model


def check_models(inspection: Inspection) -> tuple[list[str], list[str]]:
    """Find what keeps each model of a repository from being served.

    Returns the names of the models that were judged, and of averaging models that no ensemble runs, which were not: edits leave them for
    a rollback, and no server loads them. Models whose configuration cannot be read are in neither.
    """
    check_root_links(inspection)
    models = [name for name in _folders(inspection) if _is_model(inspection, name)]
    configs = {name: config for name in models if (config := inspection.config(name)) is not None}
    ensembles = [name for name, config in configs.items() if is_ensemble(config)]
    for name in ensembles:
        check_ensemble_configs(inspection, name)
    used = {step.model_name for name in ensembles for step in configs[name].ensemble_scheduling.step}
    alone = [name for name in configs if name not in used and name not in ensembles]
    unused = [name for name in alone if AVERAGING_NAME.fullmatch(name)]
    for name in alone:
        if name not in unused:
            check_model(inspection, name)
    return [name for name in configs if name not in unused], unused


def check_root_links(inspection: Inspection) -> None:
    """Find links at the root of the repository that lead nowhere: Triton lists no model of such a repository."""
    for link, goal in inspection.files.dangling_links().items():
        text = f"is a link to {goal!r}, which is not there, and Triton then reads nothing of the repository: remove the link"
        inspection.add_finding(link, f"{text}, or put back what it leads to", link)


def problems_from_findings(findings: Iterable[Finding]) -> dict[str, str]:
    """Why each model that cannot be served is not, by its name."""
    texts: dict[str, list[str]] = {}
    for one in findings:
        if one.is_error:
            texts.setdefault(one.blocked_model, []).append(one.text if one.file is None else str(one))
    return {name: "; ".join(dict.fromkeys(lines)) for name, lines in texts.items()}


def _folders(inspection: Inspection) -> list[str]:
    return sorted(entry.name for entry in inspection.files.repository.iterdir() if entry.is_dir())


def _is_model(inspection: Inspection, name: str) -> bool:
    """Whether a folder has the name and the configuration of a model."""
    path, shown = inspection.config_path(name), name.encode(errors="backslashreplace").decode()
    try:
        folder = inspection.files.repository / name
        for entry in (*folder.glob("*"), *folder.glob("*/*")):
            check_regular(entry)  # Triton would wait for a writer, of labels as well as of a graph
        if inspection.files.exists(path):
            if MODEL_NAME.fullmatch(name):
                return True
            text = "a model's folder is named by 1 to 100 letters, digits, '_', '.' and '-', and begins with a letter or digit: rename it"
            inspection.add_finding(shown, text)
        elif (inspection.files.repository / path).is_dir():
            inspection.add_finding(shown, "is a folder, expected a file: put the configuration back", path)  # it ends Triton
        else:
            inspection.add_finding(shown, f"stray folder: it holds no {CONFIG_FILE}, so it is no model; move it out of the repository")
    except OSError as error:
        inspection.add_finding(shown, f"{error.filename}: {error.strerror}")
    return False

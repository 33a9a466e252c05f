"""Check every folder of a repository."""

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
    """Find what prevents the models of a repository from being served.

    Returns:
        The names of the checked models, and the names of unused averaging models, which are not checked: edits keep them for a rollback,
        and no server loads them. Models whose configuration cannot be read are in neither list.

    Example:
        inspection = Inspection(RepositoryView(Path("model_repository")))
        names, unused = check_models(inspection)
    """
    check_root_links(inspection)
    models = [name for name in _folders(inspection) if _is_model(inspection, name)]
    configs = {name: config for name in models if (config := inspection.config(name)) is not None}
    ensembles = [name for name, config in configs.items() if is_ensemble(config)]
    for name in ensembles:
        check_ensemble_configs(inspection, name)
    used = {step.model_name for name in ensembles for step in configs[name].ensemble_scheduling.step}
    single = [name for name in configs if name not in used and name not in ensembles]
    unused = [name for name in single if AVERAGING_NAME.fullmatch(name)]
    for name in single:
        if name not in unused:
            check_model(inspection, name)
    return [name for name in configs if name not in unused], unused


def check_root_links(inspection: Inspection) -> None:
    """Find dangling links at the root of the repository, which make Triton list no model at all."""
    for link, target in inspection.files.dangling_links().items():
        text = f"is a link to {target!r}, which does not exist, so Triton does not read the repository"
        inspection.add_finding(link, f"{text}. Remove the link, or restore its target.", link)


def problems_from_findings(findings: Iterable[Finding]) -> dict[str, str]:
    """Return the errors that prevent models from being served, joined for each model."""
    texts: dict[str, list[str]] = {}
    for finding in findings:
        if finding.is_error:
            texts.setdefault(finding.blocked_model, []).append(finding.text if finding.file is None else str(finding))
    return {name: "; ".join(line.removesuffix(".") for line in dict.fromkeys(lines)) for name, lines in texts.items()}


def _folders(inspection: Inspection) -> list[str]:
    return sorted(entry.name for entry in inspection.files.repository.iterdir() if entry.is_dir())


def _is_model(inspection: Inspection, name: str) -> bool:
    """Return whether a folder has a valid name and a configuration, and add a finding if not."""
    path, printable = inspection.config_path(name), name.encode(errors="backslashreplace").decode()
    try:
        folder = inspection.files.repository / name
        for entry in (*folder.glob("*"), *folder.glob("*/*")):
            check_regular(entry)  # Triton would block on a FIFO, for labels as well as for graphs.
        if inspection.files.exists(path):
            if MODEL_NAME.fullmatch(name):
                return True
            text = (
                "the name of a model folder must be 1 to 100 letters, digits, '_', '.' or '-', beginning with a letter or digit. Rename it."
            )
            inspection.add_finding(printable, text)
        elif (inspection.files.repository / path).is_dir():
            inspection.add_finding(printable, "is a folder; expected a file. Put the configuration back.", path)  # It crashes Triton.
        else:
            inspection.add_finding(
                printable, f"stray folder: it has no {CONFIG_FILE}, so it is not a model. Move it out of the repository."
            )
    except OSError as error:
        inspection.add_finding(printable, f"{error.filename}: {error.strerror}")
    return False

"""The checks of a planned edit before anything is written: errors, and remarks about what is allowed but worth knowing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from defensemble_repository.checks.finding import Finding
from defensemble_repository.errors import ConfigError, RepositoryError
from defensemble_repository.names import check_name
from defensemble_repository.target import ANY, Target
from defensemble_repository.view import RepositoryView

from .errors import EditRefusedError
from .plan_compatibility import plan_findings
from .targets import EditTarget, TargetEdit

if TYPE_CHECKING:
    from defensemble_export.editing import EditPlan, EditRequest


def refusal(request: EditRequest, findings: Sequence[str]) -> EditRefusedError:
    """Return the error of an edit that the checks refuse."""
    return EditRefusedError(f"{request.action} '{request.name}' is refused", findings)


def plan_target_edit(request: EditRequest, target: EditTarget) -> TargetEdit:
    """Plan an edit at one target.

    Raises:
        EditRefusedError: A hand edit cannot be read; the error has all findings of the checks.
        RepositoryError: The edit is not possible.
    """
    from defensemble_export import check_ensemble

    files = RepositoryView(target.repository)
    try:
        digest = files.digest(f"{check_name(request.name)}/config.pbtxt")
        return TargetEdit(target, request.plan(target.repository), digest)
    except RepositoryError as error:
        findings = check_ensemble(files, request.name) if request.reloads and files.has(request.name) else []
        errors = [str(finding) for finding in findings if finding.is_error]
        if errors:
            raise refusal(request, errors) from error
        raise


def check_target_edits(request: EditRequest, target_edits: Sequence[TargetEdit]) -> tuple[str, ...]:
    """Check a planned edit, and return remarks about what is allowed but worth knowing.

    Raises:
        EditRefusedError: A check fails.
    """
    errors: list[str] = []
    remarks: list[str] = []
    first = target_edits[0].plan
    for target_edit in target_edits:
        findings = check_outcome(target_edit)
        for server in target_edit.servers if target_edit.plan.after is not None else ():
            findings += plan_findings(target_edit, server)
        for finding in findings:
            (errors if finding.is_error else remarks).append(str(finding))
    for target_edit in target_edits[1:]:
        if not request.may_differ and target_edit.plan.before != first.before:
            errors.append(
                f"'{request.name}' in {target_edit.repository} differs from that in {first.repository}; make them equal first with "
                "`defensemble ensemble apply FILE` and the same --replica options"
            )
        errors += _differing_members(first, target_edit.plan)
    if errors:
        raise refusal(request, list(dict.fromkeys(errors)))
    return (*dict.fromkeys(remarks), *_write_warnings(target_edits))


def check_outcome(target_edit: TargetEdit) -> list[Finding]:
    """Check the repository as it will be after the edit."""
    from defensemble_export import check_ensemble
    from defensemble_export.editing import step_models

    files = target_edit.plan.outcome()
    if target_edit.plan.after is not None:
        return check_ensemble(files, target_edit.name, target=_oldest_triton(target_edit.target))
    findings = []
    for other in files.models():
        try:
            is_used = target_edit.name in {model for model, _ in step_models(files.config(other))}
        except ConfigError:
            continue  # Triton could not load it either
        if is_used:
            findings.append(Finding(target_edit.name, f"'{target_edit.name}' is a step of '{other}'; remove that step first"))
    return findings


def _oldest_triton(target: EditTarget) -> Target:
    """Return the Triton whose rules apply to a target: the server with the oldest core."""
    tritons = [Target.from_core_version(server.core_version()) for server in target.servers]
    return min(tritons, key=lambda triton: triton.core or (), default=ANY)


def _differing_members(first: EditPlan, other: EditPlan) -> list[str]:
    """Report the members whose files differ between two repositories."""
    if first.after is None or other.after is None:
        return []
    problems = []
    for member in other.after.members:
        digests = {}
        for plan in (first, other):
            config = plan.outcome().config(member.model)
            digests[plan.repository] = config.parameters[f"sha256.{member.version}"].string_value
        if len(set(digests.values())) > 1:
            texts = ", ".join(f"{folder}: {digest[:16] or 'none'}" for folder, digest in digests.items())
            problems.append(
                f"the file of {member.model}@{member.version} differs between the repositories (SHA-256 {texts}); copy the model's folder "
                "from one to the other"
            )
    return problems


def _write_warnings(target_edits: Sequence[TargetEdit]) -> list[str]:
    """Report comments that are lost, and replicas that will differ."""
    warnings = []
    for target_edit in target_edits:
        path = f"{target_edit.name}/config.pbtxt"
        current = target_edit.plan.disk().content(path) if path in target_edit.plan.files else None
        comments = [line for line in (current or b"").splitlines() if line.lstrip().startswith(b"#")]
        if comments and not any(line in target_edit.plan.files[path] for line in comments):
            if target_edit.plan.converts_two_models:
                fix = "copy them first, because `rollback` does not restore them"
            else:
                fix = "`rollback` restores them"
            warnings.append(f"{target_edit.repository / path} is written again without its comments; {fix}")
        if target_edit.plan.after != target_edits[0].plan.after:
            first = target_edits[0].repository
            warnings.append(f"'{target_edit.name}' in {target_edit.repository} will still differ from that in {first}")
    return warnings

"""The checks of a planned edit, before anything is written: what stands against it, and what is allowed, but worth knowing."""

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


def refused(request: EditRequest, findings: Sequence[str]) -> EditRefusedError:
    """Return the error of an edit that the checks refuse."""
    return EditRefusedError(f"{request.action} '{request.name}' is refused", findings)


def plan_or_refuse(request: EditRequest, target: EditTarget) -> TargetEdit:
    """Plan an edit at one target; of a hand edit that cannot be read, report all that the checks find in it.

    Raises:
        EditRefusedError: The checks find something in a hand edit.
    """
    from defensemble_export import check_ensemble

    files = RepositoryView(target.repository)
    try:
        digest = files.digest(f"{check_name(request.name)}/config.pbtxt")
        return TargetEdit(target, request.plan(target.repository), digest)
    except RepositoryError as error:
        found = check_ensemble(files, request.name) if request.reloads and files.has(request.name) else []
        texts = [str(finding) for finding in found if finding.is_error]
        if texts:
            raise refused(request, texts) from error
        raise


def check_target_edits(request: EditRequest, target_edits: Sequence[TargetEdit]) -> tuple[str, ...]:
    """Refuse what must not be done; return what is allowed, but worth knowing.

    Raises:
        EditRefusedError: There are findings against it.
    """
    errors: list[str] = []
    remarks: list[str] = []
    first = target_edits[0].plan
    for target_edit in target_edits:
        found = findings_of(target_edit)
        for served in target_edit.servers if target_edit.plan.after is not None else ():
            found += plan_findings(target_edit, served)
        for finding in found:
            (errors if finding.is_error else remarks).append(str(finding))
    for target_edit in target_edits[1:]:
        if not request.may_differ and target_edit.plan.before != first.before:
            errors.append(
                f"{target_edit.repository} holds another '{request.name}' than {first.repository}: make them equal first, "
                "`defensemble ensemble apply FILE` with the same --replica options"
            )
        errors += _other_members(first, target_edit.plan)
    if errors:
        raise refused(request, list(dict.fromkeys(errors)))
    return (*dict.fromkeys(remarks), *_write_warnings(target_edits))


def findings_of(target_edit: TargetEdit) -> list[Finding]:
    """Check the repository as it will be."""
    from defensemble_export import check_ensemble
    from defensemble_export.editing import steps_of

    files = target_edit.plan.outcome()
    if target_edit.plan.after is not None:
        return check_ensemble(files, target_edit.name, target=_oldest_triton(target_edit.target))
    found = []
    for other in files.models():
        try:
            uses = target_edit.name in {model for model, _ in steps_of(files.config(other))}
        except ConfigError:
            continue  # Triton could not load it either
        if uses:
            found.append(Finding(target_edit.name, f"'{target_edit.name}' is a step of '{other}': take it out of that one first"))
    return found


def _oldest_triton(target: EditTarget) -> Target:
    """The Triton whose rules hold for a target: of several servers, the one with the oldest core."""
    tritons = [Target.from_core_version(served.core()) for served in target.servers]
    return min(tritons, key=lambda triton: triton.core or (), default=ANY)


def _other_members(first: EditPlan, other: EditPlan) -> list[str]:
    """The members whose files differ between two repositories under the same name."""
    if first.after is None or other.after is None:
        return []
    found = []
    for vote in other.after.members:
        digests = {}
        for plan in (first, other):
            config = plan.outcome().config(vote.model)
            digests[plan.repository] = config.parameters[f"sha256.{vote.version}"].string_value
        if len(set(digests.values())) > 1:
            texts = ", ".join(f"{folder}: {digest[:16] or 'none'}" for folder, digest in digests.items())
            found.append(
                f"{vote.model}@{vote.version} is another file in each folder ({texts}): copy the model's folder from one to the other"
            )
    return found


def _write_warnings(target_edits: Sequence[TargetEdit]) -> list[str]:
    """What is lost or left when files are written: comments, and replicas that will differ."""
    found = []
    for target_edit in target_edits:
        path = f"{target_edit.name}/config.pbtxt"
        now = target_edit.plan.disk().content(path) if path in target_edit.plan.files else None
        comments = [line for line in (now or b"").splitlines() if line.lstrip().startswith(b"#")]
        if comments and not any(line in target_edit.plan.files[path] for line in comments):
            back = "copy them first, a rollback does not bring them back" if target_edit.plan.converts else "`rollback` brings them back"
            found.append(f"{target_edit.repository / path} is written again, without its comments; {back}")
        if target_edit.plan.after != target_edits[0].plan.after:
            first = target_edits[0].repository
            found.append(f"{target_edit.repository} will hold another '{target_edit.name}' than {first}, as it did before")
    return found

"""docs/how-to/export.md shows the tolerances of the code."""

from __future__ import annotations

from defensemble_export.verification.tolerances import TOLERANCES, Tolerance
from tests.support.checkout import ROOT

PAGE = ROOT / "docs/how-to/export.md"


def test_docs_show_the_tolerances_of_the_code() -> None:
    lines = PAGE.read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(tuple(f"| {p} |" for p in TOLERANCES))
    ]
    assert {name: (must, goal) for name, must, goal in rows} == {
        name: format_tolerance(tolerance) for name, tolerance in TOLERANCES.items()
    }


def format_tolerance(tolerance: Tolerance) -> tuple[str, str]:
    """Return the cells of a precision: the limits and the goals."""
    must, goal = [], []
    if tolerance.logits is not None:
        must.append(f"every logit within {tolerance.logits:g} of max(1, largest logit)")
        must.append("the same class wherever the two best are further apart")
    if tolerance.probabilities is not None:
        must.append(f"every probability within {tolerance.probabilities:g}")
    if tolerance.agreement < 1:
        rest = ", or all but one" if tolerance.agreement > 0.99 else ""
        must.append(f"the same class for {100 * tolerance.agreement:g} % of the images{rest}")
    if tolerance.goal_agreement is not None:
        goal.append(f"the same class for {100 * tolerance.goal_agreement:g} %")
    if tolerance.goal_accuracy_points is not None:
        goal.append(f"at most {tolerance.goal_accuracy_points:g} points of accuracy lost")
    return "; ".join(must), "; ".join(goal)

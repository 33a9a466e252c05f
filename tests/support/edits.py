"""The edits of the fault tests, each with its repositories and servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from defensemble.ensembles import Ensembles
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from tests.support import tiny
from tests.support.walking import Edit, Members, Stage, stage_of

BOTH = Members({"alpha@1": 1.0, "beta@1": 1.0})
HEAVIER = Members({"alpha@1": 3.0, "beta@1": 1.0})


@dataclass(frozen=True)
class Scene:
    """An edit, and the state before it."""

    edit: Edit
    prepare: Callable[[Path], None]
    unload: Sequence[str] = ()
    late: Callable[[Path], None] | None = None

    def staged(self, place: Path, *, replicas: int = 1, restart: bool = False) -> AbstractContextManager[Stage]:
        """Start the servers in the state before the edit."""
        return stage_of(place, self.prepare, replicas=replicas, unload=self.unload, late=self.late, restart=restart)


def three_models(folder: Path) -> None:
    """Write `ensemble` with the members alpha and beta, and the model gamma, which is not a member."""
    tiny.write_repository(folder, {"alpha": 1, "beta": 2})
    tiny.write_repository(folder, {"gamma": 3}, ensemble=None)


def with_a_canary(folder: Path) -> None:
    three_models(folder)
    Ensembles(folder).create("canary", ["beta", "gamma"])
    (folder / "history.jsonl").unlink()


def with_a_twin(folder: Path) -> None:
    """Add a canary that shares the averaging model of `ensemble`."""
    three_models(folder)
    Ensembles(folder).create("canary", ["alpha", "beta"])
    (folder / "history.jsonl").unlink()


def edited_before(folder: Path) -> None:
    three_models(folder)
    Ensembles(folder).weight("ensemble", {"alpha": 3.0})


def second_alpha(folder: Path) -> None:
    tiny.write_second_version(folder, "alpha", 77)


def weight_by_hand(folder: Path) -> None:
    """Change the weight of alpha by hand in the parameters of the averaging model."""
    average = next(path.name for path in folder.glob("average_*"))
    path = folder / average / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), average)
    assert config.parameters["weights"].string_value == "[1.0, 1.0]"
    config.parameters["weights"].string_value = "[3.0, 1.0]"
    path.write_bytes(pbtxt_from_config(config))


def batch_by_hand(folder: Path) -> None:
    """Reduce the batch of the ensemble by hand; its members stay the same."""
    tiny.edit_config(folder, "ensemble", max_batch_size=4)


REWEIGH = Scene(Edit("weight", ["ensemble", {"alpha": 3.0}], BOTH, HEAVIER, {"message": "alpha sees better"}), three_models)
ALL = Members({"alpha@1": 1.0, "beta@1": 1.0, "gamma@1": 0.5})
CANARY = Members({"beta@1": 1.0, "gamma@1": 1.0})
SWITCHED = Members({"alpha@2": 1.0, "beta@1": 1.0})
COPIED = Members({"alpha@1": 1.0, "beta@2": 1.0})
SCENES = {
    "weight": REWEIGH,
    "add": Scene(Edit("add", ["ensemble", ["gamma"]], BOTH, ALL, {"weight": 0.5}), three_models, unload=["gamma"]),
    "create": Scene(Edit("create", ["canary", ["beta", "gamma"]], None, CANARY, ensemble="canary"), three_models, unload=["gamma"]),
    "delete": Scene(Edit("delete", ["canary"], CANARY, None, ensemble="canary"), with_a_canary),
    "delete a twin": Scene(Edit("delete", ["canary"], BOTH, None, ensemble="canary"), with_a_twin),
    "rollback": Scene(Edit("rollback", [], HEAVIER, BOTH), edited_before),
    "switch": Scene(Edit("add", ["ensemble", ["alpha@2"]], BOTH, SWITCHED, {"in_place_of": "alpha@1"}), three_models, late=second_alpha),
    "refresh": Scene(Edit("refresh", [["beta"]], BOTH, COPIED), three_models),
    "reload of a weight": Scene(Edit("reload", [], BOTH, HEAVIER, by_hand=True), three_models, late=weight_by_hand),
    "reload of a batch size": Scene(Edit("reload", [], BOTH, BOTH, by_hand=True), three_models, late=batch_by_hand),
}

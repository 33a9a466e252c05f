"""A restored backup under a running server: its files are older than those that the server has loaded."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from defensemble import Client
from defensemble.ensembles import EditFailedError, Ensembles
from defensemble_server import ServeOptions, serve
from tests.support import tiny
from tests.support.facts import raises
from tests.support.world import ABC, KEY, Weights, answers

pytestmark = pytest.mark.slow

A5BC = {**ABC, "a@1": 5.0}


class Stage:
    """A server of `a`, `b` and `c`, an editor, and a backup from before the first edit."""

    def __init__(self, folder: Path, client: Client) -> None:
        self.folder = folder
        self.client = client
        self.backup = folder.with_name("backup")
        shutil.copytree(folder, self.backup)
        self.ensembles = Ensembles(folder, client)

    def restore(self) -> None:
        """Replace the repository by the backup, without changing the times of its files."""
        self.folder.rename(self.folder.with_name("damaged"))
        self.backup.rename(self.folder)

    def answers_match(self, members: Weights) -> bool:
        images = tiny.images(3)
        got = self.client.predict(images, model="ensemble").probabilities
        return bool(np.abs(got - answers(images, members)["probabilities"]).max() < 1e-5)


@pytest.fixture(params=["grpc", "http"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    folder = tiny.write_repository(tmp_path / "repository", {"a": 1, "b": 2, "c": 3})
    options = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=0, admin_key=KEY)
    with serve(folder, options) as server:
        url = server.grpc_url if request.param == "grpc" else server.http_url
        with Client(url, admin_key=KEY) as client:
            yield Stage(folder, client)


@pytest.mark.parametrize(
    ("edit", "members"),
    [
        (lambda ensembles: ensembles.reload("ensemble"), ABC),
        (lambda ensembles: ensembles.weight("ensemble", {"a": 1.0}), ABC),  # the state of the backup
        (lambda ensembles: ensembles.weight("ensemble", {"b": 2.0}), {**ABC, "b@1": 2.0}),
        (lambda ensembles: ensembles.remove("ensemble", ["c"]), {"a@1": 1.0, "b@1": 1.0}),
    ],
    ids=["reload", "same", "weight", "remove"],
)
def test_edits_use_the_restored_files(stage: Stage, edit: Callable[[Ensembles], object], members: Weights) -> None:
    stage.ensembles.weight("ensemble", {"a": 5.0})
    assert stage.answers_match(A5BC)
    stage.restore()
    edit(stage.ensembles)
    assert stage.answers_match(members)
    assert stage.ensembles.check() == []
    assert not (stage.folder / "pending-edit.json").exists()


def test_an_edit_loads_an_older_member(stage: Stage) -> None:
    other = tiny.write_repository(stage.folder.with_name("other"), {"a": 11}, ensemble=None)
    for file in (stage.folder / "a").rglob("*"):
        os.utime(file)
    stage.client.transport.load_model("a", 10.0)
    (stage.folder / "a").rename(stage.folder.with_name("damaged"))
    (other / "a").rename(stage.folder / "a")
    stage.ensembles.weight("ensemble", {"b": 2.0})
    assert stage.answers_match({"a@2": 1.0, "b@1": 2.0, "c@1": 1.0})  # the seed of `a@2` is that of this network


def test_reports_a_server_with_files_from_the_future(stage: Stage) -> None:
    """No file on disk can be newer, so the edit fails with that reason, and the restored files stay."""
    stage.ensembles.weight("ensemble", {"a": 5.0})
    tomorrow = time.time() + 86400
    os.utime(stage.folder / "ensemble/config.pbtxt", (tomorrow, tomorrow))
    stage.client.transport.load_model("ensemble", 10.0)
    stage.restore()
    before = tiny.content(stage.folder)
    with raises(EditFailedError, f"{stage.client.transport.url} | 'ensemble' | restart") as caught:
        stage.ensembles.reload("ensemble")
    assert caught.value.step.startswith("load 'ensemble'")
    assert stage.answers_match(A5BC)
    after = tiny.content(stage.folder)
    assert {path: after.get(path) for path in before} == before
    assert set(after) - set(before) <= {"pending-edit.json"}

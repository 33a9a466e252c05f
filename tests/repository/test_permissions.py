"""Users without a permission: what can be written is written, and an error names the folder that cannot."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from defensemble.ensembles import EditFailedError, Ensembles
from defensemble_export import planned_files, write_files, write_profile
from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_repository.lock import locked
from defensemble_repository.transaction import check_writable, remove_files, remove_stale_staging
from tests.support import tiny

NOBODY = 65534
IS_ROOT = os.geteuid() == 0
SLOW = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Trigger all late imports as root, because only root may be able to read Python's own files."""
    repository = tiny.write_repository(tmp_path_factory.mktemp("imported") / "repository")
    ensembles = Ensembles(repository)
    ensembles.weight("ensemble", {"beta": 3.0})
    ensembles.rollback(name="ensemble")
    ensembles.check()
    ensembles.prune(keep_edits=0)
    write_profile(repository, "gpu")


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a folder of root, or of this user without root, that every user can reach. Folders of pytest are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        for path in Path(folder).rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        Path(folder).chmod(0o755)


def give_to_nobody(*paths: Path) -> None:
    """Give files and folders, with their content, to the unprivileged user."""
    for top in paths if IS_ROOT else ():
        for path in (top, *top.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run the block as a user to whom permissions apply."""
    if not IS_ROOT:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def own(repository: Path, parent_mode: int = 0o555) -> Path:
    """Write a repository of the unprivileged user, in a folder with these permissions."""
    tiny.write_repository(repository)
    give_to_nobody(repository)
    repository.parent.chmod(parent_mode)
    return repository


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.mark.parametrize("parent_mode", [pytest.param(0o555, marks=SLOW), 0o711, pytest.param(0o111, marks=SLOW)], ids=oct)
def test_an_owner_without_write_access_to_the_parent_can_edit_and_export(place: Path, parent_mode: int) -> None:
    repository = own(place / "repository", parent_mode)
    with unprivileged():
        check_writable(repository)
        Ensembles(repository).weight("ensemble", {"beta": 3.0})
        write_files(repository, planned_files(repository, [tiny.member("gamma", 3)], ensemble=None))
        write_profile(repository, "gpu")
        Ensembles(repository).remove("ensemble", ["alpha"])
        Ensembles(repository).prune(keep_edits=0)
        assert [member.model for member in Ensembles(repository).declared("ensemble").members] == ["beta"]
    place.chmod(0o755)
    assert os.listdir(place) == ["repository"]
    assert not list(repository.rglob(".*"))
    assert Ensembles(repository).check() == []


def test_staging_prefers_a_model_that_changes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = own(place / "repository")
    created: list[Path] = []
    create = tempfile.mkdtemp

    def recorded(suffix: str | None = None, prefix: str | None = None, dir: str | None = None) -> str:
        folder = create(suffix, prefix, dir)
        created.append(Path(folder))
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", recorded)
    with unprivileged():
        write_files(repository, {"beta/note.txt": b"x"})
        write_files(repository, {"gamma/config.pbtxt": b"x"})
    parents = [folder.parent.name for folder in created if ".staging-" in folder.name]
    assert parents[0] == "beta"
    assert parents[1].startswith("average_"), "Triton reloads a member whose folder changes"


def test_an_empty_repository_contains_the_staging_folder(place: Path) -> None:
    repository = place / "repository"
    repository.mkdir()
    give_to_nobody(repository)
    place.chmod(0o555)
    with unprivileged():
        check_writable(repository)
        tiny.write_repository(repository)
        assert not list(repository.glob(".*"))
        remove_files(repository, sorted(os.listdir(repository)))
        assert os.listdir(repository) == []
        (stale := repository / ".repository.staging-a1b2_c3d").mkdir()
        assert remove_stale_staging(repository) == [stale]


def permission_error(act: Callable[[], object]) -> PermissionError:
    with unprivileged(), pytest.raises(PermissionError) as caught:
        act()
    return caught.value


def test_an_error_names_a_read_only_repository(place: Path) -> None:
    repository = tiny.write_repository(place / "repository")
    if not IS_ROOT:
        repository.chmod(0o555)
    place.chmod(0o777)  # The parent is writable.
    before = tiny.content(repository)
    for act in (
        lambda: check_writable(repository),
        lambda: Ensembles(repository).weight("ensemble", {"beta": 3.0}),
        lambda: write_files(repository, {"gamma/config.pbtxt": b"x"}),
        lambda: remove_files(repository, ["alpha"]),
    ):
        error = permission_error(act)
        assert (error.filename, "write permission" in str(error)) == (str(repository), True)
    assert tiny.content(repository) == before
    assert os.listdir(place) == ["repository"]


@pytest.mark.parametrize("name", ["missing", "missing/deeper"])
def test_an_error_names_the_existing_parent_of_a_new_repository(place: Path, name: str) -> None:
    place.chmod(0o555)
    assert permission_error(lambda: check_writable(place / name)).filename == str(place)


@pytest.mark.parametrize("model", ["ensemble", pytest.param("alpha", marks=SLOW)])
def test_an_error_names_a_read_only_model_and_nothing_changes(place: Path, model: str) -> None:
    repository = own(place / "repository", 0o777)
    if IS_ROOT:
        os.chown(repository / model, 0, 0)
    else:
        (repository / model).chmod(0o555)
    before = tiny.content(repository)
    plan = {"gamma/config.pbtxt": b"x", f"{model}/config.pbtxt": b"x"}
    assert permission_error(lambda: write_files(repository, plan)).filename == str(repository / model)
    if model == "ensemble":
        with unprivileged(), pytest.raises(EditFailedError, match=rf"write permission.*{repository / model}'") as caught:
            Ensembles(repository).weight("ensemble", {"beta": 3.0})
        assert isinstance(caught.value.__cause__, PermissionError)
    else:
        with unprivileged():
            Ensembles(repository).weight("ensemble", {"beta": 3.0})
            Ensembles(repository).rollback(name="ensemble")
    assert {path: value for path, value in tiny.content(repository).items() if path in before} == before
    assert os.listdir(place) == ["repository"]
    assert not list(repository.rglob(".*"))


@pytest.mark.skipif(not IS_ROOT, reason="needs two users, so root")
def test_files_of_another_user_are_replaced_and_restored(place: Path) -> None:
    """With fs.protected_hardlinks, such files cannot be linked."""
    repository = own(place / "repository")
    config = repository / "ensemble/config.pbtxt"
    os.chown(config, 0, 0)
    before = config.read_bytes()
    with unprivileged():
        with pytest.raises(OSError, match="File name too long"):
            write_files(repository, {"ensemble/config.pbtxt": b"new", "ensemble/" + "x" * 250 + "/" + "y" * 300: b"x"})
        assert config.read_bytes() == before
        Ensembles(repository).weight("ensemble", {"beta": 3.0})
    assert config.read_bytes() != before


@pytest.mark.skipif(not IS_ROOT, reason="needs two users, so root")
def test_a_model_with_a_folder_of_another_user_is_not_partly_removed(place: Path) -> None:
    repository = own(place / "repository", 0o777)
    os.chown(repository / "alpha/1", 0, 0)
    before = tiny.content(repository)
    error = permission_error(lambda: remove_files(repository, ["beta", "alpha"]))
    assert error.filename == str(repository / "alpha/1")
    assert tiny.content(repository) == before
    assert os.listdir(place) == ["repository"]


@SLOW
def test_staging_inside_a_model_reloads_no_member(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from defensemble import Client
    from defensemble_server import ServeOptions, serve

    repository = own(place / "repository[1]")
    with serve(repository, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        log = Path(server.state.log)
        before = log.read_text().count("loading: alpha:1")
        with Client(server.grpc_url, admin_key=server.state.admin_key) as client, monkeypatch.context() as other_user, unprivileged():
            other_user.setenv("XDG_STATE_HOME", str(place / "state"))  # It has no record of the server.
            edited = Ensembles(repository, client).weight("ensemble", {"beta": 3.0})
        assert edited.edit is not None
        assert log.read_text().count("loading: alpha:1") == before
        probabilities = Client(server.grpc_url).predict(tiny.images(2), model="ensemble").probabilities
    expected = 0.25 * tiny.softmax(tiny.logits(1, tiny.images(2))) + 0.75 * tiny.softmax(tiny.logits(2, tiny.images(2)))
    assert abs(probabilities - expected).max() < 1e-5
    assert not list(repository.rglob(".*"))


@SLOW
def test_in_a_sticky_folder_the_parent_contains_the_staging_folder(place: Path) -> None:
    repository = own(place / "repository", 0o1777)
    with unprivileged():
        Ensembles(repository).weight("ensemble", {"beta": 3.0})
    assert os.listdir(place) == ["repository"]


@SLOW
def test_the_permissions_of_the_resolved_parent_apply(place: Path) -> None:
    (place / "real").mkdir()
    repository = own(place / "real/repository")
    place.chmod(0o777)
    (place / "link").symlink_to(repository)
    with unprivileged():
        Ensembles(place / "link").weight("ensemble", {"beta": 3.0})
    assert sorted(os.listdir(place)) == ["link", "real"]
    assert os.listdir(place / "real") == ["repository"]


def test_without_read_access_to_the_parent_the_repository_is_locked(place: Path) -> None:
    from defensemble_repository.errors import LockedError
    from defensemble_repository.lock import locked_within

    repository = own(place / "repository", 0o711 if IS_ROOT else 0o311)
    with unprivileged(), locked(repository):
        pass
    with locked(repository), unprivileged(), pytest.raises(LockedError), locked_within([repository], 0.0):
        pass


def test_write_atomic_writes_into_an_unreadable_folder(place: Path) -> None:
    (place / "drop").mkdir()
    give_to_nobody(place / "drop")
    (place / "drop").chmod(0o300)
    with unprivileged():
        write_atomic(place / "drop/file", b"content")
        with pytest.raises(PermissionError):
            os.listdir(place / "drop")
    (place / "drop").chmod(0o700)
    assert os.listdir(place / "drop") == ["file"]


@SLOW
def test_a_repository_on_another_file_system_than_its_link(place: Path) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == place.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as other:
        tiny.write_repository(Path(other) / "repository")
        (place / "link").symlink_to(Path(other) / "repository")
        Ensembles(place / "link").weight("ensemble", {"beta": 3.0})
        assert os.listdir(other) == ["repository"]
        assert os.listdir(place) == ["link"]
        shutil.rmtree(Path(other) / "repository")

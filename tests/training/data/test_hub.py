"""Downloads from the Hugging Face hub, here a small local server. Its client reads its settings on import, so tests run in processes."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from defensemble_training.data.hub import HubFile, select_files
from tests.support.facts import assert_facts
from tests.support.written import write_tables

REVISION = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import json, sys
from defensemble_training import DataError, load_dataset
try:
    data = load_dataset(sys.argv[1], 8)
except DataError as error:
    sys.exit(f"DataError: {error}")
print(json.dumps([len(data.train), len(data.test), data.source, data.digest]))
"""


@dataclass
class Hub:
    """The files that the server offers, and the requests that it received."""

    folder: Path
    url: str = ""
    checksums: dict[str, str] = field(default_factory=dict)  # checksums that replace the files' own
    gated: bool = False
    requests: list[str] = field(default_factory=list)

    def files(self) -> dict[str, Path]:
        return {path.relative_to(self.folder).as_posix(): path for path in sorted(self.folder.rglob("*")) if path.is_file()}

    def sha256(self, name: str) -> str:
        return self.checksums.get(name) or hashlib.sha256(self.files()[name].read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    served = Hub(tmp_path / "served")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            served.requests.append(f"{self.command} {self.path.partition('?')[0]}")

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            prefix = f"/datasets/uoft-cs/cifar10/resolve/{REVISION}/"
            if path == "/api/datasets/uoft-cs/cifar10":
                siblings = [
                    {"rfilename": name, "size": file.stat().st_size, "lfs": {"size": 1, "sha256": served.sha256(name), "pointerSize": 1}}
                    for name, file in served.files().items()
                ]
                self.send(200, json.dumps({"id": "uoft-cs/cifar10", "sha": REVISION, "siblings": siblings}).encode(), {})
            elif served.gated:
                self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"})
            elif path.startswith(prefix) and path.removeprefix(prefix) in served.files():
                name = path.removeprefix(prefix)
                headers = {"ETag": f'"{served.sha256(name)}"', "X-Repo-Commit": REVISION}
                self.send(200, served.files()[name].read_bytes(), headers)
            else:
                self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield served
        server.shutdown()
        thread.join()


def load(tmp_path: Path, url: str, name: str = "cifar10", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE")) and "proxy" not in key.lower()},
        **{"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **variables},
    }
    return subprocess.run([sys.executable, "-c", LOAD, name], env=environment, capture_output=True, text=True, check=False, timeout=120)


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_dataset_is_downloaded_once_and_then_loads_offline(hub: Hub, tmp_path: Path) -> None:
    write_tables(hub.folder / "plain_text")
    (hub.folder / "README.md").write_text("not needed")
    first = load(tmp_path, hub.url)
    assert first.returncode == 0, first.stderr
    n_train, n_test, source, _ = json.loads(first.stdout)
    assert (n_train, n_test, source) == (12, 6, "uoft-cs/cifar10 (revision 0123456789ab) as parquet, PNG-coded")
    downloads = [request.rpartition("/")[2] for request in hub.requests if request.startswith("GET /datasets/")]
    assert sorted(downloads) == ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]
    second = load(tmp_path, closed_port())
    assert second.stdout == first.stdout


def test_file_with_wrong_checksum_is_rejected_and_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    write_tables(hub.folder / "data")
    name = "data/test-00000-of-00001.parquet"
    hub.checksums[name] = "0" * 64
    done = load(tmp_path, hub.url)
    assert done.returncode == 1
    assert_facts(done.stderr, f"{name} | uoft-cs/cifar10 | {hashlib.sha256(hub.files()[name].read_bytes()).hexdigest()}")
    assert f"{'0' * 64}" in done.stderr
    hub.checksums.clear()
    again = load(tmp_path, hub.url)
    assert again.returncode == 0, again.stderr
    assert sum(request.startswith("GET /datasets/") and name in request for request in hub.requests) == 2


@pytest.mark.parametrize("offline", [False, True])
def test_offline_error_names_both_fixes_without_retries(tmp_path: Path, offline: bool) -> None:
    url = closed_port()
    started = time.monotonic()
    done = load(tmp_path, url, **({"HF_HUB_OFFLINE": "1"} if offline else {}))
    assert time.monotonic() - started < 60  # seconds on an idle machine; with retries, the client needs minutes
    assert done.returncode == 1
    assert_facts(done.stderr, f"DataError | 'cifar10' | data_dir | $DEFENSEMBLE_DATA_DIR/cifar10 | {url}")
    assert_facts(done.stderr, "--dataset cifar10=FOLDER | data_dir= | train-*.parquet | test-*.parquet")
    assert "`hf download uoft-cs/cifar10 --repo-type dataset --local-dir cifar10`" in done.stderr


def test_gated_dataset_error_explains_the_login(hub: Hub, tmp_path: Path) -> None:
    write_tables(hub.folder / "data")
    hub.gated = True
    done = load(tmp_path, hub.url)
    assert done.returncode == 1
    assert "uoft-cs/cifar10 is gated" in done.stderr
    assert_facts(done.stderr, f"{hub.url}/datasets/uoft-cs/cifar10 | `hf auth login` | HF_TOKEN")


def test_hidden_repository_and_one_without_parquet_are_rejected(hub: Hub, tmp_path: Path) -> None:
    done = load(tmp_path, hub.url, "mnist")
    assert_facts(done.stderr, f"{hub.url} | ylecun/mnist")
    (hub.folder).mkdir()
    (hub.folder / "train.csv").write_text("a")
    done = load(tmp_path, hub.url)
    assert "uoft-cs/cifar10 on http" in done.stderr
    assert_facts(done.stderr, "train-* | test-* | data_dir | --dataset")


def test_environment_folder_has_precedence_over_the_hub(hub: Hub, tmp_path: Path) -> None:
    write_tables(tmp_path / "all/cifar10", n_test=10, names=tuple("abcdefghij"))
    done = load(tmp_path, hub.url, DEFENSEMBLE_DATA_DIR=str(tmp_path / "all"))
    assert json.loads(done.stdout)[2] == "cifar10 from a local folder as parquet, PNG-coded"
    assert hub.requests == []


def test_stylized_imagenet_and_folders_are_not_on_the_hub(tmp_path: Path) -> None:
    done = load(tmp_path, closed_port(), "stylized-imagenet")
    assert_facts(done.stderr, "'stylized-imagenet' | not on the Hugging Face hub | data_dir | --dataset")
    assert "'folder'" in load(tmp_path, closed_port(), "folder").stderr


def test_only_the_needed_files_are_selected() -> None:
    names = ["README.md", "data/test-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"]
    names += [f"data/train-0000{number}-of-00003.parquet" for number in (2, 0, 1)]
    selected = [file.name for file in select_files([HubFile(name, 1, None) for name in names], ("validation", "test"))]
    assert selected == [*(f"data/train-0000{number}-of-00003.parquet" for number in range(3)), "data/validation-00000-of-00001.parquet"]

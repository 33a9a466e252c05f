"""Datasets of the Hugging Face hub, downloaded once by its own client, and checked against the checksums that it states."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn, cast

from ..errors import DataError
from .parquet import split_files
from .source import EXPECTED

TIMEOUT_S = 10.0  # for an answer; a download that makes progress may take longer


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it; `sha256` is None for the small ones, which git holds itself."""

    name: str
    size: int
    sha256: str | None


def downloaded(name: str, repository: str, test_splits: Sequence[str], on_progress: Callable[[str, int, int], None]) -> tuple[Path, str]:
    """Download the parquet files of the training part and of a test part; return the folder that holds them, and their revision.

    `name` is what `load_dataset` calls the dataset, `repository` what the hub does; of `test_splits` the first is preferred. `on_progress`
    is called with what is done, how many files are done, and of how many.

    Raises:
        DataError: no network, no permission, no room, or a file that is not what the hub states.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        _refuse(
            name, repository, f"downloading it needs huggingface-hub ({error}); install it with: pip install 'defensemble[train]'", error
        )
    # All errors of the client's HTTP library, which is httpx with huggingface-hub 1 and httpx2 with 2.
    http_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    api = HfApi(library_name="defensemble")
    try:
        info = api.dataset_info(repository, files_metadata=True, timeout=TIMEOUT_S)
        listed = [HubFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else None) for one in info.siblings or ()]
        files = wanted_files(listed, test_splits)
        if not files or info.sha is None:
            raise DataError(
                f"{repository} on {api.endpoint} holds no parquet files train-* and {test_splits[0]}-*; "
                "pass data_dir (--dataset NAME=FOLDER)"
            )
        _check_space(repository, info.sha, files)
        paths: list[Path] = []
        for number, file in enumerate(files):
            on_progress(f"downloading {repository}", number, len(files))
            path = api.hf_hub_download(repository, file.name, repo_type="dataset", revision=info.sha, etag_timeout=TIMEOUT_S)
            check_sha256(Path(path), file, repository)
            paths.append(Path(path))
        on_progress(f"downloading {repository}", len(files), len(files))
    except (http_error, OSError, ValueError, RuntimeError) as error:
        _translate(name, repository, str(api.endpoint), error)
    return paths[0].parent, info.sha


def wanted_files(listed: Sequence[HubFile], test_splits: Sequence[str]) -> list[HubFile]:
    """Choose the files of the training part and of the preferred test part, of the first folder that has both; none where none has."""
    by_folder: dict[str, dict[str, HubFile]] = {}
    for file in listed:
        path = PurePosixPath(file.name)
        by_folder.setdefault(str(path.parent), {})[path.name] = file
    for folder in sorted(by_folder):
        splits = split_files(list(by_folder[folder]))
        test_split = next((split for split in test_splits if split in splits), None)
        if "train" in splits and test_split is not None:
            return [by_folder[folder][name] for name in (*splits["train"], *splits[test_split])]
    return []


def check_sha256(path: Path, file: HubFile, repository: str) -> None:
    """Raise a `DataError` unless a downloaded file has the checksum that the hub states; else it is removed, to be downloaded again."""
    if file.sha256 is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        path.resolve().unlink()  # the hub's cache holds the file itself elsewhere, and a link here
        path.unlink(missing_ok=True)
        raise DataError(
            f"{file.name} of {repository} has the SHA-256 {digest.hexdigest()}, the hub states {file.sha256}; "
            "the download is removed; try again, and if it stays so, a proxy in between changes it"
        )


def _check_space(repository: str, revision: str, files: Sequence[HubFile]) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    there = [isinstance(try_to_load_from_cache(repository, file.name, revision=revision, repo_type="dataset"), str) for file in files]
    needed = sum(file.size for file, have in zip(files, there, strict=True) if not have)
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(place for place in (cache, *cache.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"downloading {repository} needs {needed:,} bytes in {cache}, of which {free:,} are free; "
            "make room, or let HF_HOME name a folder on a larger disk"
        )


def _translate(name: str, repository: str, endpoint: str, error: Exception) -> NoReturn:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, GatedRepoError):
        raise DataError(
            f"{repository} is gated: {endpoint} gives it only to those who accepted its terms; accept them at "
            f"{endpoint}/datasets/{repository}, then log in with `hf auth login` or set HF_TOKEN; {_by_hand(name, repository)}"
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        _refuse(
            name,
            repository,
            f"{endpoint} does not show {repository} ({reason}); a token that is set may have expired: `hf auth login`",
            error,
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DataError(
            f"the disk was full while {repository} was downloaded ({error}); make room, or let HF_HOME name a folder on a larger disk; "
            "the download goes on where it stopped"
        ) from error
    if isinstance(error, OSError) and error.filename is not None:
        raise error  # the file system's own
    _refuse(name, repository, f"the hub at {endpoint} cannot be reached, or sends no dataset: {reason}", error)


def _refuse(name: str, repository: str, why: str, error: Exception) -> NoReturn:
    raise DataError(
        f"the dataset {name!r} is not on this machine (no data_dir, no $DEFENSEMBLE_DATA_DIR/{name}, nothing in the cache), and {why}. "
        f"Two ways: {_by_hand(name, repository)}"
    ) from error


def _by_hand(name: str, repository: str) -> str:
    return (
        f"pass a folder that holds it, --dataset {name}=FOLDER (data_dir=...): {EXPECTED}; or on a machine with network run "
        f"`hf download {repository} --repo-type dataset --local-dir {name}`, bring that folder here, and pass --dataset {name}={name}"
    )

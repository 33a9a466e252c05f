"""Download datasets from the Hugging Face hub with its own client, and verify the hub's checksums."""

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

TIMEOUT_S = 10.0  # for a response; a download that makes progress may take longer


@dataclass(frozen=True)
class HubFile:
    """A file in the hub's listing."""

    name: str
    size: int  # bytes
    sha256: str | None  # None for small files, which are stored in git itself


def download_dataset(
    name: str, repository: str, test_splits: Sequence[str], on_progress: Callable[[str, int, int], None]
) -> tuple[Path, str]:
    """Download the parquet files of the training part and of a test part.

    Args:
        name: The dataset's name for `load_dataset`.
        repository: Its name on the hub.
        test_splits: Names of the test part, the preferred one first.
        on_progress: Called with what is being done, the number of files done, and their total.

    Returns:
        The folder with the files, and their revision.

    Raises:
        DataError: There is no network, no permission or no disk space, or a file does not match the hub's checksum.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        _raise_unavailable(
            name, repository, f"a download needs huggingface-hub ({error}; install it with: pip install 'defensemble[train]')", error
        )
    # Base class of the HTTP library's errors: httpx with huggingface-hub 1, httpx2 with 2.
    http_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    api = HfApi(library_name="defensemble")
    try:
        info = api.dataset_info(repository, files_metadata=True, timeout=TIMEOUT_S)
        listing = [HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None) for file in info.siblings or ()]
        files = select_files(listing, test_splits)
        if not files or info.sha is None:
            raise DataError(
                f"{repository} on {api.endpoint} has no parquet files train-* and {test_splits[0]}-*. "
                f"Pass a local folder: data_dir=FOLDER (--dataset {name}=FOLDER)."
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


def select_files(listing: Sequence[HubFile], test_splits: Sequence[str]) -> list[HubFile]:
    """Select the files of the training part and the preferred test part, from the first folder that has both; empty if none has."""
    by_folder: dict[str, dict[str, HubFile]] = {}
    for file in listing:
        path = PurePosixPath(file.name)
        by_folder.setdefault(str(path.parent), {})[path.name] = file
    for folder in sorted(by_folder):
        splits = split_files(list(by_folder[folder]))
        test_split = next((split for split in test_splits if split in splits), None)
        if "train" in splits and test_split is not None:
            return [by_folder[folder][name] for name in (*splits["train"], *splits[test_split])]
    return []


def check_sha256(path: Path, file: HubFile, repository: str) -> None:
    """Verify the checksum of a downloaded file. If it does not match, remove the file, so that it is downloaded again.

    Raises:
        DataError: The checksum does not match.
    """
    if file.sha256 is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        path.resolve().unlink()  # in the hub's cache, `path` is a link to the file
        path.unlink(missing_ok=True)
        raise DataError(
            f"{file.name} of {repository} has the SHA-256 {digest.hexdigest()}; the hub states {file.sha256}. "
            "The download was removed. Try again; if the error persists, a proxy may change the file."
        )


def _check_space(repository: str, revision: str, files: Sequence[HubFile]) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    is_cached = [isinstance(try_to_load_from_cache(repository, file.name, revision=revision, repo_type="dataset"), str) for file in files]
    needed = sum(file.size for file, cached in zip(files, is_cached, strict=True) if not cached)
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"downloading {repository} needs {needed:,} bytes in {cache}, but only {free:,} are free. "
            "Free space, or set HF_HOME to a folder on a larger disk."
        )


def _translate(name: str, repository: str, endpoint: str, error: Exception) -> NoReturn:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, GatedRepoError):
        raise DataError(
            f"{repository} is gated: {endpoint} requires that you accept its terms. Accept them at "
            f"{endpoint}/datasets/{repository}, then log in with `hf auth login` or set HF_TOKEN. Or {_manual_fix(name, repository)}"
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        _raise_unavailable(
            name,
            repository,
            f"{endpoint} has no public {repository} ({reason}; if you set a token, it may have expired: `hf auth login`)",
            error,
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DataError(
            f"the disk was full during the download of {repository} ({error}). Free space, or set HF_HOME to a folder on a larger disk; "
            "the download then resumes."
        ) from error
    if isinstance(error, OSError) and error.filename is not None:
        raise error  # an error of the file system
    _raise_unavailable(name, repository, f"the hub at {endpoint} cannot be reached or returned no dataset: {reason}", error)


def _raise_unavailable(name: str, repository: str, reason: str, error: Exception) -> NoReturn:
    raise DataError(
        f"the dataset {name!r} is not on this machine (no data_dir, no $DEFENSEMBLE_DATA_DIR/{name}, not in the cache), and {reason}. "
        f"Either {_manual_fix(name, repository)}"
    ) from error


def _manual_fix(name: str, repository: str) -> str:
    return (
        f"pass a folder that holds it, --dataset {name}=FOLDER (data_dir=FOLDER): {EXPECTED}; or run `hf download {repository} --repo-type "
        f"dataset --local-dir {name}` on a machine with network access, copy that folder here, and pass --dataset {name}={name}"
    )

"""A copy of a version of a model, under the next version number."""

from __future__ import annotations

import hashlib
from pathlib import Path

from defensemble_repository.errors import EnsembleError
from defensemble_repository.filesystem.regular_files import read_regular
from defensemble_repository.names import MODEL_FILE
from defensemble_repository.pbtxt import config_from_file, pbtxt_from_config
from defensemble_repository.profile_digest import update_digest
from defensemble_repository.reader import config_paths, next_version, parameter, read_config


def version_copy(repository: Path, model: str, version: int) -> tuple[int, dict[str, bytes]]:
    """Return the next version of a model, and the files that make it a copy of `version`: first the configurations that describe it.

    Args:
        repository: The repository.
        model: The model.
        version: The version to copy.

    Raises:
        EnsembleError: There is no such version, or its file does not have the SHA-256 that the configuration states.
        ConfigError, OSError: A file cannot be read.
    """
    folder = repository / model
    source = folder / str(version)
    if not source.is_dir():
        raise EnsembleError(f"{source} does not exist; name a version of '{model}' (`defensemble ensemble show`)")
    new = next_version(folder)
    files: dict[str, bytes] = {}
    for path in config_paths(folder):
        before, config = config_from_file(path), config_from_file(path)
        for key in sorted(key for key in config.parameters if key.endswith(f".{version}")):
            config.parameters[f"{key.removesuffix(str(version))}{new}"].CopyFrom(config.parameters[key])
        policy = config.version_policy
        if policy.HasField("specific") and version in policy.specific.versions:
            policy.specific.versions.append(new)
        update_digest(before, config)
        files[path.relative_to(repository).as_posix()] = pbtxt_from_config(config)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        files[f"{model}/{new}/{path.relative_to(source).as_posix()}"] = read_regular(path)
    stated = parameter(read_config(folder), f"sha256.{version}")
    served = files.get(f"{model}/{new}/{read_config(folder).default_model_filename or MODEL_FILE}", b"")
    digest = hashlib.sha256(served).hexdigest()
    if stated is not None and digest != stated:
        raise EnsembleError(
            f"the file of {model}@{version} was changed: its SHA-256 is {digest[:16]}..., but {folder} states {stated[:16]}...; "
            "export the model again"
        )
    return new, files

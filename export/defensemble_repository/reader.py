"""Read what a repository contains from its configurations: models, versions, ensembles and their members."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from .configs import OUTPUTS, ensemble_steps
from .ensemble import Ensemble, Member
from .errors import ConfigError, EnsembleError, RepositoryError
from .filesystem.regular_files import MAX_TEXT_BYTES, read_regular
from .names import (
    BACKEND,
    BACKEND_OF_PLATFORM,
    CONFIG_FILE,
    ENSEMBLE_PLATFORM,
    LABELS_FILE,
    MODEL_FILE,
    MODEL_NAME,
    PLAN_BACKEND,
    PLAN_FILE,
    PROFILES_FOLDER,
)
from .pbtxt import config_from_file, schema
from .records import parse_json, record_from_values

# Every export is verified at its largest batch. With larger ones, memory is exhausted before a server's queue is full.
MAX_BATCH_SIZE = 4096
MAX_VERSION = 2**63 - 1
_Member = Annotated[str, msgspec.Meta(pattern="^[^@]+@[0-9]{1,19}$")]


def read_config(folder: Path) -> schema.ModelConfig:
    """Read a model's `config.pbtxt`.

    Raises:
        ConfigError: The file is missing or not valid, or has the name of another model or of a file outside a version folder.
        OSError: The file cannot be read.
    """
    path = folder / CONFIG_FILE
    try:
        config = config_from_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{folder} has no {CONFIG_FILE}, so it is not a model. Put the file back, or move the folder out of the repository."
        ) from error
    return checked_config(config, folder)


def checked_config(config: schema.ModelConfig, folder: Path) -> schema.ModelConfig:
    """Return the configuration of the model in `folder`.

    Raises:
        ConfigError: It has the name of another model, or of a file outside a version folder.
    """
    path = folder / CONFIG_FILE
    if config.name and config.name != folder.name:
        raise ConfigError(f"{path} has name: \"{config.name}\"; expected the name of its folder, '{folder.name}'. Make them equal.")
    file = config.default_model_filename
    if file and (file != PurePosixPath(file).name or file == ".."):
        raise ConfigError(
            f"{path} has default_model_filename: {file!r}; expected the plain name of a file in the version's folder. "
            f"Correct the line, or remove it to use {MODEL_FILE}."
        )
    return config


def read_models(repository: Path, on_progress: Callable[[str], None] = lambda text: None) -> dict[str, schema.ModelConfig]:
    """Return the configuration of every model in a repository, by name.

    Args:
        repository: The folder of the repository.
        on_progress: Called with a message for each folder that is not a model.

    Raises:
        ConfigError: A configuration is not valid (see `read_config`), has neither a backend nor a platform, or is missing although
            there are versions.
        OSError: A folder or a file cannot be read.

    Example:
        >>> read_models(Path("model_repository"))
    """
    configs = {}
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        # The name is checked first, because only the owner can read a folder such as `lost+found`.
        if not MODEL_NAME.fullmatch(folder.name) or not ((folder / CONFIG_FILE).exists() or versions_in(folder)):
            on_progress(
                f"{folder} is not a model (no {CONFIG_FILE}, or not a valid model name) and is ignored. Move it out of the repository."
            )
            continue
        config = read_config(folder)
        if not config.backend and not config.platform:
            raise ConfigError(
                f"{folder / CONFIG_FILE} has neither a backend nor a platform, so the kind of model '{folder.name}' is unknown. "
                "Restore the exported file, or move the folder out of the repository."
            )
        configs[folder.name] = config
    return configs


def read_ensemble(repository: Path, name: str) -> Ensemble:
    """Read the ensemble `name` of a repository.

    Args:
        repository: The folder of the repository.
        name: The name of the ensemble.

    Raises:
        ConfigError: A configuration is missing or not valid.
        EnsembleError: The ensemble is not wired as this package wires one (see `ensemble_from_configs`).

    Example:
        >>> read_ensemble(Path("model_repository"), "ensemble").members
        (Member(model='keep0.3', version=1, weight=1.0), Member(model='keep0.5', version=1, weight=1.0))
    """
    config = read_config(repository / name)
    models = {step.model_name for step in config.ensemble_scheduling.step}
    known = {model: read_config(repository / model) for model in models if (repository / model / CONFIG_FILE).exists()}
    return ensemble_from_configs(name, {**known, name: config})


def ensemble_from_configs(name: str, configs: Mapping[str, schema.ModelConfig]) -> Ensemble:
    """Return the ensemble that `ensemble_config` and `averaging_config` described.

    The members are the steps that read the input of the ensemble. The average and the weights are parameters of the model that gives
    `probabilities`. Users may have edited every other field. The older form with two averaging models is also read.

    Args:
        name: The name of the ensemble.
        configs: The configurations of the ensemble and of the models of its steps, by name.

    Raises:
        EnsembleError: The steps are not wired as this package wires them, or the parameters are not those of its averaging models.
    """
    config = configs[name]
    problem = f"ensemble '{name}' is not wired as `defensemble export` wires one, so its members cannot be edited"
    fix = f"Correct {CONFIG_FILE}, write the ensemble again with `defensemble ensemble apply FILE`, or choose another ensemble."
    steps = list(config.ensemble_scheduling.step)
    inputs = {tensor.name for tensor in config.input}
    outputs = [tensor.name for tensor in config.output]
    member_steps = [step for step in steps if inputs & set(step.input_map.values())]
    others = [step for step in steps if step not in member_steps]
    average_model = next((step.model_name for step in others if "probabilities" in step.output_map.values()), "")
    second_model = next((step.model_name for step in others if "probabilities" not in step.output_map.values()), "")
    average, weights = (parameter(configs.get(average_model), key) for key in ("average", "weights"))
    if average is None or weights is None:
        raise EnsembleError(
            f"{problem}: the step that gives its probabilities, '{average_model or 'none'}', must run a model of this repository "
            f"with the parameters average and weights. {fix}"
        )
    try:
        numbers = weights_from_text(weights)
        if len(numbers) != len(member_steps):
            raise ValueError("expected one weight for each member")
        pairs = zip(member_steps, numbers, strict=True)
        ensemble = Ensemble(name, tuple(Member(step.model_name, step.model_version, weight) for step, weight in pairs), average)
    except ValueError as error:  # EnsembleError is a ValueError.
        raise EnsembleError(f"{problem}: it has {len(member_steps)} members with the weights {weights[:80]}: {error}. {fix}") from error
    one_model = {average_model: OUTPUTS}
    two_models = {average_model: OUTPUTS[:1], second_model: OUTPUTS[1:]}
    if steps not in (ensemble_steps(ensemble, outputs, one_model), ensemble_steps(ensemble, outputs, two_models)):
        raise EnsembleError(f"{problem}: its steps or their input_map and output_map differ. {fix}")
    return ensemble


def stated_members(config: schema.ModelConfig, name: str) -> Ensemble | None:
    """Return the ensemble in the parameters of an averaging model or a fused graph, with the given name, or None if they are not valid."""
    values = {key: parameter(config, key) or "" for key in ("average", "weights", "members")}
    try:
        members = zip(members_from_text(values["members"]), weights_from_text(values["weights"]), strict=True)
        return Ensemble(name, tuple(Member(model, version, weight) for (model, version), weight in members), values["average"])
    except ValueError:  # EnsembleError is a ValueError.
        return None


def config_paths(folder: Path) -> list[Path]:
    """Return the paths of the configurations of a model: its profiles, then `config.pbtxt`, which is written last."""
    return [*sorted((folder / PROFILES_FOLDER).glob("*.pbtxt")), folder / CONFIG_FILE]


def next_version(folder: Path) -> int:
    """Return the number of the version that an export adds to a model: 1 for a new model.

    Raises:
        RepositoryError: The number is larger than Triton's largest.
    """
    version = max(versions_in(folder) if folder.exists() else [], default=0) + 1
    if version > MAX_VERSION:
        raise RepositoryError(
            f"{folder / str(version - 1)} has no next version: the largest is {MAX_VERSION}. Rename it to a lower number."
        )
    return version


def read_interface(folder: Path) -> tuple[list[list[int]], bytes | None]:
    """Return the dims of a model's inputs and outputs, and the content of its labels file, or None if it has none."""
    config = read_config(folder)
    labels = folder / LABELS_FILE
    names = read_regular(labels, MAX_TEXT_BYTES) if labels.exists() else None
    return [list(tensor.dims) for tensor in (*config.input, *config.output)], names


def checked_batch_size(max_batch_size: int, source: str) -> int:
    """Return a largest batch with which an export can be verified.

    Args:
        max_batch_size: The number of images.
        source: What the number is, for the error message.

    Raises:
        RepositoryError: The number is not 1 to 4096.
    """
    if not 1 <= max_batch_size <= MAX_BATCH_SIZE:
        raise RepositoryError(f"{source} is {max_batch_size}; expected 1 to {MAX_BATCH_SIZE}")
    return max_batch_size


def read_max_batch_size(folder: Path, requested: int | None) -> int:
    """Return the `max_batch_size` of an existing model.

    Args:
        folder: The folder of the model.
        requested: The number that the user requests, or None.

    Raises:
        RepositoryError: `requested` is another number, or the number in the configuration is not 1 to 4096.
    """
    path = folder / CONFIG_FILE
    batch = checked_batch_size(int(read_config(folder).max_batch_size), f"max_batch_size in {path}")
    if requested is not None and requested != batch:
        raise RepositoryError(
            f"--max-batch-size is {requested}, but {path} has max_batch_size {batch}, which an export keeps. "
            "Omit the option, or edit the file first."
        )
    return batch


def parameter(config: schema.ModelConfig | None, key: str) -> str | None:
    """Return a value of a configuration's `parameters`, or None if the key or the configuration is missing."""
    return config.parameters[key].string_value if config is not None and key in config.parameters else None


def is_ensemble(config: schema.ModelConfig) -> bool:
    """Return whether a configuration is that of a Triton ensemble."""
    return bool(config.platform == ENSEMBLE_PLATFORM)


def model_backend(config: schema.ModelConfig) -> str:
    """Return the backend of a model, from its `backend` or `platform`. It is empty for an ensemble, and if both are missing."""
    return str(config.backend or BACKEND_OF_PLATFORM.get(config.platform, ""))


def model_filename(config: schema.ModelConfig) -> str | None:
    """Return the name of the model file in a version folder, or None if the backend and the file are unknown."""
    return str(config.default_model_filename) or {BACKEND: MODEL_FILE, PLAN_BACKEND: PLAN_FILE}.get(model_backend(config))


def versions_in(folder: Path) -> list[int]:
    """Return the version numbers in a model folder, in ascending order: the entries named 1, 2, ..."""
    return sorted(int(entry.name) for entry in folder.iterdir() if re.fullmatch("[1-9][0-9]*", entry.name))


def served_versions(folder: Path, config: schema.ModelConfig) -> list[int]:
    """Return the versions in a model folder that Triton loads.

    Args:
        folder: The folder of the model.
        config: Its configuration. Without a `version_policy`, only the newest version is loaded.
    """
    return versions_by_policy([version for version in versions_in(folder) if (folder / str(version)).is_dir()], config)


def versions_by_policy(versions: Sequence[int], config: schema.ModelConfig) -> list[int]:
    """Return those of `versions`, in ascending order, that Triton loads (see `served_versions`)."""
    policy = config.version_policy
    if policy.HasField("all"):
        return list(versions)
    if policy.HasField("specific"):
        return [version for version in versions if version in policy.specific.versions]
    newest = policy.latest.num_versions if policy.HasField("latest") else 1
    return list(versions[-newest:]) if newest else []


def weights_from_text(text: str) -> list[float]:
    """Parse the parameter `weights` of an averaging model or a fused graph.

    Raises:
        ValueError: It is not a JSON list of numbers.
    """
    weights: list[float] = parse_json(text)
    record_from_values(weights, list[float])  # Only checked, not converted, so that 1 is written back as 1.
    return weights


def members_from_text(text: str) -> list[tuple[str, int]]:
    """Parse the parameter `members` of an averaging model or a fused graph into (model, version).

    Raises:
        ValueError: It is not a JSON list of "NAME@VERSION".
    """
    members = (member.rpartition("@") for member in record_from_values(parse_json(text), list[_Member]))
    return [(model, int(version)) for model, _, version in members]

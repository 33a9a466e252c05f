"""What a repository already holds, read from its configurations: ensembles with their votes, and how much a model takes at once."""

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

# Every export is verified at its largest batch: beyond this, memory ends before a server's queue does.
MAX_BATCH_SIZE = 4096
MAX_VERSION = 2**63 - 1
_Member = Annotated[str, msgspec.Meta(pattern="^[^@]+@[0-9]{1,19}$")]


def read_config(folder: Path) -> schema.ModelConfig:
    """Read a model's ``config.pbtxt``.

    Raises:
        ConfigError: there is none, it is not valid, it names another model, or a file that is not in a version's folder.
    """
    path = folder / CONFIG_FILE
    try:
        config = config_from_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{folder} holds no {CONFIG_FILE}: it is not a model that this project wrote; move it away") from error
    return checked_config(config, folder)


def checked_config(config: schema.ModelConfig, folder: Path) -> schema.ModelConfig:
    """Return the configuration in ``folder``; ConfigError where it names another model, or a file outside of a version's folder."""
    path = folder / CONFIG_FILE
    if config.name and config.name != folder.name:
        raise ConfigError(f"{path} says name: \"{config.name}\", but the folder is called '{folder.name}': make them equal")
    file = config.default_model_filename
    if file and (file != PurePosixPath(file).name or file == ".."):
        raise ConfigError(
            f"{path} says default_model_filename: {file!r}, expected the plain name of a file in the version's folder: "
            f"mend that line, or take it out, which stands for {MODEL_FILE}"
        )
    return config


def read_models(repository: Path, on_progress: Callable[[str], None] = lambda text: None) -> dict[str, schema.ModelConfig]:
    """Read the configuration of every model in a repository, by name; ``on_progress`` gets folders that Triton refuses.

    Raises:
        ConfigError: one cannot be read (``read_config``), says nothing, or is missing where there are versions.
        OSError: likewise.
    """
    configs = {}
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        # By its name first: `lost+found` is its owner's alone to look into.
        if not MODEL_NAME.fullmatch(folder.name) or not ((folder / CONFIG_FILE).exists() or versions_in(folder)):
            on_progress(
                f"{folder} is no model (it has no {CONFIG_FILE}, or no name of a model), and is left alone: move it out of the repository"
            )
            continue
        config = read_config(folder)
        if not config.backend and not config.platform:
            raise ConfigError(
                f"{folder / CONFIG_FILE} names neither a backend nor a platform, so what '{folder.name}' is cannot be told: "
                "put back what was exported, or move the folder out of the repository"
            )
        configs[folder.name] = config
    return configs


def read_ensemble(repository: Path, name: str) -> Ensemble:
    """Read the ensemble ``name`` of ``repository``: see ``ensemble_from_configs``.

    Raises:
        ConfigError, EnsembleError: it cannot be read, or is not one that this package wrote.
    """
    config = read_config(repository / name)
    models = {step.model_name for step in config.ensemble_scheduling.step}
    known = {model: read_config(repository / model) for model in models if (repository / model / CONFIG_FILE).exists()}
    return ensemble_from_configs(name, {**known, name: config})


def ensemble_from_configs(name: str, configs: Mapping[str, schema.ModelConfig]) -> Ensemble:
    """Read back what ``ensemble_config`` and ``averaging_config`` wrote: who votes, at which version and weight, and what is averaged.

    What earlier versions wrote is read too: there one model gave ``probabilities``, and another the other outputs.

    ``configs`` maps names of models to their configurations. The votes are the steps that read the ensemble's input, in their order;
    average and weights are the parameters of the model that gives ``probabilities``. Every other field may have been edited by hand.

    Raises:
        EnsembleError: the steps are not wired as those that this package writes, or the parameters are not those of its averaging models.
    """
    config = configs[name]
    has_error = f"ensemble '{name}' is not wired as `defensemble export` wires one, so its votes cannot be edited"
    mend = "fix that by hand, say what is to vote with `defensemble ensemble apply FILE`, or name another ensemble"
    steps = list(config.ensemble_scheduling.step)
    inputs = {tensor.name for tensor in config.input}
    outputs = [tensor.name for tensor in config.output]
    votes = [step for step in steps if inputs & set(step.input_map.values())]
    others = [step for step in steps if step not in votes]
    average_model = next((step.model_name for step in others if "probabilities" in step.output_map.values()), "")
    second_model = next((step.model_name for step in others if "probabilities" not in step.output_map.values()), "")
    average, weights = (parameter(configs.get(average_model), key) for key in ("average", "weights"))
    if average is None or weights is None:
        raise EnsembleError(
            f"{has_error}: the step that gives its probabilities, '{average_model or 'none'}', must be a model of this repository "
            f"whose parameters say average and weights; {mend}"
        )
    try:
        numbers = weights_from_text(weights)
        if len(numbers) != len(votes):
            raise ValueError("one weight is needed for each vote")
        given = list(zip(votes, numbers, strict=True))
        ensemble = Ensemble(name, tuple(Member(step.model_name, step.model_version, weight) for step, weight in given), average)
    except ValueError as error:  # EnsembleError is one
        raise EnsembleError(f"{has_error}: {len(votes)} votes with the weights {weights[:80]}: {error}; {mend}") from error
    of_one = {average_model: OUTPUTS}
    of_two = {average_model: OUTPUTS[:1], second_model: OUTPUTS[1:]}
    if steps not in (ensemble_steps(ensemble, outputs, of_one), ensemble_steps(ensemble, outputs, of_two)):
        raise EnsembleError(f"{has_error}: its steps are wired otherwise than an export wires them; {mend}")
    return ensemble


def stated_members(config: schema.ModelConfig, name: str) -> Ensemble | None:
    """Who votes, and what is averaged, as the parameters of an averaging model or a fused graph say; None where they say nothing valid."""
    said = {key: parameter(config, key) or "" for key in ("average", "weights", "members")}
    try:
        members = zip(members_from_text(said["members"]), weights_from_text(said["weights"]), strict=True)
        return Ensemble(name, tuple(Member(model, version, weight) for (model, version), weight in members), said["average"])
    except ValueError:  # EnsembleError is one
        return None


def config_paths(folder: Path) -> list[Path]:
    """Return the configurations of a model: its profiles, then its `config.pbtxt`, which is written last."""
    return [*sorted((folder / PROFILES_FOLDER).glob("*.pbtxt")), folder / CONFIG_FILE]


def next_version(folder: Path) -> int:
    """The version that an export adds to a model, 1 where there is none yet; RepositoryError beyond what Triton counts to."""
    version = max(versions_in(folder) if folder.exists() else [], default=0) + 1
    if version > MAX_VERSION:
        raise RepositoryError(f"{folder / str(version - 1)}: Triton counts versions up to {MAX_VERSION}; rename it to a lower one")
    return version


def read_interface(folder: Path) -> tuple[list[list[int]], bytes | None]:
    """What a model takes and gives: the dims of its inputs and outputs, and its class names as the file holds them, where there is one."""
    config = read_config(folder)
    labels = folder / LABELS_FILE
    names = read_regular(labels, MAX_TEXT_BYTES) if labels.exists() else None
    return [list(tensor.dims) for tensor in (*config.input, *config.output)], names


def checked_batch_size(max_batch_size: int, where: str) -> int:
    """Return a largest batch that an export can be verified at; RepositoryError where it is not 1 to 4096."""
    if not 1 <= max_batch_size <= MAX_BATCH_SIZE:
        raise RepositoryError(f"{where} must be 1 to {MAX_BATCH_SIZE}, got {max_batch_size}")
    return max_batch_size


def read_max_batch_size(folder: Path, asked: int | None) -> int:
    """How many images a model in the repository takes at once: its configuration says so, and ``asked`` must not say otherwise.

    Raises:
        RepositoryError: ``asked`` is another number, or the configuration's is not 1 to 4096.
    """
    path = folder / CONFIG_FILE
    batch = checked_batch_size(int(read_config(folder).max_batch_size), f"max_batch_size in {path}")
    if asked is not None and asked != batch:
        raise RepositoryError(
            f"{path} says max_batch_size {batch}, and --max-batch-size says {asked}: an export keeps what is there; "
            "leave the option out, or edit that file first"
        )
    return batch


def parameter(config: schema.ModelConfig | None, key: str) -> str | None:
    """A value of a configuration's ``parameters``, None where there is none."""
    return config.parameters[key].string_value if config is not None and key in config.parameters else None


def is_ensemble(config: schema.ModelConfig) -> bool:
    """Whether a configuration is one of Triton's ensembles."""
    return bool(config.platform == ENSEMBLE_PLATFORM)


def model_backend(config: schema.ModelConfig) -> str:
    """The backend that runs a model, whether its configuration names it or the platform; empty where it names neither, or an ensemble."""
    return str(config.backend or BACKEND_OF_PLATFORM.get(config.platform, ""))


def model_filename(config: schema.ModelConfig) -> str | None:
    """The name of the file in a version's folder that a model is loaded from; None for a backend whose files we do not know."""
    return str(config.default_model_filename) or {BACKEND: MODEL_FILE, PLAN_BACKEND: PLAN_FILE}.get(model_backend(config))


def versions_in(folder: Path) -> list[int]:
    """The numbers of a model's versions, lowest first: what is named 1, 2, ... in its folder."""
    return sorted(int(entry.name) for entry in folder.iterdir() if re.fullmatch("[1-9][0-9]*", entry.name))


def served_versions(folder: Path, config: schema.ModelConfig) -> list[int]:
    """The versions in a model's folder that Triton loads: what `version_policy` says, only the newest where it says nothing."""
    return versions_by_policy([version for version in versions_in(folder) if (folder / str(version)).is_dir()], config)


def versions_by_policy(versions: Sequence[int], config: schema.ModelConfig) -> list[int]:
    """Those of ``versions``, lowest first, that Triton loads: see ``served_versions``."""
    policy = config.version_policy
    if policy.HasField("all"):
        return list(versions)
    if policy.HasField("specific"):
        return [version for version in versions if version in policy.specific.versions]
    newest = policy.latest.num_versions if policy.HasField("latest") else 1
    return list(versions[-newest:]) if newest else []


def weights_from_text(text: str) -> list[float]:
    """Read the parameter `weights` of an averaging model or a fused graph; ValueError where it is no JSON list of numbers."""
    weights: list[float] = parse_json(text)
    record_from_values(weights, list[float])  # they stay as they are: 1 is written back as 1
    return weights


def members_from_text(text: str) -> list[tuple[str, int]]:
    """Read the parameter `members` of an averaging model or a fused graph; ValueError where it is no list of "NAME@VERSION"."""
    members = (member.rpartition("@") for member in record_from_values(parse_json(text), list[_Member]))
    return [(model, int(version)) for model, _, version in members]

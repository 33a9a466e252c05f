"""Check one model that is not an ensemble: its configuration, versions, files, digests, profiles and TensorRT plans."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from ..averaging import is_fused, serves_fused_members
from ..errors import ConfigError, EnsembleError, ManifestError
from ..names import CONFIG_FILE, MANIFEST_FILE, MODEL_FILE, PLAN_BACKEND, PLAN_FILE
from ..pbtxt import schema
from ..plan_manifest import manifest_from_bytes
from ..reader import is_ensemble, model_backend, model_filename, parameter, versions_by_policy
from ..view import RepositoryView
from .config_rules import config_problems, warmup_bytes
from .finding import parameter_path
from .inspection import Inspection
from .preprocessing import check_preprocessing
from .wiring import format_type

_EXPORT_AGAIN = "Put it back, or export the model again with --replace, which adds a version."
# Names other than 1, 2, ... that Triton accepts for version folders: it parses the leading number of the name.
_ODD_VERSION = re.compile(r"\s*([+-]?[0-9]+).*", re.DOTALL)


def check_model(inspection: Inspection, model: str, pinned: Collection[int] | None = None, *, fix: str = _EXPORT_AGAIN) -> None:
    """Find what prevents a model, which is not an ensemble, from being loaded.

    Triton loads all versions in `version_policy`. If one fails, it loads none.

    Args:
        inspection: Receives the findings.
        model: The name of a model that has a configuration.
        pinned: The versions that are members of ensembles, or None if no ensemble uses the model.
        fix: The advice how to restore a damaged file.
    """
    config = inspection.config(model)
    if config is None:
        return
    path = inspection.config_path(model)
    with inspection.blocking(model):
        served = _served(inspection, model, config)
        used = served if pinned is None else pinned
        _check_external_links(inspection, model, used)
        for problem in config_problems(config, inspection.target):
            inspection.add_problem(model, problem, path)
        check_label_files(inspection, model, config)
        _check_warmup_files(inspection, model, config)
        _check_averaging(inspection, model, config)
        check_preprocessing(inspection, model, config)
        _check_folders(inspection, model, config)
        for version in served:
            _check_file(inspection, model, version, config, path, pinned=version in used, fix=fix)
        for profile_path in inspection.profiles(model):
            default = inspection.parse_config(model, f"{model}/{CONFIG_FILE}")
            profile = inspection.parse_config(model, profile_path)
            if default is not None and profile is not None:
                _check_profile(inspection, model, default, profile, profile_path, used, fix=fix)


def require_valid_configs(files: RepositoryView, models: Iterable[str]) -> None:
    """Check configurations before files are written for them.

    Args:
        files: The repository.
        models: The names of the models to check.

    Raises:
        ConfigError: Every Triton rejects one of the configurations.
    """
    inspection = Inspection(files)
    for model in models:
        config = inspection.config(model)
        for problem in config_problems(config, inspection.target) if config is not None and not is_ensemble(config) else ():
            inspection.add_problem(model, problem, inspection.config_path(model))
    if inspection.findings:
        raise ConfigError("\n".join(map(str, inspection.findings)))


def check_label_files(inspection: Inspection, model: str, config: schema.ModelConfig) -> None:
    """Find outputs whose labels file is missing, or is not in the model folder."""
    for tensor in config.output:
        name, field_path = tensor.label_filename, (("output", "name", tensor.name), "label_filename")
        if name and (name != PurePosixPath(name).name or name == ".." or "\0" in name):
            text = f"has label_filename: {name!r}; expected the plain name of a file in the model's folder. Correct the line."
            inspection.add_finding(model, text, inspection.config_path(model), *field_path)
        elif name and inspection.content(f"{model}/{name}") is None and not inspection.has_error(model, f"{model}/{name}"):
            text = f'has label_filename: "{name}", but {inspection.files.repository / model / name} does not exist. '
            text += "Put the file back, or remove the line."
            inspection.add_finding(model, text, inspection.config_path(model), *field_path)


def check_links(inspection: Inspection, model: str, config: schema.ModelConfig) -> None:
    """Find dangling links in a model folder. Triton examines each entry to find versions, and loads no model if that fails."""
    labels = {tensor.label_filename for tensor in config.output}  # `check_label_files` reports a missing labels file.
    for link, target in inspection.files.dangling_links(model).items():
        if link not in labels:
            text = f"is a link to {target!r}, which does not exist, so Triton does not load this model"
            inspection.add_finding(model, f"{text}. Remove the link, or restore its target.", f"{model}/{link}")


def _check_warmup_files(inspection: Inspection, model: str, config: schema.ModelConfig) -> None:
    for index, sample in enumerate(config.model_warmup):
        for key, tensor in sorted(sample.inputs.items()):
            if tensor.WhichOneof("input_data_type") != "input_data_file":
                continue
            field_path = (("model_warmup", index), ("inputs", "key", key), "value", "input_data_file")
            name, file = tensor.input_data_file, f"{model}/warmup/{tensor.input_data_file}"
            path, subject = inspection.config_path(model), f"warm-up '{sample.name}' reads '{key}' from"
            if name != PurePosixPath(name).name or name in ("", "..") or "\0" in name:
                text = f"{subject} input_data_file {name!r}; expected the plain name of a file in the model's folder warmup"
                inspection.add_finding(model, text, path, *field_path)
                continue
            size, expected = inspection.files.size(file), warmup_bytes(tensor)
            if size is None:
                text = f"{subject} {inspection.files.repository / file}, which does not exist. Put it back, or remove the warm-up."
                inspection.add_finding(model, text, path, *field_path)
            elif expected is not None and size < expected:
                text = f"{subject} {inspection.files.repository / file}, which has {size} bytes; expected {expected}. Write the file again."
                inspection.add_finding(model, text, path, *field_path)


def _check_averaging(inspection: Inspection, model: str, config: schema.ModelConfig) -> None:
    """Check the parameters of a fused graph, from which a server computes the expected answers."""
    try:
        if is_fused(config):
            serves_fused_members(model, config, {})
    except EnsembleError as error:
        inspection.add_finding(model, str(error), inspection.config_path(model), "parameters")


def _check_folders(inspection: Inspection, model: str, config: schema.ModelConfig) -> None:
    versions = inspection.versions(model)
    if not versions:
        folder = inspection.files.repository / model
        text = f"has no version folder. Put one back into {folder}, named 1, 2, ..., or export the model again."
        inspection.add_finding(model, text, model)
        return
    check_links(inspection, model, config)
    numbers = {name: _odd_version(name) for name in inspection.files.folders(model)}
    odd = {number: name for name, number in numbers.items() if number is not None and number not in versions}
    served = versions_by_policy(sorted([*versions, *odd]), config)
    for number, name in sorted(odd.items()):
        if number in served:
            text = f"Triton interprets folder '{name}' as version {number}. Name version folders 1, 2, ..., and move others away."
            inspection.add_finding(model, text, f"{model}/{name}")
    if not served:
        text = f"version_policy selects none of the versions {', '.join(map(str, versions))}. Write version_policy {{ all {{}} }}."
        inspection.add_finding(model, text, inspection.config_path(model), "version_policy")


def _odd_version(name: str) -> int | None:
    """Return the version as which Triton interprets a folder name other than 1, 2, ..., or None if it ignores the folder."""
    number = _ODD_VERSION.fullmatch(name)
    if number is None or (name[0] == "0" and name != "0"):  # Triton ignores names with leading zeros.
        return None
    return int(number[1])


def _served(inspection: Inspection, model: str, config: schema.ModelConfig) -> list[int]:
    return versions_by_policy(inspection.versions(model), config)


def _check_external_links(inspection: Inspection, model: str, pinned: Collection[int]) -> None:
    """Add a remark for links out of the repository, which are common for weights in a separate store. Digests identify the files."""
    for path in (model, f"{model}/{CONFIG_FILE}", *(f"{model}/{version}" for version in pinned)):
        target = inspection.external_target(path)
        if target is not None:
            text = f"is, or is inside, a link to {target}, outside the repository, where files can change without an edit"
            inspection.add_finding(model, text, path, is_error=False)
            return


def _check_file(inspection: Inspection, model: str, version: int, config: schema.ModelConfig, path: str, *, pinned: bool, fix: str) -> None:
    """Check that a version has its model file, with the digest in the configuration at `path`."""
    name = model_filename(config)
    if name is None:
        return
    file = f"{model}/{version}/{name}"
    is_plan = model_backend(config) == PLAN_BACKEND
    if is_plan:
        fix = f"Build it with `{_build_command(inspection, model, version)}`."
    if not pinned:
        folder = inspection.files.repository / model / str(version)
        fix = f"Triton loads it together with the version of the ensemble. Put it back, or move {folder} away."
    # NVIDIA's backend also accepts a folder of that name, for graphs with separate weight files.
    exists = inspection.exists(file)
    if exists is None:
        return
    if not exists and (inspection.target.embedded or not inspection.files.exists(f"{file}/{name}")):
        inspection.add_finding(model, f"version {version} has no model file. {fix}", file)
        return
    expected = parameter(config, f"sha256.{version}")
    if expected is not None:
        actual = inspection.digest(file)
        if actual is not None and actual != expected:
            text = f"version {version}: this file has SHA-256 {actual[:16]}..., but sha256.{version} in "
            text += f"{inspection.files.repository / path} is {expected[:16]}..., so the file was changed or damaged. {fix} "
            inspection.add_finding(model, f"{text}If the change is intended, write the new digest there.", file)
    if pinned and is_plan and inspection.plans:
        _check_plan(inspection, model, version, config)


def _build_command(inspection: Inspection, model: str, version: int) -> str:
    return f"defensemble build-engine {model} --repository {inspection.files.repository} --version {version}"


def _check_plan(inspection: Inspection, model: str, version: int, config: schema.ModelConfig) -> None:
    """Check that a plan matches its manifest and its configuration. The server checks that it matches its machine."""
    folder = f"{model}/{version}"
    command = f"{_build_command(inspection, model, version)} --force"
    fix = f"Build it again with `{command}`"
    path = f"{folder}/{MANIFEST_FILE}"
    content = inspection.content(path)
    if content is None:
        if not inspection.has_error(model, path):
            inspection.add_finding(model, f"the plan of version {version} has no manifest, so how it was built is unknown. {fix}.", path)
        return
    try:
        manifest = manifest_from_bytes(content, "the plan's manifest")
    except ManifestError as error:
        inspection.add_finding(model, f"{error} Use `{command}`.", path)
        return
    for name, expected in ((model_filename(config) or PLAN_FILE, manifest.plan_sha256), (MODEL_FILE, manifest.onnx_sha256)):
        actual = inspection.digest(f"{folder}/{name}")
        if actual is not None and actual != expected and not inspection.has_error(model, f"{folder}/{name}"):
            text = "the plan was built from another model.onnx" if name == MODEL_FILE else "the plan was changed after it was built"
            text += f": this file has SHA-256 {actual[:16]}..., but its manifest has {expected[:16]}..."
            inspection.add_finding(model, f"{text}. {fix}.", f"{folder}/{name}")
    smallest, largest = manifest.profile.min, manifest.profile.max
    dims = list(config.input[0].dims) if len(config.input) == 1 else []
    if len(dims) != 3 or any(size not in (-1, planned) for size, planned in zip(dims, largest[1:], strict=True)):
        inspection.add_finding(model, f"the plan is for images of {list(largest[1:])}, but the configuration has {dims}. {fix}.", path)
    if config.max_batch_size > largest[0]:
        text = f"max_batch_size is {config.max_batch_size}, but the plan accepts at most {largest[0]} images"
        inspection.add_finding(model, f"{text}. {fix}, or lower max_batch_size to {largest[0]}.", path)
    if smallest[0] > 1:
        inspection.add_finding(model, f"the plan accepts at least {smallest[0]} images, but a request may have 1. {fix}.", path)


def _check_profile(
    inspection: Inspection,
    model: str,
    config: schema.ModelConfig,
    profile: schema.ModelConfig,
    path: str,
    pinned: Collection[int],
    *,
    fix: str,
) -> None:
    """Check that a profile changes only where and how the model runs, and nothing that a caller or an ensemble sees."""
    if profile.name not in ("", model):
        inspection.add_finding(
            model, f"has name: \"{profile.name}\"; expected the name of the model, '{model}'. Make them equal.", path, "name"
        )
    for kind, actual, expected in (("input", profile.input, config.input), ("output", profile.output, config.output)):
        if list(actual) != list(expected):
            text = f"{kind}s of this profile are {format_tensors(actual)}, but those in {CONFIG_FILE} are {format_tensors(expected)}"
            inspection.add_finding(
                model, f"{text}. Make them equal, or write the profile again with `defensemble profile write`.", path, kind
            )
    if profile.max_batch_size != config.max_batch_size:
        text = f"this profile has max_batch_size: {profile.max_batch_size}, but {CONFIG_FILE} has {config.max_batch_size}. Make them equal."
        inspection.add_finding(model, text, path, "max_batch_size")
    served, served_by_default = (_served(inspection, model, source) for source in (profile, config))
    for version in sorted(pinned):
        if version in served_by_default and version not in served:
            text = f"an ensemble uses version {version}, but this profile serves {served or 'none'}"
            text += f". Write version_policy {{ all {{}} }} here, as in {CONFIG_FILE}."
            inspection.add_finding(model, text, path, "version_policy")
    same_file = model_filename(profile) == model_filename(config)
    for version in served:
        key = f"sha256.{version}"
        digest, expected_digest = parameter(profile, key), parameter(config, key)
        if not same_file or version not in served_by_default:
            _check_file(inspection, model, version, profile, path, pinned=version in pinned, fix=fix)
        elif digest is not None and expected_digest is not None and digest != expected_digest:
            text = f"{key} of this profile is {digest[:16]}..., but that of the same file in {CONFIG_FILE} is {expected_digest[:16]}..."
            text += " Make them equal."
            inspection.add_finding(model, text, path, *parameter_path(key))


def format_tensors(tensors: Sequence[schema.ModelInput] | Sequence[schema.ModelOutput]) -> str:
    """Return inputs or outputs as a text, such as "images FP32 [3, 32, 32]"."""
    return ", ".join(f"{tensor.name} {format_type(tensor.data_type)} {list(tensor.dims)}" for tensor in tensors) or "none"

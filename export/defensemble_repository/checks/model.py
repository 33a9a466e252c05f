"""Whether one model, which is no ensemble, can be loaded: its configuration, versions, files, digests, profiles and TensorRT plans."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from ..averaging import is_fused, serves_what_was_fused
from ..errors import ConfigError, EnsembleError, ManifestError
from ..names import CONFIG_FILE, MANIFEST_FILE, MODEL_FILE, PLAN_BACKEND, PLAN_FILE
from ..pbtxt import schema
from ..plan_manifest import manifest_from_bytes
from ..reader import backend_of, file_of, is_ensemble, parameter, versions_by_policy
from ..view import RepositoryView
from .config_rules import config_problems, warmup_size
from .finding import parameter_path
from .inspection import Inspection
from .preprocessing import check_preprocessing
from .wiring import format_type

_EXPORT_AGAIN = "put it back, or export the model again (--replace), which adds a version"
# What Triton takes for a version folder, beside 1, 2, ...: it reads as much of the name as is a number.
_ODD_VERSION = re.compile(r"\s*([+-]?[0-9]+).*", re.DOTALL)


def check_model(found: Inspection, model: str, pinned: Collection[int] | None = None, *, mend: str = _EXPORT_AGAIN) -> None:
    """Find what keeps `model`, which is no ensemble, from being loaded.

    Triton loads all versions that `version_policy` names, and none where one fails.

    Args:
        found: where findings go.
        model: the name of a model that has a configuration.
        pinned: the versions that vote in an ensemble; None where no ensemble runs the model.
        mend: how a damaged file is restored.
    """
    config = found.config(model)
    if config is None:
        return
    path = found.config_path(model)
    with found.stopping(model):
        served = _served(found, model, config)
        votes = served if pinned is None else pinned
        _check_links(found, model, votes)
        for fault in config_problems(config, found.target):
            found.add_problem(model, fault, path)
        check_label_files(found, model, config)
        _check_warmup_files(found, model, config)
        _check_averaging(found, model, config)
        check_preprocessing(found, model, config)
        _check_folders(found, model, config)
        for version in served:
            _check_file(found, model, version, config, path, pinned=version in votes, mend=mend)
        for profile_path in found.profiles(model):
            usual, profile = found.parsed(model, f"{model}/{CONFIG_FILE}"), found.parsed(model, profile_path)
            if usual is not None and profile is not None:
                _check_profile(found, model, usual, profile, profile_path, votes, mend=mend)


def refuse_configs(files: RepositoryView, models: Iterable[str]) -> None:
    """Refuse (ConfigError) configurations that every Triton refuses, before something is written that is served by them."""
    found = Inspection(files)
    for model in models:
        config = found.config(model)
        for fault in config_problems(config, found.target) if config is not None and not is_ensemble(config) else ():
            found.add_problem(model, fault, found.config_path(model))
    if found.findings:
        raise ConfigError("\n".join(map(str, found.findings)))


def check_label_files(found: Inspection, model: str, config: schema.ModelConfig) -> None:
    """Find outputs whose file of labels is not there, or not in the model's folder."""
    for tensor in config.output:
        name, way = tensor.label_filename, (("output", "name", tensor.name), "label_filename")
        if name and (name != PurePosixPath(name).name or name == ".." or "\0" in name):
            text = f"says label_filename: {name!r}, expected the plain name of a file in the model's folder: mend that line"
            found.add_finding(model, text, found.config_path(model), *way)
        elif name and found.content(f"{model}/{name}") is None and not found.refused(model, f"{model}/{name}"):
            text = f'says label_filename: "{name}", and there is no {found.files.repository / model / name}: put it back or remove the line'
            found.add_finding(model, text, found.config_path(model), *way)


def check_links(found: Inspection, model: str, config: schema.ModelConfig) -> None:
    """Find links in the model's folder that lead nowhere: Triton looks at each entry for versions, and loads nothing where that fails."""
    labels = {tensor.label_filename for tensor in config.output}  # a missing file of labels is reported by itself
    for link, goal in found.files.dangling_links(model).items():
        if link not in labels:
            text = f"is a link to {goal!r}, which is not there, and Triton then loads nothing of this folder: remove the link"
            found.add_finding(model, f"{text}, or put back what it leads to", f"{model}/{link}")


def _check_warmup_files(found: Inspection, model: str, config: schema.ModelConfig) -> None:
    for index, sample in enumerate(config.model_warmup):
        for key, given in sorted(sample.inputs.items()):
            if given.WhichOneof("input_data_type") != "input_data_file":
                continue
            way = (("model_warmup", index), ("inputs", "key", key), "value", "input_data_file")
            name, file = given.input_data_file, f"{model}/warmup/{given.input_data_file}"
            path, what = found.config_path(model), f"warm-up '{sample.name}' reads '{key}' from"
            if name != PurePosixPath(name).name or name in ("", "..") or "\0" in name:
                text = f"{what} input_data_file: {name!r}, expected the plain name of a file in the model's folder warmup"
                found.add_finding(model, text, path, *way)
                continue
            size, wanted = found.files.size(file), warmup_size(given)
            if size is None:
                text = f"{what} {found.files.repository / file}, which is not there: put it back, or remove the warm-up"
                found.add_finding(model, text, path, *way)
            elif wanted is not None and size < wanted:
                text = f"{what} {found.files.repository / file}, which has {size} bytes, expected {wanted}: write the file again"
                found.add_finding(model, text, path, *way)


def _check_averaging(found: Inspection, model: str, config: schema.ModelConfig) -> None:
    """A fused graph says what it averages: what a server compares its answers with."""
    try:
        if is_fused(config):
            serves_what_was_fused(model, config, {})
    except EnsembleError as error:
        found.add_finding(model, str(error), found.config_path(model), "parameters")


def _check_folders(found: Inspection, model: str, config: schema.ModelConfig) -> None:
    there = found.versions(model)
    if not there:
        folder = found.files.repository / model
        found.add_finding(model, f"has no version folder: put it back into {folder}, named 1, 2, ..., or export the model again", model)
        return
    check_links(found, model, config)
    odd = {number: name for name in found.files.folders(model) if (number := _odd_version(name)) is not None and number not in there}
    served = versions_by_policy(sorted([*there, *odd]), config)
    for number, name in sorted(odd.items()):
        if number in served:
            text = f"Triton takes the folder '{name}' for version {number}: name version folders 1, 2, ..., and move others away"
            found.add_finding(model, text, f"{model}/{name}")
    if not served:
        text = f"version_policy serves none of the versions {', '.join(map(str, there))}: write version_policy {{ all {{}} }}"
        found.add_finding(model, text, found.config_path(model), "version_policy")


def _odd_version(name: str) -> int | None:
    """The version that Triton takes a folder's name for, where it is none of 1, 2, ...; None where it ignores the folder."""
    number = _ODD_VERSION.fullmatch(name)
    if number is None or (name[0] == "0" and name != "0"):  # it ignores leading zeros
        return None
    return int(number[1])


def _served(found: Inspection, model: str, config: schema.ModelConfig) -> list[int]:
    return versions_by_policy(found.versions(model), config)


def _check_links(found: Inspection, model: str, pinned: Collection[int]) -> None:
    """Weights are often kept in a store of their own, and linked; their digests say whether they are the right ones."""
    for path in (model, f"{model}/{CONFIG_FILE}", *(f"{model}/{version}" for version in pinned)):
        place = found.leads_out(path)
        if place is not None:
            text = f"is a link, or lies behind one, that leads out of the repository, to {place}: what is there can change without an edit"
            found.add_finding(model, text, path, is_error=False)
            return


def _check_file(found: Inspection, model: str, version: int, config: schema.ModelConfig, path: str, *, pinned: bool, mend: str) -> None:
    """Whether a version's model file is there, and is the one that the configuration at ``path`` says."""
    name = file_of(config)
    if name is None:
        return
    file = f"{model}/{version}/{name}"
    is_plan = backend_of(config) == PLAN_BACKEND
    if is_plan:
        mend = f"build it with `{_build_command(found, model, version)}`"
    if not pinned:
        folder = found.files.repository / model / str(version)
        mend = f"Triton loads it along with the version that votes: put it back, or move {folder} away"
    # NVIDIA's backend takes a folder of that name too, where weights lie in files of their own.
    there = found.exists(file)
    if there is None:
        return
    if not there and (found.target.embedded or not found.files.exists(f"{file}/{name}")):
        found.add_finding(model, f"version {version} lacks its model file: {mend}", file)
        return
    stated = parameter(config, f"sha256.{version}")
    if stated is not None:
        got = found.digest(file)
        if got is not None and got != stated:
            text = f"version {version}: this file has SHA-256 {got[:16]}..., sha256.{version} in {found.files.repository / path} says "
            text += f"{stated[:16]}...: it was changed or damaged after that was written; {mend}; or, if you changed it on purpose, "
            found.add_finding(model, f"{text}write the new digest there", file)
    if pinned and is_plan and found.plans:
        _check_plan(found, model, version, config)


def _build_command(found: Inspection, model: str, version: int) -> str:
    return f"defensemble build-engine {model} --repository {found.files.repository} --version {version}"


def _check_plan(found: Inspection, model: str, version: int, config: schema.ModelConfig) -> None:
    """Whether a plan is what its manifest says, and fits its configuration; whether it fits the server's machine, the server finds out."""
    place = f"{model}/{version}"
    command = f"{_build_command(found, model, version)} --force"
    mend = f"build it again with `{command}`"
    path = f"{place}/{MANIFEST_FILE}"
    content = found.content(path)
    if content is None:
        if not found.refused(model, path):
            found.add_finding(model, f"the plan of version {version} has no manifest, so what it was built with is not known: {mend}", path)
        return
    try:
        manifest = manifest_from_bytes(content, "the plan's manifest")
    except ManifestError as error:
        found.add_finding(model, f"{error}: `{command}`", path)
        return
    for name, stated in ((file_of(config) or PLAN_FILE, manifest.plan_sha256), (MODEL_FILE, manifest.onnx_sha256)):
        got = found.digest(f"{place}/{name}")
        if got is not None and got != stated and not found.refused(model, f"{place}/{name}"):
            changed = name != MODEL_FILE
            what = "the plan was changed after it was built" if changed else "the plan was built from another model.onnx than this one"
            found.add_finding(model, f"{what}: it has SHA-256 {got[:16]}..., its manifest says {stated[:16]}...; {mend}", f"{place}/{name}")
    smallest, largest = manifest.profile.min, manifest.profile.max
    dims = list(config.input[0].dims) if len(config.input) == 1 else []
    if len(dims) != 3 or any(size not in (-1, taken) for size, taken in zip(dims, largest[1:], strict=True)):
        found.add_finding(model, f"the plan takes images of {list(largest[1:])}, the configuration says {dims}; {mend}", path)
    if config.max_batch_size > largest[0]:
        text = f"max_batch_size is {config.max_batch_size}, and the plan takes at most {largest[0]} images"
        found.add_finding(model, f"{text}; {mend}, or lower max_batch_size to {largest[0]}", path)
    if smallest[0] > 1:
        found.add_finding(model, f"the plan takes no fewer than {smallest[0]} images, and a request may have 1; {mend}", path)


def _check_profile(
    found: Inspection, model: str, config: schema.ModelConfig, profile: schema.ModelConfig, path: str, pinned: Collection[int], *, mend: str
) -> None:
    """A profile may differ in where and by what a model is run, and in nothing that a caller or an ensemble sees."""
    if profile.name not in ("", model):
        found.add_finding(model, f"says name: \"{profile.name}\", but the model is called '{model}': make them equal", path, "name")
    for kind, mine, other in (("input", profile.input, config.input), ("output", profile.output, config.output)):
        if list(mine) != list(other):
            text = f"this profile's {kind}s are {format_tensors(mine)}, {CONFIG_FILE} says {format_tensors(other)}: make them equal"
            found.add_finding(model, f"{text}, or write the profile again (`defensemble profile write`)", path, kind)
    if profile.max_batch_size != config.max_batch_size:
        text = f"this profile says max_batch_size: {profile.max_batch_size}, {CONFIG_FILE} says {config.max_batch_size}: make them equal"
        found.add_finding(model, text, path, "max_batch_size")
    served, usually = (_served(found, model, one) for one in (profile, config))
    for version in sorted(pinned):
        if version in usually and version not in served:
            text = f"version {version} votes, and this profile serves {served or 'none'}: write version_policy {{ all {{}} }} here"
            found.add_finding(model, f"{text}, as in {CONFIG_FILE}", path, "version_policy")
    same = file_of(profile) == file_of(config)
    for version in served:
        key = f"sha256.{version}"
        stated, other = parameter(profile, key), parameter(config, key)
        if not same or version not in usually:
            _check_file(found, model, version, profile, path, pinned=version in pinned, mend=mend)
        elif stated is not None and other is not None and stated != other:
            text = f"this profile says {key} {stated[:16]}..., {CONFIG_FILE} says {other[:16]}... of the same file: make them equal"
            found.add_finding(model, text, path, *parameter_path(key))


def format_tensors(tensors: Sequence[schema.ModelInput] | Sequence[schema.ModelOutput]) -> str:
    """Inputs or outputs in words: "images FP32 [3, 32, 32]"."""
    said = [f"{one.name} {format_type(one.data_type)} {list(one.dims)}" for one in tensors]
    return ", ".join(said) or "nothing"

"""Whether one model of an ensemble can be loaded: its versions, model files and digests, profile files and TensorRT plans."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from defensemble_repository.checks.wiring import said_type
from defensemble_repository.names import BACKEND, CONFIG_FILE, MANIFEST_FILE, MODEL_FILE, PLAN_FILE
from defensemble_repository.pbtxt import schema
from defensemble_repository.reader import parameter, versions_by_policy

from ._errors import ExportError
from .inspecting import Inspection
from .manifest import manifest_from_bytes

_TENSORRT = ("tensorrt", "tensorrt_plan")


def check_model(found: Inspection, model: str, pinned: Collection[int], *, digests: bool, mend: str) -> None:
    """Find what keeps ``model``, which is no ensemble, from being loaded at the versions ``pinned``.

    Triton loads all versions that ``version_policy`` names, and none where one fails. ``digests`` says whether files are compared with
    their SHA-256, which takes the time of reading them; ``mend`` is how one that is damaged gets whole again.
    """
    config = found.config(model)
    if config is None:
        return
    path = f"{model}/{CONFIG_FILE}"
    _check_links(found, model, pinned)
    if not config.backend and not config.platform:
        found.say(model, "names neither a backend nor a platform, so what it is cannot be told: put back what was exported", path)
        return
    for version in _served(found, model, config):
        _check_file(found, model, version, config, path, pinned=version in pinned, digests=digests, mend=mend)
    for profile_path in found.profiles(model):
        profile = found.parsed(model, profile_path)
        if profile is not None:
            _check_profile(found, model, config, profile, profile_path, pinned, digests=digests, mend=mend)


def file_of(config: schema.ModelConfig) -> str | None:
    """The name of the file in a version's folder that a model is loaded from; None of a backend that we do not know."""
    if config.default_model_filename:
        return str(config.default_model_filename)
    if _is_plan(config):
        return PLAN_FILE
    return MODEL_FILE if config.backend == BACKEND or config.platform == "onnxruntime_onnx" else None


def _is_plan(config: schema.ModelConfig) -> bool:
    return config.backend in _TENSORRT or config.platform in _TENSORRT


def _served(found: Inspection, model: str, config: schema.ModelConfig) -> list[int]:
    return versions_by_policy(found.versions(model), config)


def _check_links(found: Inspection, model: str, pinned: Collection[int]) -> None:
    """Weights are often kept in a store of their own, and linked; their digests say whether they are the right ones."""
    for path in (model, f"{model}/{CONFIG_FILE}", *(f"{model}/{version}" for version in pinned)):
        place = found.leads_out(path)
        if place is not None:
            found.say(
                model,
                f"is a link, or lies behind one, that leads out of the repository, to {place}: what lies there can change without an edit",
                path,
                refuses=False,
            )
            return


def _check_file(
    found: Inspection, model: str, version: int, config: schema.ModelConfig, path: str, *, pinned: bool, digests: bool, mend: str
) -> None:
    """Whether a version's model file is there, and is the one that the configuration at ``path`` says."""
    name = file_of(config)
    if name is None:
        return
    file = f"{model}/{version}/{name}"
    is_plan = _is_plan(config) or name == PLAN_FILE
    if is_plan:
        mend = f"build it with `{_build_command(found, model, version)}`"
    if not pinned:
        mend = (
            f"Triton loads it along with the version that votes: put it back, or move {found.files.repository / model / str(version)} away"
        )
    if not found.files.exists(file):
        found.say(model, f"version {version} lacks its model file: {mend}", file)
        return
    stated = parameter(config, f"sha256.{version}")
    if digests and stated is not None:
        got = found.digest(file)
        if got is not None and got != stated:
            found.say(
                model,
                f"version {version}: this file has SHA-256 {got[:16]}..., sha256.{version} in {found.files.repository / path} says "
                f"{stated[:16]}...: it was changed or damaged after that was written; {mend}; or, if you changed it on purpose, "
                "write the new digest there",
                file,
            )
    if pinned and is_plan:
        _check_plan(found, model, version, config, digests=digests)


def _build_command(found: Inspection, model: str, version: int) -> str:
    return f"defensemble build-engine {found.files.repository} --model {model} --version {version}"


def _check_plan(found: Inspection, model: str, version: int, config: schema.ModelConfig, *, digests: bool) -> None:
    """Whether a plan is what its manifest says, and fits its configuration; whether it fits the server's machine, the server finds out."""
    place = f"{model}/{version}"
    command = f"{_build_command(found, model, version)} --force"
    mend = f"build it again with `{command}`"
    path = f"{place}/{MANIFEST_FILE}"
    content = found.content(path)
    if content is None:
        if not found.refused(model, path):
            found.say(model, f"the plan of version {version} has no manifest, so what it was built with is not known: {mend}", path)
        return
    try:
        manifest = manifest_from_bytes(content, "the plan's manifest")
    except ExportError as error:
        found.say(model, f"{error}: `{command}`", path)
        return
    for name, stated in ((file_of(config) or PLAN_FILE, manifest.plan_sha256), (MODEL_FILE, manifest.onnx_sha256)) if digests else ():
        got = found.digest(f"{place}/{name}")
        if got is not None and got != stated and not found.refused(model, f"{place}/{name}"):
            what = (
                "the plan was built from another model.onnx than this one"
                if name == MODEL_FILE
                else "the plan was changed after it was built"
            )
            found.say(model, f"{what}: it has SHA-256 {got[:16]}..., its manifest says {stated[:16]}...; {mend}", f"{place}/{name}")
    smallest, largest = manifest.profile.min, manifest.profile.max
    dims = list(config.input[0].dims) if len(config.input) == 1 else []
    if len(dims) != 3 or any(size not in (-1, taken) for size, taken in zip(dims, largest[1:], strict=True)):
        found.say(model, f"the plan takes images of {list(largest[1:])}, the configuration says {dims}; {mend}", path)
    if config.max_batch_size > largest[0]:
        found.say(
            model,
            f"max_batch_size is {config.max_batch_size}, and the plan takes at most {largest[0]} images; {mend}, or lower max_batch_size "
            f"to {largest[0]}",
            path,
        )
    if smallest[0] > 1:
        found.say(model, f"the plan takes no fewer than {smallest[0]} images, and a request may have 1; {mend}", path)


def _check_profile(
    found: Inspection,
    model: str,
    config: schema.ModelConfig,
    profile: schema.ModelConfig,
    path: str,
    pinned: Collection[int],
    *,
    digests: bool,
    mend: str,
) -> None:
    """A profile says where and by what a model is run: in all that a caller or an ensemble sees it must agree with ``config.pbtxt``."""
    if profile.name not in ("", model):
        found.say(model, f"says name: \"{profile.name}\", but the model is called '{model}': make them equal", path, "name")
    for kind, mine, other in (("input", profile.input, config.input), ("output", profile.output, config.output)):
        if list(mine) != list(other):
            found.say(
                model,
                f"this profile's {kind}s are {said_tensors(mine)}, {CONFIG_FILE} says {said_tensors(other)}: make them equal, or write the "
                "profile again (`defensemble profile write`)",
                path,
                kind,
            )
    if profile.max_batch_size != config.max_batch_size:
        found.say(
            model,
            f"this profile says max_batch_size: {profile.max_batch_size}, {CONFIG_FILE} says {config.max_batch_size}: make them equal",
            path,
            "max_batch_size",
        )
    served, usually = (_served(found, model, one) for one in (profile, config))
    for version in sorted(pinned):
        if version in usually and version not in served:
            found.say(
                model,
                f"version {version} votes, and this profile serves {served or 'none'}: write version_policy {{ all {{}} }} here, as in "
                f"{CONFIG_FILE}",
                path,
                "version_policy",
            )
    same = file_of(profile) == file_of(config)
    for version in served:
        key = f"sha256.{version}"
        stated, other = parameter(profile, key), parameter(config, key)
        if not same or version not in usually:
            _check_file(found, model, version, profile, path, pinned=version in pinned, digests=digests, mend=mend)
        elif stated is not None and other is not None and stated != other:
            found.say(
                model,
                f"this profile says {key} {stated[:16]}..., {CONFIG_FILE} says {other[:16]}... of the same file: make them equal",
                path,
                ("parameters", "key", key),
                "value",
                "string_value",
            )


def said_tensors(tensors: Sequence[schema.ModelInput] | Sequence[schema.ModelOutput]) -> str:
    """Inputs or outputs in words: "images FP32 [3, 32, 32]"."""
    said = [f"{one.name} {said_type(one.data_type)} {list(one.dims)}" for one in tensors]
    return ", ".join(said) or "nothing"

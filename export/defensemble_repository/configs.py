"""What the ``config.pbtxt`` of a member, an averaging model and an ensemble say, through Triton's own protobuf schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .ensemble import Ensemble, averaging_model_name
from .names import BACKEND, LABELS_FILE, MODEL_FILE
from .pbtxt import schema
from .preprocessing import set_preprocessing

# What an averaging model computes, and a fused graph and an ensemble give.
OUTPUTS = ("probabilities", "member_probabilities", "entropy", "mutual_information")


@dataclass(frozen=True)
class Interface:
    """What a network takes and gives: images of (C, H, W), at most ``max_batch_size`` at once, and ``num_classes`` values for each."""

    input_shape: tuple[int, int, int]
    num_classes: int
    max_batch_size: int


def member_config(name: str, interface: Interface) -> schema.ModelConfig:
    """Describe a member, but for its versions (``describe_version``): ``images`` FP32 [C,H,W] to ``logits`` FP32 [K].

    All versions stay loaded (``version_policy { all {} }``): under the default policy, loading version 2 unloads version 1 under an
    ensemble that is pinned to it.
    """
    config = schema.ModelConfig(name=name, backend=BACKEND, max_batch_size=interface.max_batch_size)
    config.input.add(name="images", data_type=schema.TYPE_FP32, dims=interface.input_shape)
    config.output.add(name="logits", data_type=schema.TYPE_FP32, dims=[interface.num_classes], label_filename=LABELS_FILE)
    config.version_policy.all.SetInParent()
    # No max_queue_size: with one, the dynamic batcher of core 2.51 puts requests to sleep for 0.5 s or a multiple of it, at random
    # (measured, 8 callers with mixed batches: 70 of 1,200 calls; without it none).
    config.dynamic_batching.SetInParent()
    return config


def describe_version(
    config: schema.ModelConfig, version: int, *, precision: str, sha256: str, mask_digest: str | None, preprocessing: str | None
) -> None:
    """Set what a configuration states of a version.

    Args:
        config: the configuration.
        version: the number of the version.
        precision: what it computes in: ``fp32``, ``fp16`` or ``int8``.
        sha256: that of the graph; left out where the configuration, a profile, serves another file, a plan, which has a digest of its own.
        mask_digest: the SHA-256 of its masks, None where it has none.
        preprocessing: the parameter of that name (JSON), one for all versions; None leaves it as it is.
    """
    stated = {"precision": precision, "sha256": sha256 if config.default_model_filename in ("", MODEL_FILE) else None}
    stated["mask_digest"] = mask_digest
    _set_parameters(config, {f"{key}.{version}": value for key, value in stated.items() if value is not None})
    if preprocessing is not None:
        set_preprocessing(config, preprocessing)


def averaging_config(ensemble: Ensemble, num_classes: int, max_batch_size: int, *, digest: str) -> schema.ModelConfig:
    """Describe ``average_<digest>``: ``logits_0`` ... ``logits_{M-1}`` FP32 [K] to what ``averaging_outputs`` names.

    One thread, always on a CPU: the work is a few kilobytes.
    """
    name = averaging_model_name(ensemble, num_classes, max_batch_size)
    config = schema.ModelConfig(name=name, backend=BACKEND, max_batch_size=max_batch_size)
    for index in range(len(ensemble.members)):
        config.input.add(name=f"logits_{index}", data_type=schema.TYPE_FP32, dims=[num_classes])
    for output, dims in averaging_outputs(len(ensemble.members), num_classes):
        config.output.add(name=output, data_type=schema.TYPE_FP32, dims=dims)
    config.instance_group.add(kind=schema.ModelInstanceGroup.KIND_CPU, count=1)
    config.version_policy.all.SetInParent()
    _set_parameters(config, {**_votes(ensemble), "intra_op_thread_count": "1", "sha256.1": digest})
    return config


def fused_config(
    name: str,
    ensemble: Ensemble,
    interface: Interface,
    *,
    version: int,
    member_digests: Sequence[str],
    preprocessing: str | None = None,
    existing: schema.ModelConfig | None = None,
) -> schema.ModelConfig:
    """Describe a fused graph, but for ``describe_version``: the interface of the ensemble whose members it holds, and its average.

    ``member_digests`` are the SHA-256 of the members' files, by which a server knows whether it serves the same networks;
    ``preprocessing`` is the parameter that the members have in common. What does not follow from the members stays as in ``existing``.
    """
    config = schema.ModelConfig(name=name, backend=BACKEND, max_batch_size=interface.max_batch_size)
    if existing is not None:
        config.CopyFrom(existing)
    else:
        _add_interface(config, interface.input_shape)
        config.dynamic_batching.SetInParent()
        # It stands alone: all cores, where `serve` shares them out among an ensemble's members.
        _set_parameters(config, {"intra_op_thread_count": "0"})
    _set_dims(config, ensemble, interface.num_classes)
    # The parameters describe one version. It is named, so that the one rename of this file changes what is served and its description
    # together: `latest` would take a new folder as soon as it is there.
    config.version_policy.specific.versions[:] = [version]
    _set_parameters(config, {**_votes(ensemble), "member_digests": json.dumps(list(member_digests))})
    _set_parameters(config, {"ensemble": ensemble.name})  # whose edits make it outdated
    set_preprocessing(config, preprocessing)
    return config


def ensemble_config(
    ensemble: Ensemble, interface: Interface, *, preprocessing: str | None = None, existing: schema.ModelConfig | None = None
) -> schema.ModelConfig:
    """Describe the ensemble: ``images`` FP32 [C,H,W] to what ``averaging_outputs`` names.

    Every step pins an explicit version: what ``-1`` means changes when a version is added. ``preprocessing`` is the parameter that the
    members have in common. Of an ``existing`` configuration all that does not follow from who votes stays as it is: fields that were added
    to it, outputs that were taken out.
    """
    config = schema.ModelConfig(name=ensemble.name, platform="ensemble")
    if existing is not None:
        config.CopyFrom(existing)
    else:
        _add_interface(config, interface.input_shape)
    config.max_batch_size = interface.max_batch_size
    set_preprocessing(config, preprocessing)
    _set_dims(config, ensemble, interface.num_classes)
    average_model = averaging_model_name(ensemble, interface.num_classes, interface.max_batch_size)
    outputs = [tensor.name for tensor in config.output]
    del config.ensemble_scheduling.step[:]
    config.ensemble_scheduling.step.extend(ensemble_steps(ensemble, outputs, {average_model: OUTPUTS}))
    return config


def ensemble_steps(ensemble: Ensemble, outputs: Sequence[str], averaging: Mapping[str, Sequence[str]]) -> list[schema.ModelEnsembling.Step]:
    """Wire an ensemble: a step for each vote, then ``averaging``, models with what each computes, that give any of ``outputs``.

    One averaging model is what is written; two, of the old form, are only read.
    """
    members = len(ensemble.members)
    steps = []
    for index, member in enumerate(ensemble.members):
        step = schema.ModelEnsembling.Step(model_name=member.model, model_version=member.version)
        step.input_map["images"] = "images"
        step.output_map["logits"] = f"logits_{index}"
        steps.append(step)
    for model, given in averaging.items():
        step = schema.ModelEnsembling.Step(model_name=model, model_version=1)
        for index in range(members):
            step.input_map[f"logits_{index}"] = f"logits_{index}"
        for output in given:
            if output in outputs:
                step.output_map[output] = output
        if step.output_map:
            steps.append(step)
    return steps


def averaging_outputs(members: int, num_classes: int) -> list[tuple[str, list[int]]]:
    """Names and dims (without the batch) of what ``average_<digest>`` computes."""
    return list(zip(OUTPUTS, ([num_classes], [members, num_classes], [1], [1]), strict=True))


def _add_interface(config: schema.ModelConfig, input_shape: tuple[int, int, int]) -> None:
    """Add the input and the outputs of an ensemble, these without their dims."""
    config.input.add(name="images", data_type=schema.TYPE_FP32, dims=input_shape)
    for output in OUTPUTS:
        config.output.add(name=output, data_type=schema.TYPE_FP32, label_filename=LABELS_FILE if output == OUTPUTS[0] else "")


def _set_dims(config: schema.ModelConfig, ensemble: Ensemble, num_classes: int) -> None:
    """Set the dims of the outputs that an averaging model computes."""
    dims = dict(averaging_outputs(len(ensemble.members), num_classes))
    for tensor in config.output:
        if tensor.name in dims:
            tensor.dims[:] = dims[tensor.name]


def _votes(ensemble: Ensemble) -> dict[str, str]:
    """The parameters from which an average can be generated again."""
    return {
        "average": ensemble.average,
        "weights": json.dumps([member.weight for member in ensemble.members]),
        "members": json.dumps([f"{member.model}@{member.version}" for member in ensemble.members]),
    }


def _set_parameters(config: schema.ModelConfig, parameters: Mapping[str, str]) -> None:
    for key, value in parameters.items():
        config.parameters[key].string_value = value

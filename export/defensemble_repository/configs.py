"""Build the configurations of members, averaging models, fused graphs and ensembles with Triton's protobuf schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .ensemble import Ensemble, averaging_model_name
from .names import BACKEND, LABELS_FILE, MODEL_FILE
from .pbtxt import schema
from .preprocessing import set_preprocessing

# The outputs of an averaging model, a fused graph and an ensemble.
OUTPUTS = ("probabilities", "member_probabilities", "entropy", "mutual_information")


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a network: batches of at most `max_batch_size` images of (C, H, W) to `num_classes` logits each.

    Example:
        >>> member_config("keep0.3", Interface((3, 32, 32), num_classes=10, max_batch_size=64)).backend
        'onnxruntime'
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    max_batch_size: int


def member_config(name: str, interface: Interface) -> schema.ModelConfig:
    """Return the configuration of a member: `images` FP32 [C, H, W] to `logits` FP32 [K].

    `describe_version` adds what is known of each version. All versions stay loaded (`version_policy { all {} }`): with the default
    policy, loading version 2 unloads version 1, to which an ensemble may be pinned.

    Args:
        name: The name of the model.
        interface: Its inputs and outputs.
    """
    config = schema.ModelConfig(name=name, backend=BACKEND, max_batch_size=interface.max_batch_size)
    config.input.add(name="images", data_type=schema.TYPE_FP32, dims=interface.input_shape)
    config.output.add(name="logits", data_type=schema.TYPE_FP32, dims=[interface.num_classes], label_filename=LABELS_FILE)
    config.version_policy.all.SetInParent()
    # No max_queue_size: with one, the dynamic batcher of core 2.51 delays requests at random by 0.5 s or a multiple of it
    # (measured with 8 callers and mixed batches: 70 of 1,200 calls; without it none).
    config.dynamic_batching.SetInParent()
    return config


def describe_version(
    config: schema.ModelConfig,
    version: int,
    *,
    precision: str,
    sha256: str,
    mask_digest: str | None,
    preprocessing: str | None,
    mask_aware: str | None = None,
) -> None:
    """Set the parameters of a configuration that describe one version.

    Args:
        config: The configuration to change.
        version: The number of the version.
        precision: The precision of the computation: `fp32`, `fp16` or `int8`.
        sha256: The SHA-256 of the graph. It is not set in a profile that serves a TensorRT plan, because a plan has its own digest.
        mask_digest: The SHA-256 of the masks, or None without masks.
        preprocessing: The parameter `preprocessing` (JSON), which all versions share, or None to keep it.
        mask_aware: The operator of a mask-aware graph, or None for a plain one. Like `sha256`, it describes the graph's file.
    """
    parameters: dict[str, str | None] = {"precision": precision, "mask_digest": mask_digest}
    if config.default_model_filename in ("", MODEL_FILE):
        parameters |= {"sha256": sha256, "mask_aware": mask_aware}
    _set_parameters(config, {f"{key}.{version}": value for key, value in parameters.items() if value is not None})
    if preprocessing is not None:
        set_preprocessing(config, preprocessing)


def averaging_config(ensemble: Ensemble, num_classes: int, max_batch_size: int, *, digest: str) -> schema.ModelConfig:
    """Return the configuration of `average_<digest>`: `logits_0` to `logits_{M-1}` FP32 [K] to the tensors of `averaging_outputs`.

    The model runs on a CPU with one thread, because it processes only a few kilobytes.

    Args:
        ensemble: The ensemble to average.
        num_classes: The number of classes K.
        max_batch_size: The largest batch.
        digest: The SHA-256 of the graph.
    """
    name = averaging_model_name(ensemble, num_classes, max_batch_size)
    config = schema.ModelConfig(name=name, backend=BACKEND, max_batch_size=max_batch_size)
    for index in range(len(ensemble.members)):
        config.input.add(name=f"logits_{index}", data_type=schema.TYPE_FP32, dims=[num_classes])
    for output, dims in averaging_outputs(len(ensemble.members), num_classes):
        config.output.add(name=output, data_type=schema.TYPE_FP32, dims=dims)
    config.instance_group.add(kind=schema.ModelInstanceGroup.KIND_CPU, count=1)
    config.version_policy.all.SetInParent()
    _set_parameters(config, {**_member_parameters(ensemble), "intra_op_thread_count": "1", "sha256.1": digest})
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
    """Return the configuration of a fused graph, which has the interface of the ensemble whose members it contains.

    `describe_version` adds what is known of its version.

    Args:
        name: The name of the fused model.
        ensemble: The ensemble whose members it contains.
        interface: The inputs and outputs of the members.
        version: The version to serve.
        member_digests: The SHA-256 of the members' files, by which a server recognises the same networks.
        preprocessing: The parameter `preprocessing` that the members share.
        existing: The current configuration. Everything that does not depend on the members is kept from it.
    """
    config = schema.ModelConfig(name=name, backend=BACKEND, max_batch_size=interface.max_batch_size)
    if existing is not None:
        config.CopyFrom(existing)
    else:
        _add_interface(config, interface.input_shape)
        config.dynamic_batching.SetInParent()
        # A fused graph uses all cores. The members of an ensemble share them.
        _set_parameters(config, {"intra_op_thread_count": "0"})
    _set_dims(config, ensemble, interface.num_classes)
    # The parameters describe one version, so the policy names it. One rename of this file then changes the version and its description
    # together. With `latest`, Triton would serve a new version folder as soon as it exists.
    config.version_policy.specific.versions[:] = [version]
    _set_parameters(config, {**_member_parameters(ensemble), "member_digests": json.dumps(list(member_digests))})
    _set_parameters(config, {"ensemble": ensemble.name})  # An edit of this ensemble outdates the graph.
    set_preprocessing(config, preprocessing)
    return config


def ensemble_config(
    ensemble: Ensemble, interface: Interface, *, preprocessing: str | None = None, existing: schema.ModelConfig | None = None
) -> schema.ModelConfig:
    """Return the configuration of an ensemble: `images` FP32 [C, H, W] to the tensors of `averaging_outputs`.

    Every step names its version explicitly, because the meaning of `-1` changes when a version is added.

    Args:
        ensemble: The members, weights and average.
        interface: The inputs and outputs of the members.
        preprocessing: The parameter `preprocessing` that the members share.
        existing: The current configuration. Everything that does not depend on the members is kept from it, such as fields that a
            user added and outputs that a user removed.
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
    """Return the steps of an ensemble: one for each member, then one for each averaging model.

    Args:
        ensemble: The members.
        outputs: The outputs of the ensemble.
        averaging: The averaging models, each with the outputs that it computes. There is one, or two in the older form, which is
            only read. A model that computes none of `outputs` gets no step.
    """
    steps = []
    for index, member in enumerate(ensemble.members):
        step = schema.ModelEnsembling.Step(model_name=member.model, model_version=member.version)
        step.input_map["images"] = "images"
        step.output_map["logits"] = f"logits_{index}"
        steps.append(step)
    for model, computed in averaging.items():
        step = schema.ModelEnsembling.Step(model_name=model, model_version=1)
        for index in range(len(ensemble.members)):
            step.input_map[f"logits_{index}"] = f"logits_{index}"
        for output in computed:
            if output in outputs:
                step.output_map[output] = output
        if step.output_map:
            steps.append(step)
    return steps


def averaging_outputs(members: int, num_classes: int) -> list[tuple[str, list[int]]]:
    """Return the names and dims (without the batch) of the outputs of an averaging model."""
    return list(zip(OUTPUTS, ([num_classes], [members, num_classes], [1], [1]), strict=True))


def _add_interface(config: schema.ModelConfig, input_shape: tuple[int, int, int]) -> None:
    """Add the input and the outputs of an ensemble. `_set_dims` sets the dims of the outputs."""
    config.input.add(name="images", data_type=schema.TYPE_FP32, dims=input_shape)
    for output in OUTPUTS:
        config.output.add(name=output, data_type=schema.TYPE_FP32, label_filename=LABELS_FILE if output == OUTPUTS[0] else "")


def _set_dims(config: schema.ModelConfig, ensemble: Ensemble, num_classes: int) -> None:
    """Set the dims of the outputs that an averaging model computes."""
    dims = dict(averaging_outputs(len(ensemble.members), num_classes))
    for tensor in config.output:
        if tensor.name in dims:
            tensor.dims[:] = dims[tensor.name]


def _member_parameters(ensemble: Ensemble) -> dict[str, str]:
    """Return the parameters from which the averaging graph can be generated again."""
    return {
        "average": ensemble.average,
        "weights": json.dumps([member.weight for member in ensemble.members]),
        "members": json.dumps([f"{member.model}@{member.version}" for member in ensemble.members]),
    }


def _set_parameters(config: schema.ModelConfig, parameters: Mapping[str, str]) -> None:
    for key, value in parameters.items():
        config.parameters[key].string_value = value

"""Ask a server about its models: the only ensemble, and what a model accepts and returns."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .._exceptions import (
    ForbiddenError,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    RequestRefusedError,
    RetriesExhaustedError,
    ServerFailedError,
)
from .._transport.base import CLASSIFICATION, MODEL_CONFIGURATION, ModelMetadata, OutputRequest
from .._transport.error_mapping import call_context, protocol_errors, service_error
from .model_info import (
    ModelInfo,
    Signature,
    class_names_from_response,
    is_ensemble_metadata,
    preprocessing_from_config,
    signature_from_metadata,
    steps_from_config,
)
from .replicas import Replica
from .sending import Call, Sender

LOOK_UP = "look-up"
"""Id of the inference that looks a model up."""
# How servers without an optional part of the protocol refuse it.
_REFUSALS = (ModelNotFoundError, RequestRefusedError)


async def served_models(sender: Sender, call: Call, replica: Replica) -> list[str]:
    """Return the names of the models that a server has loaded, sorted.

    Raises:
        ModelNotFoundError: The server cannot list its models (HTTP).
        RequestRefusedError: The server cannot list its models (gRPC).
    """
    try:
        names: list[str] = await sender.send(call, replica, replica.transport.models)
    except _REFUSALS as error:
        hint = "choose one with Client(url, model=...) or --model NAME"
        raise type(error)(f"{replica.url} cannot list its models: {hint}. Its response: {error}") from error
    return names


async def find_ensemble(sender: Sender, call: Call, replica: Replica) -> str:
    """Return the only ensemble that a server serves.

    Raises:
        InputError: There are several.
        ModelNotFoundError: There is none.
        ServiceError: The server cannot list its models, or could not be reached.
    """
    models = await served_models(sender, call, replica)
    ensembles = []
    for name in models:
        try:
            metadata = await _metadata(sender, call, replica, name)
        except (ModelNotFoundError, NotReadyError):  # unloaded since it was listed
            continue
        except RetriesExhaustedError as error:
            if not isinstance(error.__cause__, NotReadyError):
                raise
            continue
        if is_ensemble_metadata(metadata):
            ensembles.append(name)
    if len(ensembles) > 1:
        raise InputError(
            f"{replica.url} serves {len(ensembles)} ensembles, {', '.join(ensembles)}: choose one with Client(url, model=...) or "
            "--model NAME"
        )
    if not ensembles:
        served = f"only {', '.join(models)}" if models else "and no model at all"
        raise ModelNotFoundError(
            f"{replica.url} serves no ensemble, {served}: choose a model with Client(url, model=...) or --model NAME, or load an ensemble"
        )
    return ensembles[0]


async def look_up(sender: Sender, call: Call, replica: Replica, name: str) -> ModelInfo:
    """Return what a model accepts and returns. One black image is classified on the way, so that the model is known to respond.

    Args:
        sender: Sends the requests.
        call: The call.
        replica: The server.
        name: Name of the model.

    Raises:
        InputError: The model does not classify images.
        ServiceError: The server could not be reached, has no such model, or sent an invalid response.
    """
    try:
        metadata = await _metadata(sender, call, replica, name)
    except ModelNotFoundError as error:
        try:
            served = ", ".join(await served_models(sender, call, replica)) or "none"
        except _REFUSALS:
            served = "others, which it does not list"
        raise ModelNotFoundError(f"{replica.url} has no model {name!r}; it serves {served}") from error
    signature = signature_from_metadata(metadata)
    config = await model_config(sender, call, replica, name)
    class_names = await _class_names(sender, call, replica, name, signature)
    if config is None:
        replica.missing_features.add(MODEL_CONFIGURATION)  # only now: the model itself is there
        config = {}
    with protocol_errors(call_context(replica.url, "read the configuration of model", name)):
        max_batch_size, steps = int(config.get("max_batch_size", 0)), steps_from_config(config)
        preprocessing = preprocessing_from_config(config)
    return ModelInfo(
        name=name,
        platform=metadata.platform,
        input_name=signature.input_name,
        image_shape=signature.image_shape,
        outputs=tuple(output.name for output in metadata.outputs),
        max_batch_size=max_batch_size or None,
        class_names=class_names,
        steps=steps,
        preprocessing=preprocessing,
        missing_features=frozenset(replica.missing_features | replica.transport.missing_features),
    )


async def _metadata(sender: Sender, call: Call, replica: Replica, name: str) -> ModelMetadata:
    metadata: ModelMetadata = await sender.send(call, replica, partial(replica.transport.model_metadata, name))
    return metadata


async def model_config(sender: Sender, call: Call, replica: Replica, name: str) -> dict[str, Any] | None:
    """Return a model's configuration; empty if the operator restricts it, None if the server has no configurations.

    Args:
        sender: Sends the requests.
        call: The call.
        replica: The server.
        name: Name of the model.
    """
    if MODEL_CONFIGURATION in replica.missing_features:
        return None
    try:
        config: dict[str, Any] = await sender.send(call, replica, partial(replica.transport.model_config, name))
    except ForbiddenError:
        return {}
    except _REFUSALS:
        return None
    return config


async def _class_names(sender: Sender, call: Call, replica: Replica, name: str, signature: Signature) -> tuple[str, ...]:
    """Return the names of the classes, from the classification of one black image; the indices if the server has no such extension."""
    black = np.zeros((1, *(size if size > 0 else 32 for size in signature.image_shape)), np.float32)

    async def classify(class_count: int) -> Any:
        request = OutputRequest(signature.score_output, class_count)
        outputs = await sender.send(
            call,
            replica,
            # Some of KServe's models return the id, and fail if there is none.
            lambda left_s: replica.transport.infer(name, {signature.input_name: black}, [request], left_s, request_id=LOOK_UP),
        )
        return outputs.get(signature.score_output)

    context = call_context(replica.url, "read the class names of model", name)
    names = tuple(str(index) for index in range(signature.num_classes))
    if CLASSIFICATION not in replica.missing_features:
        try:
            classes = await classify(signature.num_classes)
        except RequestRefusedError as error:
            classes = await _without_classification(classify, error)
            replica.missing_features.add(CLASSIFICATION)
        if classes is not None and classes.dtype == object:
            with protocol_errors(context):
                return class_names_from_response(classes, signature.num_classes)
        replica.missing_features.add(CLASSIFICATION)
    else:
        classes = await classify(0)
    if classes is None:
        raise service_error(ServerFailedError, context, f"the response lacks the output {signature.score_output!r}")
    return names


async def _without_classification(classify: Any, refusal: RequestRefusedError) -> Any:
    """Return the model's output as numbers, or raise the refusal of the classification if the server refuses that as well."""
    try:
        return await classify(0)
    except RequestRefusedError:
        raise refusal from refusal.__cause__


class ModelCache:
    """What is known of the models, by server.

    Args:
        sender: Sends the requests.
        model: The model to call by default; None for the only ensemble.
    """

    def __init__(self, sender: Sender, model: str | None) -> None:
        self._sender = sender
        self._model = model
        self._only_ensemble: str | None = None

    async def info(self, call: Call, replica: Replica, model: str | None) -> ModelInfo:
        """Return what a model accepts and returns; ask the server if it is not known yet.

        Args:
            call: The call.
            replica: The server.
            model: Name of the model; None for the default.
        """
        name = model or self._model or self._only_ensemble
        info = replica.info_by_name.get(name or "")
        if info is None:
            # Threads that start together each look the model up, which costs one more small request per thread.
            if name is None:
                name = await find_ensemble(self._sender, call, replica)
                self._only_ensemble = name
            info = replica.info_by_name.get(name) or await look_up(self._sender, call, replica, name)
            replica.info_by_name[name] = info
        return info

    async def refresh(self, call: Call, replica: Replica, info: ModelInfo) -> ModelInfo:
        """Ask the server about a model again."""
        self.invalidate(replica, info)
        return await self.info(call, replica, info.name)

    def invalidate(self, replica: Replica, info: ModelInfo) -> None:
        """Drop the cached information of a model, which may have been replaced, unless another thread has refreshed it meanwhile."""
        if replica.info_by_name.get(info.name) is info:
            replica.info_by_name.pop(info.name, None)
        if self._only_ensemble == info.name:
            self._only_ensemble = None

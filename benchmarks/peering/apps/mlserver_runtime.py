"""A runtime of MLServer: raw contents over gRPC, and a custom handler for raw bytes over HTTP. `model-settings.json` names it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Response
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peering.apps.ensemble import Ensemble


class EnsembleRuntime(MLModel):  # type: ignore[misc]
    """The ensemble. Each worker process has its own."""

    async def load(self) -> bool:
        """Open the members."""
        self._ensemble = Ensemble.from_environment()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the probabilities of the input `images`."""
        images = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        outputs = [NumpyCodec.encode_output("probabilities", await self._ensemble.predict(images))]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)

    @custom_handler(rest_path="/predict")  # type: ignore[untyped-decorator]
    async def predict_bytes(self, body: bytes) -> Response:
        """Return the probabilities of images, both as bytes."""
        return Response(await self._ensemble.answer(body), media_type="application/octet-stream")

    # MLServer gives these annotations to FastAPI from another module; postponed ones would be strings.
    predict_bytes.__annotations__.update(body=Annotated[bytes, Body(media_type="application/octet-stream")], **{"return": Response})

"""An inference runtime of MLServer: linear classifiers by numpy. MLServer imports this file, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse


class LinearClassifier(MLModel):  # type: ignore[misc]
    """One output, `logits` or `probabilities`. Images of several times 8 x 8 are averaged down to that."""

    async def load(self) -> bool:
        self._weights = np.load(Path(self.settings.parameters.uri))
        self._output = self.settings.parameters.extra["output"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        if self.name == "broken":
            raise RuntimeError("a defect of the model")
        images = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 8 or images.shape[3] % 8:
            raise InferenceError(f"expected images of 3 channels and a multiple of 8 x 8, got {list(images.shape)}")
        count, _, height, width = images.shape
        small = images.reshape(count, 3, 8, height // 8, 8, width // 8).mean(axis=(3, 5))
        scores = small.reshape(count, -1) @ self._weights
        if self._output == "probabilities":
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = powers / powers.sum(axis=1, keepdims=True)
        output = NumpyCodec.encode_output(self._output, scores)
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=[output])

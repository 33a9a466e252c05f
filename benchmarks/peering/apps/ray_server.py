"""Ray Serve with raw bytes in and out. Usage: python -m benchmarks.peering.apps.ray_server PORT."""

from __future__ import annotations

import sys

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peering.apps.ensemble import Ensemble


class Service:
    """The ensemble. Each replica is a process and has its own."""

    def __init__(self) -> None:
        self._ensemble = Ensemble.from_environment()

    async def __call__(self, request: Request) -> Response:
        """Return the average of the members' probabilities (N, K), float32, for images (N, C, H, W), float32."""
        return Response(await self._answer(await request.body()), media_type="application/octet-stream")

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _answer(self, bodies: list[bytes]) -> list[bytes]:
        return await self._ensemble.answer_many(bodies)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    deployment = serve.deployment(Service, num_replicas=2, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=16)
    serve.run(deployment.bind(), route_prefix="/predict", blocking=True)

"""Each method of both clients, over both protocols, with and without TLS, on the real Triton."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import AsyncClient, Client, TlsFiles
from defensemble_server import Server
from tests.support.certificates import make_certificate
from tests.support.tiny import CLASSES, SHAPE, images, logits, softmax
from tests.support.tls_proxy import tls_proxy

BATCH = images(150)
EXPECTED = (softmax(logits(1, BATCH)) + 3 * softmax(logits(2, BATCH))) / 4
ALL = ("probabilities", "member_probabilities", "entropy", "mutual_information")


async def predict(client: Any) -> None:
    prediction = await wait(client.predict(BATCH[:5], outputs=ALL))
    np.testing.assert_allclose(prediction.probabilities, EXPECTED[:5], atol=1e-5)
    assert prediction.member_probabilities.shape == (5, 2, 3)
    assert prediction.model_version == "1"
    assert prediction.url == client.url
    assert 0 < prediction.latency_s < 60


async def predict_chunks(client: Any) -> None:
    np.testing.assert_allclose((await wait(client.predict(BATCH))).probabilities, EXPECTED, atol=1e-5)


async def predict_uint8(client: Any) -> None:
    grey = (BATCH[:3] * 255).astype(np.uint8)
    expected = (await wait(client.predict((grey / np.float32(255)).astype(np.float32)))).probabilities
    got = await wait(client.predict(grey.transpose(0, 2, 3, 1), layout="NHWC", dtype="uint8"))
    np.testing.assert_allclose(got.probabilities, expected, atol=1e-6)


async def predict_iter(client: Any) -> None:
    rows = [prediction.probabilities[0] async for prediction in each(client.predict_iter(BATCH, batch_size=7))]
    np.testing.assert_allclose(np.array(rows), EXPECTED, atol=1e-5)


async def describe(client: Any) -> None:
    info = await wait(client.describe())
    assert (info.name, info.image_shape, info.class_names, info.missing_features) == ("ensemble", SHAPE, CLASSES, frozenset())


async def labels(client: Any) -> None:
    assert await wait(client.labels("alpha")) == CLASSES


async def models(client: Any) -> None:
    assert {"alpha", "beta", "ensemble"} < set(await wait(client.models()))


async def classifiers(client: Any) -> None:
    assert [info.name for info in await wait(client.classifiers())] == ["ensemble", "alpha", "beta"]


async def server_metadata(client: Any) -> None:
    assert (await wait(client.server_metadata())).name == "triton"


async def statistics(client: Any) -> None:
    await wait(client.predict(BATCH[:2]))
    (entry,) = [entry for entry in await wait(client.statistics()) if entry.name == "ensemble"]
    assert entry.url == client.url
    assert entry.requests > 0 < entry.images
    assert entry.success_ns > 0


async def health(client: Any) -> None:
    (server,) = await wait(client.health())
    assert (server.is_live, server.is_ready, server.name, server.error, server.is_ejected) == (True, True, "triton", None, False)


async def wait_ready(client: Any) -> None:
    await wait(client.wait_ready(10))


METHODS: dict[str, Callable[[Any], Awaitable[None]]] = {
    function.__name__: function
    for function in (
        *(predict, predict_chunks, predict_uint8, predict_iter, describe, labels, models, classifiers),
        *(server_metadata, statistics, health, wait_ready),
    )
}


async def wait(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def each(values: Any) -> AsyncIterator[Any]:
    if isinstance(values, AsyncIterator):
        async for value in values:
            yield value
    else:
        for value in values:
            yield value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates and keys of a server and a client, each its own authority."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificate(folder, "server")
    make_certificate(folder, "client")
    return folder


@pytest.fixture(scope="module")
def urls(triton: Server, folder: Path) -> Iterator[dict[str, str]]:
    """The server's URL by scheme; a proxy that asks for the client's certificate terminates TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "client.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2", "http/1.1"])
    grpc_port, http_port = (int(url.rpartition(":")[2]) for url in (triton.grpc_url, triton.http_url))
    with tls_proxy(grpc_port, context) as grpcs_port, tls_proxy(http_port, context) as https_port:
        yield {
            "grpc": triton.grpc_url,
            "http": triton.http_url,
            "grpcs": f"grpcs://localhost:{grpcs_port}",
            "https": f"https://localhost:{https_port}",
        }


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("scheme", ["grpc", "http", "grpcs", "https"])
def test_every_method(scheme: str, kind: type[Client] | type[AsyncClient], urls: dict[str, str], folder: Path) -> None:
    tls = TlsFiles(folder / "server.pem", folder / "client.pem", folder / "client.key") if scheme.endswith("s") else None

    async def main() -> None:
        client = kind(urls[scheme], timeout_s=20, tls=tls)
        try:
            for method in METHODS.values():
                await method(client)
        finally:
            await wait(client.close())

    asyncio.run(main())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_public_method_is_in_the_table(kind: type[Client] | type[AsyncClient]) -> None:
    public = {name for name, value in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    assert public - {"close"} == {name for name in METHODS if name not in ("predict_chunks", "predict_uint8")}


def test_the_clients_have_the_same_arguments() -> None:
    for name, function in inspect.getmembers(Client, inspect.isfunction):
        if name.startswith("__") and name != "__init__":
            continue
        own, other = (inspect.signature(each).parameters for each in (function, getattr(AsyncClient, name)))
        assert [(p.name, p.default, p.kind) for p in own.values()] == [(p.name, p.default, p.kind) for p in other.values()], name


def test_a_picture_file_is_classified(triton: Server, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "grey.png"
    grey = (BATCH[0, 0] * 255).astype(np.uint8)
    Image.fromarray(grey).save(path)
    with Client(triton.http_url) as client:
        from_path, from_image = client.predict(path), client.predict([Image.open(path), path.read_bytes()])
        array = client.predict((grey / np.float32(255)).astype(np.float32)[None, None])
    for prediction in (from_path, from_image[0], from_image[1]):
        np.testing.assert_allclose(prediction.probabilities, array.probabilities, atol=1e-6)

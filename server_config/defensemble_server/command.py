"""Build the command line that starts Triton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .admin_key import ADMIN_HEADER, RESTRICTED_APIS
from .options import ServeOptions
from .process.state import url_host
from .runtime.find import CONTAINER, Runtime


def triton_command(
    runtime: Runtime,
    repository: Path,
    models: Sequence[str],
    *,
    options: ServeOptions,
    ports: dict[str, int],
    admin_key: str,
    threads: int,
    gpus: bool = False,
    caches: Sequence[str] = (),
    version_compatible_plans: bool = False,
) -> list[str]:
    """Return the command line that starts Triton with `models` of `repository` loaded explicitly.

    Args:
        runtime: The Triton to start.
        repository: The model repository.
        models: Names of the models to load.
        options: Address, profile and drain time.
        ports: Port by front end.
        admin_key: Key for the administrative APIs.
        threads: Threads per member (ONNX Runtime's intra-op threads).
        gpus: Give a container access to the GPUs.
        caches: Absolute paths inside a container that are mounted as volumes, so that they outlive it.
        version_compatible_plans: Allow TensorRT's backend to load version-compatible plans.
    """
    docker = runtime.name == "docker"
    inner = {"http": 8000, "grpc": 8001, "metrics": 8002} if docker else {what: ports[what] for what in ("http", "grpc", "metrics")}
    host = "0.0.0.0" if docker else options.host
    # Tried with core 2.51: its HTTP server (libevhtp) wants a prefix before an IPv6 address, gRPC brackets around it.
    addresses = {"http": f"ipv6:{host}", "grpc": f"[{host}]", "metrics": f"ipv6:{host}"} if ":" in host else dict.fromkeys(inner, host)
    command = _docker_prefix(runtime, repository, options, ports, gpus, caches) if docker else [str(runtime.executable)]
    command += [
        f"--model-repository={'/models' if docker else repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        "--exit-on-error=false",
        f"--exit-timeout-secs={options.drain_s}",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
    ]
    for what, port in inner.items():
        command += [f"--{what}-address={addresses[what]}", f"--{what}-port={port}"]
    restricted = f"{','.join(RESTRICTED_APIS)}:{ADMIN_HEADER}={admin_key}"
    command += [f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"]
    settings = {**runtime.backend_settings, "intra_op_thread_count": str(threads)}
    if runtime.backend_directory is not None:
        command.append(f"--backend-directory={runtime.backend_directory}")
        settings["drain_seconds"] = str(options.drain_s)
    else:
        settings["enable-global-threadpool"] = "1"  # NVIDIA's backend reads the thread count from its command line for its global pool only
    command += [f"--backend-config=onnxruntime,{key}={value}" for key, value in settings.items()]
    if version_compatible_plans:
        command.append("--backend-config=tensorrt,version-compatible=true")  # NVIDIA's tensorrt_backend, README: false by default
    if options.profile is not None:
        command.append(f"--model-config-name={options.profile}")
    return command


def _docker_prefix(
    runtime: Runtime, repository: Path, options: ServeOptions, ports: dict[str, int], gpus: bool, caches: Sequence[str]
) -> list[str]:
    host = url_host(options.host)
    published = [f"--publish={host}:{ports[what]}:{inner}" for what, inner in (("http", 8000), ("grpc", 8001), ("metrics", 8002))]
    return [
        str(runtime.executable),
        "run",
        "--rm",
        "--init",
        f"--name=defensemble-{ports['grpc']}",
        *(["--gpus=all"] if gpus else []),
        *published,
        f"--volume={repository.resolve()}:/models:ro",
        *(f"--volume=defensemble{cache.replace('/', '-')}:{cache}" for cache in caches),
        CONTAINER,
        "tritonserver",
    ]

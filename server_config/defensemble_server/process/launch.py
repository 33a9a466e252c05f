"""Prepare a repository and the command that serves it, for a start and for a restart."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from defensemble_repository.names import PENDING_FILE

from ..command import triton_command
from ..errors import NotServableError
from ..options import ServeOptions
from ..plans.compatibility import has_version_compatible_plan
from ..profiles import check_gpu, check_profile, engine_caches
from ..repository import Repository, format_problems, read_repository
from ..runtime.find import Runtime, find_runtime, target_from_runtime


def prepare(folder: Path, options: ServeOptions, *, on_progress: Callable[[str], None] = lambda text: None) -> tuple[Runtime, Repository]:
    """Return the runtime that `options` select, and the part of the repository in `folder` that it can serve.

    Raises:
        NotServableError: No model can be served, or the profile is missing, incomplete, or not for this runtime and machine.
        RuntimeMissingError, BackendBuildError: The runtime is incomplete.
    """
    content = read_content(folder, options)
    if options.profile is not None:
        check_profile(folder, options.profile, only_cpus=options.runtime == "embedded", on_progress=on_progress)
    _check_not_empty(content)
    used, unused = content.without_unused_averages()
    if used.models:
        content = used
    else:
        unused = []
    if unused:
        models = "model" if len(unused) == 1 else "models"
        on_progress(
            f"not loaded: {len(unused)} averaging {models} that no ensemble uses; `defensemble ensemble prune` deletes unused files"
        )
    for remark in content.remarks:
        on_progress(remark)
    for name in content.two_averaging_models:
        on_progress(
            f"'{name}' has two averaging models, the format of earlier versions: a gRPC call that is cancelled or expires can crash the "
            f"server; `defensemble ensemble reload {name}` converts it to one"
        )
    if (pending := folder / PENDING_FILE).exists():
        on_progress(
            f"{pending}: an edit of an ensemble is in progress or was interrupted; `defensemble ensemble show` finishes or undoes it"
        )
    runtime = find_runtime(options.runtime, on_progress=on_progress)
    content = check_gpu(content, runtime, strict=options.profile is not None, on_progress=on_progress)
    _check_not_empty(content)
    return runtime, content


def read_content(folder: Path, options: ServeOptions) -> Repository:
    """Read a repository as the server of `options` sees it.

    Raises:
        NotServableError: The folder is not a repository.
    """
    return read_repository(folder, profile=options.profile, target=target_from_runtime(options.runtime))


def command_line(runtime: Runtime, content: Repository, options: ServeOptions, ports: dict[str, int], admin_key: str) -> list[str]:
    """Return the command that starts Triton with all models of `content`."""
    return triton_command(
        runtime,
        content.path,
        list(content.models),
        options=options,
        ports=ports,
        admin_key=admin_key,
        threads=content.threads_per_member(len(os.sched_getaffinity(0))),
        gpus=any(model.needs_gpu for model in content.models.values()),
        caches=engine_caches(content),
        version_compatible_plans=has_version_compatible_plan(content),
    )


def _check_not_empty(content: Repository) -> None:
    if not content.models:
        raise NotServableError(f"no model in {content.path} can be served:\n{format_problems(content.problems)}")

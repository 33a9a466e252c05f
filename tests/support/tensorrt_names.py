"""Run in a separate process, with the real bindings of a TensorRT: which names that the builder uses they do not have.

Prints JSON: the version, how many names were looked up, and what is wrong. pybind11 writes each signature into ``__doc__``.
"""

from __future__ import annotations

import ast
import itertools
import json
import logging
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt

from defensemble_export import EngineError  # noqa: E402
from defensemble_export.engines import build_steps, builder, target, timing_cache, verify  # noqa: E402

BUILT_IN: dict[type, str] = {bytes: "buffer", str: "str"}
# Of one class pybind11 writes the name that it has in C++.
IN_PYTHON = {"IParserError": "ParserError"}
_SIGNATURE = re.compile(r"(?:^|\d\. )(\w+)\((.*)\) -> (\S+)$", re.MULTILINE)


class Names:
    """Looks names up, and remembers what is wrong."""

    def __init__(self) -> None:
        self.looked_up: set[str] = set()
        self.wrong: list[str] = []

    def find(self, path: str) -> Any:
        found: Any = trt
        for name in path.split("."):
            if not hasattr(found, name):
                self.wrong.append(f"there is no {path}")
                return None
            found = getattr(found, name)
        self.looked_up.add(path)
        return found

    def settable(self, kind: str, name: str) -> None:
        found = self.find(f"{kind}.{name}")
        if found is not None and getattr(found, "fset", None) is None:
            self.wrong.append(f"{kind}.{name} cannot be set")

    def call(self, path: str, arguments: dict[str, str | None]) -> str | None:
        """Look a call up, and return its result's kind; `arguments` maps each keyword to its value's kind, None for a plain value."""
        found = self.find(path)
        if found is None:
            return None
        kind = path if isinstance(found, type) else None
        signatures = _SIGNATURE.findall((found.__init__ if kind else found).__doc__ or "")
        if not signatures:
            self.wrong.append(f"{path} has no signature to compare with")
        for _, parameters, result in signatures:
            types = dict(re.findall(r"(\w+): ([\w.:]+)", parameters))
            if all(self._fits(types.get(name), given) for name, given in arguments.items()):
                self.looked_up.update(f"{path}({name}=)" for name in arguments)
                return kind or last(result)
        self.wrong.append(f"{path} takes {[parameters for _, parameters, _ in signatures]}, not {arguments}")
        return None

    def _fits(self, expected: str | None, given: str | None) -> bool:
        if expected is None:
            return False
        if given is None:
            return True
        wanted = last(expected)
        return wanted == given or wanted.lower() == given or given in (last(base.__name__) for base in getattr(trt, wanted, object).__mro__)


def last(path: str) -> str:
    name = re.split(r"[.:]+", path)[-1]
    return IN_PYTHON.get(name, name)


class Typed:
    """An object of TensorRT of which only the kind is known: what is asked of it is looked up in the bindings."""

    def __init__(self, names: Names, kind: str | None, path: str = "") -> None:
        vars(self).update(names=names, kind=kind, path=path or kind)

    def __getattr__(self, name: str) -> Any:
        path = f"{self.path}.{name}".lstrip(".")
        self.names.find(path)
        return Typed(self.names, self.path, path)

    def __setattr__(self, name: str, value: Any) -> None:
        self.names.settable(self.path, name)

    def __call__(self, *_: Any, **arguments: Any) -> Typed:
        kinds = {key: value.kind if isinstance(value, Typed) else BUILT_IN.get(type(value)) for key, value in arguments.items()}
        return Typed(self.names, self.names.call(self.path, kinds) or "unknown")

    def __lt__(self, other: int) -> bool:
        return False

    def __rlshift__(self, other: int) -> int:
        return other

    def __index__(self) -> int:
        return 1

    def __bytes__(self) -> bytes:
        return b"timings"


def check_builds(names: Names) -> None:
    """The calls of all builds that differ in the options that change them, each with a timing cache that is there already."""
    logger, monitor = Typed(names, "ILogger"), Typed(names, "IProgressMonitor")
    with tempfile.TemporaryDirectory() as folder:
        for workspace, version, hardware in itertools.product((None, 1 << 30), (False, True), (False, True)):
            timings = timing_cache.TimingCache(Path(folder) / "timings", logging.getLogger())
            request = build_steps.BuildRequest(
                (3, 32, 32), 8, workspace_bytes=workspace, version_compatible=version, hardware_compatible=hardware
            )
            messages = build_steps.Messages()
            trt, attach = Typed(names, ""), timings.attach
            build_steps.build(trt, request, b"graph", "path", logger=logger, monitor=monitor, attach_timing_cache=attach, messages=messages)
            timings.save()
    build_steps._parser_errors(Typed(names, "OnnxParser"))


def check_source(names: Names, file: str) -> None:
    """What is read of TensorRT's module in a module of the builder."""
    for function in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(function, ast.FunctionDef):
            for chain in attributes(function, ("trt", "tensorrt")):
                names.find(chain.partition(".")[2])


def attributes(function: ast.FunctionDef, roots: tuple[str, ...]) -> set[str]:
    """The longest chains of attributes that begin at one of `roots`."""
    chains = {ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    found = {chain for chain in chains if chain.partition(".")[0] in roots and re.fullmatch(r"[\w.]+", chain)}
    # The severities are read of a name that stands for their enumeration.
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and ast.unparse(node.value) in found:
            (name,) = node.targets
            alias = ast.unparse(name)
            found |= {f"{ast.unparse(node.value)}.{chain.partition('.')[2]}" for chain in chains if chain.partition(".")[0] == alias}
    return found


def check_callbacks(names: Names) -> list[str]:
    """The logger and the monitor are made, and called as TensorRT calls them."""
    messages = build_steps.Messages()
    logger = builder._build_logger(trt, messages)
    severity = trt.ILogger.Severity
    for level in severity.__members__.values():
        logger.log(level, f"of {level.name}")
    phases: list[str] = []
    monitor = builder._progress_monitor(trt, messages, lambda *progress: phases.append(" ".join(map(str, progress))))
    monitor.phase_start("building", None, 2)
    assert monitor.step_complete("building", 0) is True
    assert monitor.step_complete("building", 1) is True
    monitor.phase_finish("building")
    for kind, ours in (("ILogger", logger), ("IProgressMonitor", monitor)):
        for name in (name for name in vars(type(ours)) if not name.startswith("_")):
            names.find(f"{kind}.{name}")
    assert isinstance(logger, trt.ILogger)
    assert isinstance(monitor, trt.IProgressMonitor)
    return [*messages.errors, *phases]


def main() -> None:
    names = Names()
    check_builds(names)
    for module in (builder, target):
        check_source(names, str(module.__file__))
    callbacks = check_callbacks(names)
    answer = {
        "version": trt.__version__,
        "names": sorted(names.looked_up),
        "wrong": names.wrong,
        "callbacks": callbacks,
        "running": check_running(),
        "there": {path: look_up(path) for path in sys.argv[1:]},
    }
    print(json.dumps(answer))  # noqa: T201


def check_running() -> str:
    """What a plan that cannot be loaded is refused with: the library behind these bindings is empty."""
    try:
        with verify.plan_runner(Path(__file__)):
            return "loaded"
    except EngineError as error:
        return str(error)


def look_up(path: str) -> bool:
    """Whether a name, or a call with one keyword, `Class.method(keyword=)`, is there."""
    names = Names()
    called = re.fullmatch(r"(.+)\((\w+)=\)", path)
    if called is None:
        names.find(path)
    else:
        names.call(called[1], {called[2]: None})
    return not names.wrong


if __name__ == "__main__":
    main()

"""Record the calls that a function makes on the module `tensorrt`, without TensorRT."""

from __future__ import annotations

import re
from typing import Any


class CallRecorder:
    """A stand-in for a module or object. Its attributes and results are recorders, too; calls and assignments are appended to `calls`.

    Results of constructors, `create_...` and `build_...` are named after them. A recorder is true, and not less than any number.

    Args:
        name: What the calls contain for this object.
        calls: Receives each call and assignment as text.

    Example:
        >>> calls: list[str] = []
        >>> network = CallRecorder("builder", calls).create_network(flags=2)
        >>> calls, str(network)
        (['network = builder.create_network(flags=2)'], 'network')
    """

    _name: str
    _calls: list[str]

    def __init__(self, name: str, calls: list[str]) -> None:
        vars(self).update(_name=name, _calls=calls)

    def __getattr__(self, name: str) -> CallRecorder:
        if name.startswith("__"):
            raise AttributeError(name)
        return CallRecorder(f"{self._name}.{name}", self._calls)

    def __setattr__(self, name: str, value: Any) -> None:
        self._calls.append(f"{self._name}.{name} = {value}")

    def __call__(self, **arguments: Any) -> CallRecorder:
        """Record the call."""
        call = f"{self._name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
        made = re.search(r"\.(?:create_|build_|(?=[A-Z]))(\w+)$", self._name)
        result = re.sub("(?<=[a-z])(?=[A-Z])", "_", made[1]).lower() if made else call
        self._calls.append(f"{result} = {call}" if made else call)
        return CallRecorder(result, self._calls)

    def __rlshift__(self, left: int) -> CallRecorder:
        return CallRecorder(f"{left} << {self._name}", self._calls)

    def __lt__(self, other: Any) -> bool:
        return False

    def __str__(self) -> str:
        return self._name

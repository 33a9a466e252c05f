"""Names of a package that are imported on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping


def lazy_names(package: str, names_by_module: Mapping[str, Iterable[str]]) -> tuple[list[str], Callable[[str], object]]:
    """Return a package's `__all__`, sorted, and its `__getattr__`, which imports a name's module on first use.

    Args:
        package: The package.
        names_by_module: The public names by the module that defines them, relative to the package.
    """
    module_by_name = {name: module for module, names in names_by_module.items() for name in names}

    def import_name(name: str) -> object:
        if name not in module_by_name:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f"{package}.{module_by_name[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return sorted(module_by_name), import_name

"""An extension of griffe, which reads the docstrings: `Example:` is a section of code, as `Examples:` is."""

from __future__ import annotations

import importlib
import re
from typing import Any

griffe: Any = importlib.import_module("griffe")  # which only the extra `docs` installs


class ExampleSections(griffe.Extension):  # type: ignore[misc]
    """Read `Example:` as `Examples:`; griffe would render its `>>>` as quoted text."""

    def on_object(self, *, obj: Any, loader: Any, **kwargs: Any) -> None:
        """Rename the section in the docstring of an object.

        Args:
            obj: A module, class, function or attribute.
            loader: The loader of griffe, which is not used.
            kwargs: What later versions of griffe pass.
        """
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

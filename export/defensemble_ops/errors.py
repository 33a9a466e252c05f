"""The errors of this package.

BuildError          the operator library could not be built, or there is no compiler for it
"""

from __future__ import annotations


class BuildError(Exception):
    """A library could not be compiled: there is no C++ compiler, it does not run, or it failed."""

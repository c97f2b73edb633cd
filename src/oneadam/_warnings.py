"""Warnings that name the line of the caller's own code."""

from __future__ import annotations

import sys
import warnings


def warn(message: str) -> None:
    """Warn, on behalf of the first caller outside of this package, and of JAX which traces it."""
    level = 1
    while sys._getframe(level).f_globals.get("__name__", "").startswith(("oneadam.", "jax.")):
        level += 1
    warnings.warn(message, stacklevel=level + 1)

"""Calls from plain Python, compiled as one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def compiled_from_python(function: Callable[..., Any], is_kept: bool = True) -> Callable[..., Any]:
    """Return a function that is compiled when it is called with arrays.

    Each operation by itself would be slow, and each branch compiled anew in every call. Traced code
    takes the function in as it is.

    Args:
        function: of pytrees; it must do the same whenever these have the same structure, shapes
            and dtypes.
        is_kept: whether it lasts for more than one call; if not, it is left as it is.
    """
    if not is_kept:
        return function
    compiled = jax.jit(function)

    def call(*trees: Any) -> Any:
        are_plain = all(_is_plain(leaf) for leaf in jax.tree.leaves(trees))
        return (compiled if are_plain else function)(*trees)

    return call


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and not isinstance(
        leaf, jax.core.Tracer
    )

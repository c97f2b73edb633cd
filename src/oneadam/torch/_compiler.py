"""What `torch.compile` is to leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Have a compiled caller call a function as it is, because it works on memory itself."""
    # It has no annotations.
    result: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return result

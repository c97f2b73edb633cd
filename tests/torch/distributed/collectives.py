"""Counts what an action says to the other ranks, on two levels that do not know of each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_COMMUNICATION = ("wait_tensor", "wrap_tensor")


class Dispatched(TorchDispatchMode):
    """The collectives that torch dispatches, as pairs of a name and a number of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if any(issubclass(kind, DTensor) for kind in types):
            # A DTensor comes back as local tensors and collectives.
            return NotImplemented
        name = str(func).split(".")[1]
        if "c10d" in func.namespace and not any(part in name for part in NO_COMMUNICATION):
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.seen.append((name, sum(tensor.numel() for tensor in tensors)))
        return func(*args, **(kwargs or {}))


def counted(action: Callable[[], object]) -> dict[str, Any]:
    """Return the collectives of an action.

    Returns:
        `dispatched`: name and number of elements of each, in order. `backend`: how many of each
        kind gloo was asked for, whoever asked.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled, Dispatched() as dispatched:
        action()
    asked = Counter(
        event.name.removeprefix("gloo:")
        for event in profiled.events() or ()
        if event.name.startswith("gloo:")
    )
    return {"dispatched": dispatched.seen, "backend": dict(asked)}

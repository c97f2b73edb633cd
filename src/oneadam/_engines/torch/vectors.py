"""Numbers of all parameters side by side on a device, under NumPy's names for what is done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Vectors:
    """The namespace of float64 and bool vectors on one device.

    Whatever it computes stays there: nothing waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def asarray(self, values: Any) -> Tensor:
        """Return numbers as a vector on the device; bools stay bools."""
        if isinstance(values, Tensor):
            given = values
        else:
            given = torch.as_tensor(values, device="cpu")
        dtype = torch.bool if given.dtype == torch.bool else torch.float64
        return given.to(self.device, dtype, non_blocking=True)

    def where(self, condition: Any, one: Any, other: Any) -> Tensor:
        """Return one of two for each element."""
        return torch.where(self.asarray(condition), self._number(one), self._number(other))

    def _number(self, value: Any) -> Tensor:
        if isinstance(value, (int, float)):  # filled in there, and not copied from here
            return torch.full((), value, dtype=torch.float64, device=self.device)
        return self.asarray(value)

    def maximum(self, one: Tensor, least: float) -> Tensor:
        """Return what is at least a number."""
        return torch.clamp(one, min=least)

    def reshape(self, value: Any, shape: tuple[int, ...]) -> Tensor:
        """Return the same numbers in another shape."""
        return self.asarray(value).reshape(shape)

    min = staticmethod(torch.min)
    sqrt = staticmethod(torch.sqrt)
    expm1 = staticmethod(torch.expm1)
    log = staticmethod(torch.log)
    isfinite = staticmethod(torch.isfinite)

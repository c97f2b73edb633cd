"""The rule on tensors of any device and layout, one parameter at a time, in place.

It serves devices without an engine of their own, and in host memory what the kernels cannot
take. It needs memory for a few tensors of the size of the one that it works on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oneadam._engines import Buffers, Options, arrays
from oneadam._plan import Scalars

_WRITTEN = ("param", "accumulator", "momentum", "velocity", "velocity_max", "average")


class _Namespace:
    """What the array engine needs of a namespace, under the names of the array API."""

    float32, float64 = torch.float32, torch.float64
    sqrt = staticmethod(torch.sqrt)
    zeros_like = staticmethod(torch.zeros_like)

    @staticmethod
    def asarray(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a tensor in a dtype."""
        return tensor.to(dtype)

    @staticmethod
    def maximum(one: Any, other: Any) -> Any:
        """Return the larger of two, NaN where one is."""
        if isinstance(other, Tensor):
            return torch.maximum(one, other)
        return torch.clamp(one, min=other)

    @staticmethod
    def minimum(one: Any, other: Any) -> Any:
        """Return the smaller of two, NaN where one is."""
        return torch.clamp(one, max=other)


def update(buffers: Buffers, s: Scalars, options: Options, skip: Tensor | None = None) -> None:
    """Take one update of one parameter.

    Args:
        buffers: tensors.
        s: numbers, or 0-d tensors on the device.
        options: what holds for every element.
        skip: bool, 0-d, on the device: whether everything is to stay as it is.
    """
    _write(buffers, arrays.update(buffers, s, options, _Namespace), skip)


def average(buffers: Buffers, s: Scalars, options: Options, skip: Tensor | None = None) -> None:
    """Take one parameter that sits the update out into its moving average."""
    buffers = Buffers(buffers.param, None, None, None, None, None, buffers.average)
    _write(buffers, arrays.average(buffers, s, options, _Namespace), skip)


def accumulate(buffers: Buffers, options: Options) -> None:
    """Add one parameter's gradient to its accumulator."""
    buffers.accumulator.copy_(arrays.accumulated(buffers, options, _Namespace))


def squares(buffers: Buffers, options: Options, factor: float = 1.0) -> Any:
    """Return the sum of the squares of the gradient times `factor`, in float64, 0-d."""
    grad = arrays.accumulated(buffers, options, _Namespace).double() * factor
    return (grad * grad).sum()


def norm(buffers: Buffers, options: Options) -> Tensor:
    """Return the norm of the gradient in float64, 0-d, on its device."""
    grad: Tensor = arrays.accumulated(buffers, options, _Namespace).double()
    if buffers.param.dtype != torch.float64 or grad.numel() == 0:
        return (grad * grad).sum().sqrt()
    # Squares of float64 may not fit into float64, as those of float32 do.
    largest = grad.abs().amax()
    largest = torch.where(torch.isfinite(largest) & (largest > 0.0), largest, 1.0)
    grad = grad / largest
    return (grad * grad).sum().sqrt() * largest


def _write(buffers: Buffers, after: Buffers, skip: Tensor | None) -> None:
    for name in _WRITTEN:
        before, new = getattr(buffers, name), getattr(after, name)
        if before is not None and new is not before:
            before.copy_(new if skip is None else torch.where(skip, before, new))

"""What holds for a tensor's memory: its layout, its format, the dtype to compute in."""

from __future__ import annotations

import torch
from torch import Tensor

from oneadam._engines.cpu.formats import FORMATS
from oneadam._engines.gradients import LOOK_CLOSER
from oneadam._engines.spans import Span

_FORMATS = {getattr(torch, name): number for number, name in enumerate(FORMATS)}
"""The number of the format of each dtype that the kernels know."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the computation and of the state for a parameter's dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_host(device: torch.device) -> bool:
    """Return whether a device has the engine of host memory, and nobody has to wait for it."""
    return device.type == "cpu"


def format_of(dtype: torch.dtype) -> int:
    """Return the number of a dtype's format, `LOOK_CLOSER` where the kernels do not know it."""
    return _FORMATS.get(dtype, LOOK_CLOSER)


def order(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of the axes that have any, which say in what order elements lie."""
    return tuple(step for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1)


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements lie side by side in memory, each in a place of its own."""
    if tensor.is_contiguous():
        return True
    steps = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    expected = 1
    for step, n in steps:
        if n != 1:
            if step != expected:
                return False
            expected *= n
    return True


def overlaps_itself(tensor: Tensor) -> bool:
    """Return whether two elements may share memory, judged by the strides alone."""
    if tensor.numel() == 0:
        return False
    extent = 1
    for step, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1:
            if step < extent:
                return True
            extent += step * (n - 1)
    return False


def span(tensor: Tensor) -> Span:
    """Return the first address of a strided tensor and that after its last byte."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum(step * (n - 1) for step, n in zip(tensor.stride(), tensor.shape, strict=True))
    return start, start + (last + 1) * tensor.element_size()

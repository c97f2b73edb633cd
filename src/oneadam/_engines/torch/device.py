"""The rule on tensors of a device that has no engine of its own, in place.

It does operation by operation what a kernel would do in one pass, and nothing that it does waits
for the device: norms, learning rates and whether a call is skipped may stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneadam._engines import Buffers, Options
from oneadam._engines.gradients import ABSENT, LOOK_CLOSER, Gradients
from oneadam._engines.torch import rows
from oneadam._plan import Scalars

Bools = NDArray[np.bool_]


class Device:
    """The parameters of an optimizer on one device and their state, ready to be updated.

    Args:
        buffers: for each field a list of tensors, one for each parameter; None for a field that
            is not used, and for `grad`.
    """

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        present = [column for column in buffers if column is not None]
        self._tensors: list[Tensor] = [tensor for column in present for tensor in column]
        self._kinds = self._found_kinds()
        self._written = {t.untyped_storage().data_ptr() for t in self._tensors if t.numel()}

    def is_current(self) -> bool:
        """Return whether parameters and state are what they were."""
        return self._found_kinds() == self._kinds

    def _found_kinds(self) -> list[Any]:
        return [(t.data_ptr(), t.dtype, t.device, t.shape, t.stride()) for t in self._tensors]

    def look(self, grads: list[Any], closer: Callable[[int, Any], Tensor]) -> Gradients:
        """Check the gradients, one for each parameter.

        Args:
            grads: of any kind, or None.
            closer: called with a parameter's number and its gradient; returns a strided tensor
                of its shape on its device, or raises.
        """
        arrays = [
            None if grad is None else self._apart(closer(row, grad))
            for row, grad in enumerate(grads)
        ]
        formats = [ABSENT if grad is None else LOOK_CLOSER for grad in arrays]
        return Gradients(arrays, np.array(formats, np.int8))

    def _apart(self, grad: Tensor) -> Tensor:
        """Return a gradient that shares no memory with what an update writes."""
        shares = grad.untyped_storage().data_ptr() in self._written
        return grad.clone() if shares else grad

    def norms(self, gradients: Gradients, options: Options, *, accumulated: bool) -> Tensor:
        """Return the norm of each parameter's unscaled gradient, or of its window's sum."""
        zero = torch.zeros((), dtype=torch.float64, device=self._tensors[0].device)
        norms = [
            zero
            if buffers.grad is None and buffers.accumulator is None
            else rows.norm(buffers, options)
            for buffers in self._rows(gradients, accumulated=accumulated)
        ]
        return torch.stack(norms)

    def accumulate(self, gradients: Gradients, options: Options) -> None:
        """Add the gradients to the accumulators."""
        for buffers in self._rows(gradients, accumulated=True):
            if buffers.grad is not None:
                rows.accumulate(buffers, options)

    def update(
        self,
        gradients: Gradients,
        scalars: Scalars,
        options: Options,
        *,
        participants: Bools,
        accumulated: bool,
        skip: Tensor | None,
    ) -> None:
        """Update the participants, and take all parameters into their moving averages.

        Args:
            gradients: of this call.
            scalars: numbers, or columns on the device.
            options: what holds for every element.
            participants: which parameters have had a gradient.
            accumulated: whether there is a window.
            skip: bool, 0-d, on the device: whether nothing is to change.
        """
        here = self._tensors[0].device
        if skip is not None:
            skip = skip.to(here)
        columns = [_numbers(column, len(participants), here) for column in scalars]
        every = self._rows(gradients, accumulated=accumulated)
        for row, (buffers, takes_part) in enumerate(zip(every, participants, strict=True)):
            s = Scalars(*(column[row] for column in columns))
            if takes_part:
                rows.update(buffers, s, options, skip)
            elif buffers.average is not None:
                rows.average(buffers, s, options, skip)

    def _rows(self, gradients: Gradients, *, accumulated: bool) -> Iterator[Buffers]:
        for row, grad in enumerate(gradients.arrays):
            fields = [None if column is None else column[row] for column in self._buffers]
            buffers = Buffers(*fields)._replace(grad=grad)
            yield buffers if accumulated else buffers._replace(accumulator=None)


def _numbers(column: Any, count: int, device: torch.device) -> Any:
    """Return a number or a 0-d tensor on a device for each parameter."""
    if isinstance(column, Tensor):
        column = column.to(device)
    if isinstance(column, Tensor) and column.ndim:
        return column.expand(count).unbind() if len(column) == 1 else column.unbind()
    if isinstance(column, np.ndarray) and column.ndim:
        return column.tolist() if len(column) == count else [float(column[0])] * count
    return [column if isinstance(column, Tensor) else float(column)] * count

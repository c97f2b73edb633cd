"""What a call finds out about tensors in host memory: where they lie, formats, overlaps.

All is asked for anew in every call, because a tensor's memory may be exchanged behind its back
(`tensor.data = ...`), and addresses are used while the tensors are held.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneadam._engines import Buffers
from oneadam._engines.cpu import layout
from oneadam._engines.gradients import ABSENT, LOOK_CLOSER, Gradients
from oneadam._engines.spans import Spans
from oneadam._engines.torch.inspection import Inspector, held
from oneadam._engines.torch.tensors import compute_dtype, format_of, is_dense, order, span

Int64s = NDArray[np.int64]


class Sight:
    """Finds out where tensors lie, for the same parameters in every call.

    Args:
        buffers: the parameters, of which no two overlap, and their state; strided tensors in
            host memory.

    Raises:
        ValueError: one of them has no memory.
    """

    def __init__(self, buffers: Buffers) -> None:
        self._params: list[Tensor] = buffers.param
        self.sizes = np.array([param.numel() for param in self._params], np.int64)
        self.wide = np.array([param.dtype == torch.float64 for param in self._params], np.bool_)
        self._state: dict[int, list[Tensor]] = {
            column: buffers[column] for column in layout.STATE if buffers[column] is not None
        }
        state = [tensor for column in self._state.values() for tensor in column]
        self._written = [*self._params, *state]
        self._variables = Inspector(self._written, gradients=False)
        self._gradients = Inspector(self._params, gradients=True)
        self._variables.inspect(self._written)
        self._addresses = self._variables.addresses.copy()
        self._formats_found = self._variables.formats.copy()
        self._found = self._variables.found()
        unread = np.flatnonzero(self._formats_found == LOOK_CLOSER).tolist()
        self._unread = [self._written[row] for row in unread]
        self._kinds_unread = list(map(_kind, self._unread))
        _check_memory(self._unread)
        self.formats = np.array([self._format(row) for row in range(len(self._params))], np.int8)
        """The format of each parameter; `LOOK_CLOSER` for one that the kernels cannot take."""
        self._spans = Spans([span(tensor) for tensor in self._written if tensor.numel()])
        found = self._formats_found[len(self._params) :] != LOOK_CLOSER
        self._held = held(list(compress(state, found.tolist())))

    def _format(self, row: int) -> int:
        param, count = self._params[row], len(self._params)
        if LOOK_CLOSER in self._formats_found[row::count] or not is_dense(param):
            return LOOK_CLOSER
        computed, elements = compute_dtype(param.dtype), order(param)
        fits = not param.is_neg() and all(
            column[row].dtype == computed
            and order(column[row]) == elements
            and not column[row].is_neg()
            for column in self._state.values()
        )
        return format_of(param.dtype) if fits else LOOK_CLOSER

    def place(self, table: Int64s) -> None:
        """Write the addresses of the parameters and of the state into their columns."""
        count = len(self._params)
        for number, column in enumerate((layout.PARAM, *self._state)):
            table[:, column] = self._addresses[number * count : (number + 1) * count]

    def is_current(self) -> bool:
        """Return whether parameters and state are where and what they were."""
        self._variables.inspect(self._written)
        return (
            self._variables.found() == self._found
            and list(map(_kind, self._unread)) == self._kinds_unread
        )

    def look(
        self, grads: list[Any], closer: Callable[[int, Any], Tensor | None], table: Int64s
    ) -> Gradients:
        """Find the gradients, and write their addresses into their column.

        Args:
            grads: one for each parameter, of any kind.
            closer: called with a parameter's number and its gradient where that is no plain
                tensor that lies in memory like its parameter; returns a strided tensor of its
                shape in host memory, or None where there is no gradient, or raises.
            table: of addresses.
        """
        arrays = list(grads)
        self._gradients.inspect(arrays)
        odd = np.flatnonzero(self._gradients.formats == LOOK_CLOSER).tolist()
        if odd:
            for row in odd:
                arrays[row] = closer(row, arrays[row])
            # Foreign code may have run, and have moved others.
            self._gradients.inspect(arrays)
        addresses, formats = self._gradients.addresses, self._gradients.formats.copy()
        for row in odd:
            addresses[row], formats[row] = self._located(row, arrays[row])
        gradients = Gradients(arrays, formats)
        self._spans.keep_apart(
            gradients,
            addresses,
            self.sizes,
            lambda row: span(arrays[row]),
            lambda row: self._copy(arrays, row),
            is_odd=bool(odd),
        )
        table[:, layout.GRAD] = addresses
        return gradients

    def _located(self, row: int, grad: Tensor | None) -> tuple[int, int]:
        """Return the address and the format of one gradient that has passed all checks."""
        if grad is None:
            return 0, ABSENT
        param = self._params[row]
        alike = grad.numel() == 0 or (is_dense(param) and order(grad) == order(param))
        return grad.data_ptr(), format_of(grad.dtype) if alike else LOOK_CLOSER

    def _copy(self, arrays: list[Any], row: int) -> tuple[int, int]:
        """Put a copy in the place of a gradient, and return where and what it is."""
        arrays[row] = arrays[row].clone()
        return self._located(row, arrays[row])


def _check_memory(tensors: list[Tensor]) -> None:
    """Refuse tensors that have elements and nothing to keep them in."""
    for tensor in tensors:
        if tensor.numel() and not tensor.data_ptr():
            raise ValueError(
                "parameters and state must have memory, received a tensor of shape"
                f" {tuple(tensor.shape)} whose storage was freed; bring it back before the step"
            )


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """Return all that must stay the same of a tensor."""
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()

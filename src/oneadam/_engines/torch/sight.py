"""What a call finds out about tensors in host memory: where they lie, formats, overlaps.

Addresses are asked for anew in every call, because a tensor's memory may be exchanged behind its
back (`tensor.data = ...`), and they are used while the tensors are held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneadam._engines import Buffers
from oneadam._engines.cpu import layout
from oneadam._engines.gradients import ABSENT, LOOK_CLOSER, Formats, Gradients
from oneadam._engines.spans import Spans
from oneadam._engines.torch.tensors import compute_dtype, format_of, is_dense, order, span

Int64s = NDArray[np.int64]


class Sight:
    """Finds out where tensors lie, for the same parameters in every call.

    Args:
        buffers: the parameters, of which no two overlap, and their state; strided tensors in
            host memory.
    """

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._params: list[Tensor] = buffers.param
        count = len(self._params)
        self.sizes = np.array([param.numel() for param in self._params], np.int64)
        self.wide = np.array([param.dtype == torch.float64 for param in self._params], np.bool_)
        self._state = {
            column: buffers[column] for column in layout.STATE if buffers[column] is not None
        }
        self._written = [*self._params, *(t for column in self._state.values() for t in column)]
        self._addresses = self._found_addresses()
        self._bytes = [tensor.nbytes for tensor in self._written]
        self._dtypes = [param.dtype for param in self._params]
        self._formats = np.array([self._format(row) for row in range(count)], np.int8)
        self._all_contiguous = all(param.is_contiguous() for param in self._params)
        self._single = np.flatnonzero(self.sizes == 1).tolist()
        self._spans = Spans([span(tensor) for tensor in self._written if tensor.numel()])
        self._separate: tuple[Int64s, Formats] | None = None
        # What gradients have when they are like their parameters; the kernels know it or not.
        self._everyday = np.array([format_of(dtype) for dtype in self._dtypes], np.int8)

    @property
    def formats(self) -> Formats:
        """The format of each parameter; `LOOK_CLOSER` for one that the kernels cannot take."""
        return self._formats

    def _format(self, row: int) -> int:
        param = self._params[row]
        computed, elements = compute_dtype(param.dtype), order(param)
        fits = is_dense(param) and all(
            column[row].dtype == computed and order(column[row]) == elements
            for column in self._state.values()
        )
        return format_of(param.dtype) if fits else LOOK_CLOSER

    def place(self, table: Int64s) -> None:
        """Write the addresses of the parameters and of the state into their columns."""
        count = len(self._params)
        for number, column in enumerate((layout.PARAM, *self._state)):
            table[:, column] = self._addresses[number * count : (number + 1) * count]

    def check_variables(self) -> None:
        """Nothing to do: `is_current` was asked before."""

    def is_current(self) -> bool:
        """Return whether parameters and state are where and what they were."""
        # A comprehension, because it is faster than everything else that calls a method.
        return (
            np.array_equal(self._found_addresses(), self._addresses)
            and [tensor.nbytes for tensor in self._written] == self._bytes
            and [param.dtype for param in self._params] == self._dtypes
        )

    def _found_addresses(self) -> Int64s:
        return np.array([tensor.data_ptr() for tensor in self._written], np.int64)

    def look(
        self, grads: list[Any], closer: Callable[[int, Any], Tensor | None], table: Int64s
    ) -> Gradients:
        """Find the gradients, and write their addresses into their column.

        Args:
            grads: one for each parameter, of any kind.
            closer: called with a parameter's number and its gradient where that does not lie in
                memory like its parameter; returns a strided tensor of its shape in host memory,
                or None where there is no gradient, or raises.
            table: of addresses.
        """
        arrays = list(grads)
        if self._are_everyday(arrays):
            addresses = np.array([grad.data_ptr() for grad in arrays], np.int64)
            formats = self._everyday.copy()
        else:
            addresses, formats = self._examined(arrays, closer)
        gradients = Gradients(arrays, formats)
        if not self._are_as_before(addresses, formats):
            self._copy_overlapping(gradients, addresses)
        table[:, layout.GRAD] = addresses
        return gradients

    def _are_everyday(self, grads: list[Any]) -> bool:
        """Return whether every gradient is there, and in memory like its parameter."""
        if not self._all_contiguous or set(map(type, grads)) - {Tensor}:
            return False
        try:
            # Comprehensions, because they are faster than everything else that asks a tensor.
            return (
                [grad.nbytes for grad in grads] == self._bytes[: len(grads)]
                and [grad.dtype for grad in grads] == self._dtypes
                and False not in [grad.is_contiguous() for grad in grads]
                and False not in [grad.is_cpu for grad in grads]
                # With one element even a negated view is contiguous.
                and True not in [grads[row].is_neg() for row in self._single]
            )
        except RuntimeError:  # a sparse gradient has no bytes to count
            return False

    def _examined(
        self, grads: list[Any], closer: Callable[[int, Any], Tensor | None]
    ) -> tuple[Int64s, Formats]:
        """Return where gradients lie and in what formats, having put in order what can be."""
        addresses = np.zeros(len(grads), np.int64)
        formats = np.full(len(grads), ABSENT, np.int8)
        for row, grad in enumerate(grads):
            if grad is not None:
                grads[row] = closer(row, grad)
            if grads[row] is not None:
                addresses[row], formats[row] = self._located(row, grads[row])
        return addresses, formats

    def _located(self, row: int, grad: Tensor) -> tuple[int, int]:
        param = self._params[row]
        alike = (param.is_contiguous() and grad.is_contiguous()) or (
            is_dense(grad) and order(grad) == order(param)
        )
        return grad.data_ptr(), format_of(grad.dtype) if alike else LOOK_CLOSER

    def _are_as_before(self, addresses: Int64s, formats: Formats) -> bool:
        """Return whether the gradients lie where they shared no memory with what is written."""
        if self._separate is None:
            return False
        known_addresses, known_formats = self._separate
        return np.array_equal(addresses, known_addresses) and np.array_equal(formats, known_formats)

    def _copy_overlapping(self, gradients: Gradients, addresses: Int64s) -> None:
        """Replace gradients that share memory with what an update writes."""
        arrays, formats = gradients
        overlapping = self._spans.shared(
            gradients, addresses, self.sizes, lambda row: span(arrays[row])
        )
        for row in overlapping:
            arrays[row] = arrays[row].clone()
            addresses[row], formats[row] = self._located(row, arrays[row])
        self._separate = None if overlapping else (addresses.copy(), formats)

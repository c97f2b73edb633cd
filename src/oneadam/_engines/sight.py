"""What a call finds out about NumPy arrays: where they lie, their formats, their overlaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneadam._dtypes import compute_dtype
from oneadam._engines import Buffers
from oneadam._engines.cpu import layout
from oneadam._engines.cpu.formats import FORMATS
from oneadam._engines.cpu.inspection import Inspector
from oneadam._engines.gradients import ABSENT, LOOK_CLOSER, Formats, Gradients
from oneadam._engines.spans import Span, Spans

Array = NDArray[Any]
Int64s = NDArray[np.int64]


class Sight:
    """Finds out where arrays lie, for the same variables in every call.

    Args:
        buffers: the variables, of which no two overlap, and their state.
        names: of the variables, for errors.
    """

    def __init__(self, buffers: Buffers, names: list[str]) -> None:
        self._buffers = buffers
        self._params: list[Array] = buffers.param
        self._names = names
        self._kinds = [_kind(param) for param in self._params]
        self.sizes = np.array([param.size for param in self._params], np.int64)
        self.wide = np.array(
            [compute_dtype(param.dtype) == np.float64 for param in self._params], np.bool_
        )
        shapes = [param.shape for param in self._params]
        self._variables = Inspector(shapes, writable=True)
        self._gradients = Inspector(shapes, writable=False)
        self._variables.inspect(self._params)
        self.formats = self._variables.formats.copy()
        self._all_plain = LOOK_CLOSER not in self.formats
        self._notice_addresses()

    def place(self, table: Int64s) -> None:
        """Write the addresses of the state into its columns."""
        for column in layout.STATE:
            if self._buffers[column] is not None:
                table[:, column] = [array.ctypes.data for array in self._buffers[column]]

    def look(
        self, grads: list[Any], closer: Callable[[int, Any], Array | None], table: Int64s
    ) -> Gradients:
        """Find variables and gradients, and write their addresses into their columns."""
        self.check_variables()
        arrays = list(grads)
        self._gradients.inspect(arrays)
        addresses, formats = self._gradients.addresses, self._gradients.formats.copy()
        odd = np.flatnonzero(formats == LOOK_CLOSER).tolist()
        for row in odd:
            arrays[row] = closer(row, grads[row])
            addresses[row], formats[row] = _located(arrays[row])
        gradients = Gradients(arrays, formats)
        self._spans.keep_apart(
            gradients,
            addresses,
            self.sizes,
            lambda row: _span(arrays[row]),
            lambda row: self._copy(arrays, row),
            is_odd=bool(odd),
        )
        table[:, layout.PARAM] = self._addresses
        table[:, layout.GRAD] = addresses
        return gradients

    def check_variables(self) -> None:
        """Find the variables again, and refuse one that is no longer what it was."""
        self._variables.inspect_again()
        formats = self._variables.formats
        if not (self._all_plain and np.array_equal(formats, self.formats)):
            self._refuse_changed(formats)
        if not np.array_equal(self._variables.addresses, self._addresses):
            self._notice_addresses()

    def _notice_addresses(self) -> None:
        self._addresses = self._variables.addresses.copy()
        self._spans = Spans([_span(param) for param in self._params if param.size])

    def _copy(self, arrays: list[Any], row: int) -> tuple[int, int]:
        """Put a copy in the place of a gradient, and return where and what it is."""
        arrays[row] = np.array(arrays[row], order="C")
        return _located(arrays[row])

    def _refuse_changed(self, formats: Formats) -> None:
        for row, param in enumerate(self._params):
            unchanged = self._kinds[row] == _kind(param) and param.flags.writeable
            if not unchanged or formats[row] != self.formats[row]:
                shape, dtype, _ = self._kinds[row]
                raise ValueError(
                    f"variable {self._names[row]!r} must stay the writable {dtype} array of shape"
                    f" {shape} that it was at build, received {param.dtype} of shape"
                    f" {param.shape}, writable: {param.flags.writeable}; make a new optimizer for"
                    " it, or undo the change"
                )


def _located(array: Array | None) -> tuple[int, int]:
    """Return the address and the format of one array that has passed all checks."""
    if array is None:
        return 0, ABSENT
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned and array.dtype.isnative):
        return 0, LOOK_CLOSER
    name = array.dtype.name
    return array.ctypes.data, FORMATS.index(name) if name in FORMATS else LOOK_CLOSER


def _kind(array: Array) -> tuple[tuple[int, ...], np.dtype[Any], tuple[int, ...]]:
    return array.shape, array.dtype, array.strides


def _span(array: Any) -> Span:
    return np.lib.array_utils.byte_bounds(array)

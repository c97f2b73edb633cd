"""What a call finds out about its variables and gradients: places, formats, overlaps."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam._engines.cpu.formats import C_TYPES, FORMATS
from oneadam._engines.cpu.inspection import LOOK_CLOSER, Inspector

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Formats = NDArray[np.int8]
Int64s = NDArray[np.int64]

ABSENT = len(FORMATS)
"""The format of a gradient that is not there."""

_ITEM_BYTES = np.array([ctypes.sizeof(C_TYPES[name]) for name in FORMATS])


class Gradients(NamedTuple):
    """The gradients of one call."""

    arrays: list[Array | None]
    """One for each variable. Holding them keeps their addresses good."""
    formats: Formats
    """Indices of `FORMATS`, `ABSENT`, or `LOOK_CLOSER` where the kernels cannot read them."""

    @property
    def present(self) -> Bools:
        """Which variables have a gradient."""
        present: Bools = self.formats != ABSENT
        return present


class Sight:
    """Finds out where arrays lie, for the same variables in every call.

    Args:
        params: the variables, of which no two overlap.
        names: of the variables, for errors.
    """

    def __init__(self, params: list[Array], names: list[str]) -> None:
        self._params = params
        self._names = names
        self._kinds = [_kind(param) for param in params]
        self._sizes = np.array([param.size for param in params], np.int64)
        shapes = [param.shape for param in params]
        self._variables = Inspector(shapes, writable=True)
        self._gradients = Inspector(shapes, writable=False)
        self._variables.inspect(params)
        self.formats = self._variables.formats.copy()
        self._all_plain = LOOK_CLOSER not in self.formats
        self._notice_addresses()

    def look(
        self, grads: list[Any], closer: Callable[[int, Any], Array | None]
    ) -> tuple[Gradients, Int64s, Int64s]:
        """Return the gradients, the addresses of the variables and those of the gradients."""
        self.check_variables()
        arrays = list(grads)
        self._gradients.inspect(arrays)
        addresses, formats = self._gradients.addresses, self._gradients.formats.copy()
        odd = np.flatnonzero(formats == LOOK_CLOSER).tolist()
        for row in odd:
            arrays[row] = closer(row, grads[row])
            addresses[row], formats[row] = _located(arrays[row])
        if odd or not self._are_as_before(addresses, formats):
            self._copy_overlapping(arrays, addresses, formats)
        return Gradients(arrays, formats), self._addresses, addresses

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
        self._starts, self._ends = self._spans()
        self._separate: tuple[Int64s, Formats] | None = None

    def _are_as_before(self, addresses: Int64s, formats: Formats) -> bool:
        """Return whether the gradients lie where they shared no memory with a variable."""
        if self._separate is None:
            return False
        known_addresses, known_formats = self._separate
        return np.array_equal(addresses, known_addresses) and np.array_equal(formats, known_formats)

    def _copy_overlapping(
        self, arrays: list[Array | None], addresses: Int64s, formats: Formats
    ) -> None:
        """Replace gradients that share memory with a variable, which an update would change."""
        overlapping = self._overlapping(arrays, addresses, formats).tolist()
        for row in overlapping:
            arrays[row] = np.array(arrays[row], order="C")
            addresses[row], formats[row] = _located(arrays[row])
        self._separate = None if overlapping else (addresses.copy(), formats)

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

    def _spans(self) -> tuple[Int64s, Int64s]:
        """Return where the memory of the variables starts and ends, in ascending order."""
        spans = np.array([_span(p) for p in self._params if p.size], np.int64).reshape(-1, 2)
        starts, ends = spans[np.argsort(spans[:, 0], kind="stable")].T
        # Strided variables may interlace; an end counts for all that start before it.
        return np.ascontiguousarray(starts), np.maximum.accumulate(ends)

    def _overlapping(
        self, arrays: list[Array | None], addresses: Int64s, formats: Formats
    ) -> NDArray[np.intp]:
        """Return which gradients may share memory with a variable."""
        starts, ends = addresses.copy(), addresses.copy()
        plain = (formats >= 0) & (formats < ABSENT)
        ends[plain] += self._sizes[plain] * _ITEM_BYTES[formats[plain]]
        for row in np.flatnonzero(formats == LOOK_CLOSER).tolist():
            starts[row], ends[row] = _span(arrays[row])
        last = np.searchsorted(self._starts, ends, side="left") - 1
        present = (last >= 0) & (formats != ABSENT) & (starts < ends)
        overlapping: NDArray[np.intp] = np.flatnonzero(present)[
            self._ends[last[present]] > starts[present]
        ]
        return overlapping


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


def _span(array: Any) -> tuple[int, int]:
    return np.lib.array_utils.byte_bounds(array)

"""Where arrays lie in memory, for thousands of them in a few microseconds.

Asking NumPy from Python for one address takes longer than updating a small array. So a kernel
reads the fields of the array objects, whose layout NumPy's C API publishes (`PyArrayObject`,
part of its stable ABI). The layout is tried on arrays of known address before it is trusted;
where it does not hold, every array is reported as one to look at more closely, from Python.
"""

# The compiler's own types are untyped.
# mypy: ignore-errors

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from oneadam._engines.cpu.cache import remember
from oneadam._engines.cpu.formats import MARKERS

FORMATS = tuple(MARKERS)
LOOK_CLOSER = -1

CONTIGUOUS, ALIGNED, WRITEABLE = 0x0001, 0x0100, 0x0400

_HEADER = object.__basicsize__
_TYPE = _HEADER - 8
_DATA = _HEADER
_NDIM = _HEADER + 8
_SHAPE = _HEADER + 16
_DTYPE = _HEADER + 40
_FLAGS = _HEADER + 48


@intrinsic
def _int64_at(typing_context, address):
    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(address), generate


@intrinsic
def _int32_at(typing_context, address):
    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(32).as_pointer()))

    return types.int32(address), generate


@njit
def _has_shape(array, shapes, first, last):
    if _int32_at(array + _NDIM) != last - first:
        return False
    shape = _int64_at(array + _SHAPE)
    for axis in range(first, last):  # noqa: SIM110, a generator does not compile
        if _int64_at(shape + 8 * (axis - first)) != shapes[axis]:
            return False
    return True


@njit(nogil=False)
def _inspect(objects, array_type, shapes, bounds, dtypes, flags, addresses, formats):
    for i in range(len(objects)):
        formats[i] = LOOK_CLOSER
        array = objects[i]
        if _int64_at(array + _TYPE) != array_type:
            continue
        if _int32_at(array + _FLAGS) & flags != flags:
            continue
        if not _has_shape(array, shapes, bounds[i], bounds[i + 1]):
            continue
        addresses[i] = _int64_at(array + _DATA)
        dtype = _int64_at(array + _DTYPE)
        for number in range(len(dtypes)):
            if dtype == dtypes[number]:
                formats[i] = number


remember([sys.modules[__name__]], _inspect)


class Inspector:
    """Finds the addresses of arrays that are to have given shapes."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        self._shapes = np.array([n for shape in shapes for n in shape], np.int64)
        self._bounds = np.cumsum([0] + [len(shape) for shape in shapes]).astype(np.int64)

    def inspect(self, arrays: Sequence[object], *, writable: bool):
        """Return the arrays' addresses, int64, and formats, int8 (an index of `FORMATS`).

        The format of whatever is not a plain, aligned, contiguous array of its shape and of a
        dtype that the kernels know is `LOOK_CLOSER`, and its address means nothing. The caller
        keeps the arrays alive for as long as it uses their addresses.
        """
        addresses = np.zeros(len(arrays), np.int64)
        formats = np.full(len(arrays), LOOK_CLOSER, np.int8)
        if _layout_holds():
            self._run(arrays, writable, addresses, formats)
        return addresses, formats

    def _run(self, arrays, writable, addresses, formats) -> None:
        flags = CONTIGUOUS | ALIGNED | (WRITEABLE if writable else 0)
        objects = np.fromiter(map(id, arrays), np.int64, len(arrays))
        _inspect(
            objects,
            id(np.ndarray),
            self._shapes,
            self._bounds,
            _dtype_addresses(),
            flags,
            addresses,
            formats,
        )


def _dtype_addresses() -> np.ndarray:
    # The dtype of bfloat16 arrays exists where somebody has imported the package that makes them.
    missing = {"bfloat16"} if "ml_dtypes" not in sys.modules else set()
    addresses = [0 if name in missing else id(np.dtype(name)) for name in FORMATS]
    return np.array(addresses, np.int64)


@cache
def _layout_holds() -> bool:
    if sys.implementation.name != "cpython" or np.dtype(np.intp).itemsize != 8:
        return False
    matrix = np.zeros((3, 5), np.float32)
    frozen = np.zeros(7)
    frozen.flags.writeable = False
    arrays = [matrix, matrix, matrix.T, frozen, np.zeros(7, np.int32), [0.0] * 7]
    inspector = Inspector([(3, 5), (5, 3), (5, 3), (7,), (7,), (7,)])
    addresses = np.zeros(len(arrays), np.int64)
    formats = np.full(len(arrays), LOOK_CLOSER, np.int8)
    float32, float64 = FORMATS.index("float32"), FORMATS.index("float64")
    for writable, expected in (
        (False, [float32, LOOK_CLOSER, LOOK_CLOSER, float64, LOOK_CLOSER, LOOK_CLOSER]),
        (True, [float32] + [LOOK_CLOSER] * 5),
    ):
        inspector._run(arrays, writable, addresses, formats)
        if formats.tolist() != expected:
            return False
    return addresses[0] == matrix.ctypes.data and addresses[3] == frozen.ctypes.data

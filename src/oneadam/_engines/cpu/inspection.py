"""Reading addresses and formats out of array objects, thousands in a few microseconds.

Asking NumPy from Python for one address takes longer than updating a small array. So a kernel
reads the fields of the array objects, whose layout NumPy's C API publishes (`PyArrayObject`,
part of its stable ABI). The layout is tried on arrays of known address before it is trusted;
where it does not hold, every array is reported as one to look at more closely, from Python.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from oneadam._engines.cpu.compiled import compiled
from oneadam._engines.cpu.formats import FORMATS
from oneadam._engines.gradients import LOOK_CLOSER

Formats = NDArray[np.int8]
Int64s = NDArray[np.int64]

# NumPy's flags, as its C API numbers them.
CONTIGUOUS, ALIGNED, WRITEABLE = 0x0001, 0x0100, 0x0400

_PARAMETERS = (
    *("int64*", "int64", "int64", "int64*", "int64*", "int64"),
    *("int64*", "int8*", "int64", "int64*"),
)


class Inspector:
    """Finds the addresses of arrays that are to have given shapes.

    Its own arrays stay where they are, so that the kernel's arguments are made once.

    Args:
        shapes: of the arrays.
        writable: whether the arrays must be.
    """

    def __init__(self, shapes: list[tuple[int, ...]], *, writable: bool) -> None:
        count = len(shapes)
        self.addresses = np.zeros(count, np.int64)
        """Where the data of each array was found."""
        self.formats = np.full(count, LOOK_CLOSER, np.int8)
        """Indices of `FORMATS`; `LOOK_CLOSER` for what is no plain, aligned, contiguous array of
        its shape and of a dtype that the kernels know, whose address means nothing."""
        self._objects = np.zeros(count, np.int64)
        self._shapes = np.array([n for shape in shapes for n in shape], np.int64)
        self._bounds = np.cumsum([0] + [len(shape) for shape in shapes]).astype(np.int64)
        self._arguments = (
            self._objects.ctypes.data,
            count,
            id(np.ndarray),
            self._shapes.ctypes.data,
            self._bounds.ctypes.data,
            CONTIGUOUS | ALIGNED | (WRITEABLE if writable else 0),
            self.addresses.ctypes.data,
            self.formats.ctypes.data,
        )

    def inspect(self, arrays: Sequence[object]) -> None:
        """Find the arrays, which the caller keeps alive while it uses their addresses."""
        self._objects[:] = np.fromiter(map(id, arrays), np.int64, len(arrays))
        self.inspect_again()

    def inspect_again(self) -> None:
        """Find the same arrays once more, which may have been changed in place."""
        if _layout_holds():
            self._run()

    def _run(self) -> None:
        self.formats.fill(LOOK_CLOSER)
        kernel = compiled("inspect", _PARAMETERS)
        kernel(*self._arguments, len(FORMATS), _dtypes("ml_dtypes" in sys.modules).ctypes.data)


@cache
def _dtypes(with_bfloat16: bool) -> Int64s:
    # The dtype of bfloat16 arrays exists where somebody has imported the package that makes them.
    known = [name for name in FORMATS if name != "bfloat16" or with_bfloat16]
    return np.array([np.dtype(name).num if name in known else -1 for name in FORMATS], np.int64)


@cache
def _layout_holds() -> bool:
    if sys.implementation.name != "cpython" or np.dtype(np.intp).itemsize != 8:
        return False
    matrix = np.zeros((3, 5), np.float32)
    frozen = np.zeros(7)
    frozen.flags.writeable = False
    swapped = np.zeros(7, np.dtype(np.float32).newbyteorder("S"))
    arrays = [matrix, matrix, matrix.T, frozen, np.zeros(7, np.int32), [0.0] * 7, swapped]
    shapes = [(3, 5), (5, 3), (5, 3), (7,), (7,), (7,), (7,)]
    float32, float64 = FORMATS.index("float32"), FORMATS.index("float64")
    for writable, expected in (
        (False, [float32, LOOK_CLOSER, LOOK_CLOSER, float64] + [LOOK_CLOSER] * 3),
        (True, [float32] + [LOOK_CLOSER] * 6),
    ):
        inspector = Inspector(shapes, writable=writable)
        inspector._objects[:] = [id(array) for array in arrays]
        inspector._run()
        found = inspector.formats.tolist() == expected
        if not found or inspector.addresses[0] != matrix.ctypes.data:
            return False
    return True

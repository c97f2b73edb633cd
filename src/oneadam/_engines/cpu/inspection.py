"""Where arrays lie in memory, for thousands of them in a few microseconds.

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

Formats = NDArray[np.int8]
Int64s = NDArray[np.int64]

LOOK_CLOSER = -1

# NumPy's flags, as its C API numbers them.
CONTIGUOUS, ALIGNED, WRITEABLE = 0x0001, 0x0100, 0x0400

_PARAMETERS = (
    *("int64*", "int64", "int64", "int64*", "int64*", "int64*", "int64", "int64"),
    *("int64*", "int8*"),
)


class Inspector:
    """Finds the addresses of arrays that are to have given shapes."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        self._shapes = np.array([n for shape in shapes for n in shape], np.int64)
        self._bounds = np.cumsum([0] + [len(shape) for shape in shapes]).astype(np.int64)

    def inspect(self, objects: Int64s, *, writable: bool) -> tuple[Int64s, Formats]:
        """Return the arrays' addresses, int64, and formats, int8 (an index of `FORMATS`).

        The format of whatever is not a plain, aligned, contiguous array of its shape and of a
        dtype that the kernels know is `LOOK_CLOSER`, and its address means nothing.

        Args:
            objects: what `identities` returned. The caller keeps the objects alive, and the
                arrays for as long as it uses their addresses.
            writable: whether the arrays must be.
        """
        addresses = np.zeros(len(objects), np.int64)
        formats = np.full(len(objects), LOOK_CLOSER, np.int8)
        if _layout_holds():
            self._run(objects, writable, addresses, formats)
        return addresses, formats

    def _run(self, objects: Int64s, writable: bool, addresses: Int64s, formats: Formats) -> None:
        dtypes = _dtype_addresses()
        # The interpreter's lock is kept, so that no array changes while it is read.
        compiled("inspect", _PARAMETERS, keeps_lock=True)(
            objects.ctypes.data,
            len(objects),
            id(np.ndarray),
            self._shapes.ctypes.data,
            self._bounds.ctypes.data,
            dtypes.ctypes.data,
            len(dtypes),
            CONTIGUOUS | ALIGNED | (WRITEABLE if writable else 0),
            addresses.ctypes.data,
            formats.ctypes.data,
        )


def identities(objects: Sequence[object]) -> Int64s:
    """Return where the objects themselves lie, int64."""
    return np.fromiter(map(id, objects), np.int64, len(objects))


def _dtype_addresses() -> Int64s:
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
    float32, float64 = FORMATS.index("float32"), FORMATS.index("float64")
    for writable, expected in (
        (False, [float32, LOOK_CLOSER, LOOK_CLOSER, float64, LOOK_CLOSER, LOOK_CLOSER]),
        (True, [float32] + [LOOK_CLOSER] * 5),
    ):
        addresses = np.zeros(len(arrays), np.int64)
        formats = np.full(len(arrays), LOOK_CLOSER, np.int8)
        inspector._run(identities(arrays), writable, addresses, formats)
        if formats.tolist() != expected or addresses[0] != matrix.ctypes.data:
            return False
    return True

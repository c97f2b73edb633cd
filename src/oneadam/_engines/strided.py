"""The rule on NumPy arrays whose memory is not a plain run of elements, in place.

Transposed, sliced, misaligned and byte-swapped arrays are copied to blocks in the compute
dtype, updated there by the array engine and written back, so that the extra memory does not
grow with the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from oneadam._dtypes import compute_dtype
from oneadam._engines import Buffers, Options, arrays
from oneadam._plan import Scalars

BLOCK = 16_384


def update(buffers: Buffers, s: Scalars, options: Options) -> None:
    """Take one update of one variable."""
    written = tuple(name for name in Buffers._fields if name != "grad")
    for block in _blocks(buffers, written):
        after = arrays.update(block, s, options, np)
        _write(block, after, written)


def average(buffers: Buffers, s: Scalars, options: Options) -> None:
    """Take one variable that sits the update out into its moving average."""
    buffers = Buffers(buffers.param, None, None, None, None, None, buffers.average)
    for block in _blocks(buffers, ("param", "average")):
        _write(block, arrays.average(block, s, options, np), ("param", "average"))


def accumulate(buffers: Buffers, options: Options) -> None:
    """Add one variable's gradient to its accumulator."""
    for block in _blocks(_gradients_of(buffers), ("accumulator",)):
        block.accumulator[...] = arrays.accumulated(block, options, np)


def squares(buffers: Buffers, options: Options, factor: float) -> float:
    """Return the sum of the squares of the gradient times `factor`, in float64."""
    total = 0.0
    for block in _blocks(_gradients_of(buffers), ()):
        grad = np.asarray(arrays.accumulated(block, options, np), np.float64) * factor
        total += float(np.dot(grad, grad))
    return total


def _gradients_of(buffers: Buffers) -> Buffers:
    return Buffers(buffers.param, buffers.grad, buffers.accumulator, None, None, None, None)


def _blocks(buffers: Buffers, written: tuple[str, ...]) -> Iterator[Buffers]:
    """Iterate over one-dimensional blocks of the arrays in native byte order.

    The variable comes in its own dtype, for it is rounded to that; all others come in the
    compute dtype.
    """
    # Arrays of a subclass are taken for what their memory holds.
    buffers = buffers._replace(param=np.asarray(buffers.param))
    present = [name for name in Buffers._fields if getattr(buffers, name) is not None]
    operands = [getattr(buffers, name) for name in present]
    narrow = buffers.param.dtype.newbyteorder("=")
    computed = compute_dtype(buffers.param.dtype)
    with np.nditer(
        operands,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[["readwrite"] if name in written else ["readonly"] for name in present],
        op_dtypes=[narrow if name == "param" else computed for name in present],
        casting="unsafe",
        buffersize=BLOCK,
    ) as iterator:
        for blocks in iterator:
            parts: tuple[NDArray[np.generic], ...] = (
                blocks if isinstance(blocks, tuple) else (blocks,)
            )
            yield Buffers(
                **{**dict.fromkeys(Buffers._fields), **dict(zip(present, parts, strict=True))}
            )


def _write(block: Buffers, after: Buffers, names: tuple[str, ...]) -> None:
    for name in names:
        target = getattr(block, name)
        if target is not None:
            target[...] = getattr(after, name)

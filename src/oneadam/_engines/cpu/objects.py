"""Reading the fields of NumPy's array objects, whose layout its C API publishes.

The layout of `PyArrayObject` is part of NumPy's stable ABI: after the object's header come the
address of the data, the number of dimensions, the addresses of the shape and of the strides, the
base, the dtype and the flags. `PyArray_Descr` begins with the type, three characters for its kind,
its code and its byte order, and a number that tells types apart.
"""

# The compiler's own types are untyped.
# mypy: ignore-errors

from __future__ import annotations

import sys

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from oneadam._engines.cpu.elements import KERNEL

_HEADER = object.__basicsize__
TYPE = _HEADER - 8
_DATA = _HEADER
_NDIM = _HEADER + 8
_SHAPE = _HEADER + 16
_DTYPE = _HEADER + 40
_FLAGS = _HEADER + 48

# In `PyArray_Descr`: the third byte of a word is the byte order, the next word the type's number.
_ORDER = _HEADER + 8
_NUMBER = _HEADER + 12
_SWAPPED = ord(">" if sys.byteorder == "little" else "<")


@intrinsic
def int64_at(typing_context, address):
    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(address), generate


@intrinsic
def int32_at(typing_context, address):
    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(32).as_pointer()))

    return types.int32(address), generate


@intrinsic
def fetch(typing_context, address):
    """Have the cache line at an address brought near; it need not be one of anything."""

    def generate(context, builder, signature, args):
        pointer, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, keep, data = int32(0), int32(3), int32(1)
        builder.call(function, [builder.inttoptr(args[0], pointer), to_read, keep, data])
        return context.get_dummy_value()

    return types.none(address), generate


@njit
def _has_shape(array, shapes, first, last):
    if int32_at(array + _NDIM) != last - first:
        return False
    shape = int64_at(array + _SHAPE)
    for axis in range(first, last):  # noqa: SIM110, a generator does not compile
        if int64_at(shape + 8 * (axis - first)) != shapes[axis]:
            return False
    return True


@njit(**KERNEL)
def inspect(
    objects, count, array_type, shapes, bounds, flags, addresses, formats, dtype_count, dtypes
):
    """Write the address and the format of each array that the kernels can read.

    An object that is no array of `array_type`, lacks one of the flags or has another shape keeps
    the format that it has; so does one of another dtype than those numbered in `dtypes`.
    """
    for i in range(count):
        array = objects[i]
        if int64_at(array + TYPE) != array_type:
            continue
        if int32_at(array + _FLAGS) & flags != flags:
            continue
        if not _has_shape(array, shapes, bounds[i], bounds[i + 1]):
            continue
        addresses[i] = int64_at(array + _DATA)
        dtype = int64_at(array + _DTYPE)
        if (int32_at(dtype + _ORDER) >> 16) & 0xFF == _SWAPPED:
            continue
        number = int32_at(dtype + _NUMBER)
        for known in range(dtype_count):
            if number == dtypes[known]:
                formats[i] = known

"""Reading tensors through DLPack's C exchange API, which frameworks publish for their own.

A framework's function describes one of its tensors in a `DLTensor`, here six words: the address
of the data; the device's type and number; the number of axes and the dtype; the addresses of the
shape and of the strides; an offset in bytes. It must be called with Python's lock held.
"""

# The compiler's own types are untyped.
# mypy: ignore-errors

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from oneadam._engines.cpu.containers import item
from oneadam._engines.cpu.elements import KERNEL
from oneadam._engines.cpu.objects import TYPE, fetch, int64_at

_DATA, _DEVICE, _AXES, _SHAPE, _STRIDES, _OFFSET = range(6)
_LOW = 0xFFFFFFFF
_HOST = 1

_WORD, _INT = ir.IntType(64), ir.IntType(32)
_AHEAD = 6


@intrinsic
def _failure(typing_context, describe, tensor, described):
    def generate(context, builder, signature, args):
        function = ir.FunctionType(_INT, [_WORD, args[2].type]).as_pointer()
        return builder.call(builder.inttoptr(args[0], function), args[1:])

    return types.int32(describe, tensor, described), generate


@intrinsic
def _forget_error(typing_context, clear):
    def generate(context, builder, signature, args):
        function = ir.FunctionType(ir.VoidType(), []).as_pointer()
        builder.call(builder.inttoptr(args[0], function), [])
        return context.get_dummy_value()

    return types.none(clear), generate


@njit
def _is_alike(described, shapes, strides, first, last):
    """Return whether a tensor has a shape, its order in memory, and memory if it needs some."""
    if described[_AXES] & _LOW != last - first:
        return False
    is_empty, is_ordered = False, True
    for axis in range(first, last):
        size = int64_at(described[_SHAPE] + 8 * (axis - first))
        if size != shapes[axis]:
            return False
        if size == 0:
            is_empty = True
        elif size > 1:
            step = int64_at(described[_STRIDES] + 8 * (axis - first))
            is_ordered = is_ordered and step == strides[axis]
    return is_empty or (is_ordered and described[_DATA] != 0)


@njit
def _fetch_ahead(tensors, i, count, usual, body_at, storage_at):
    """Have what describes the tensors soon to come brought near: object, body and storage."""
    if i + 3 * _AHEAD < count:
        fetch(tensors[i + 3 * _AHEAD])
    if i + 2 * _AHEAD < count:
        tensor = tensors[i + 2 * _AHEAD]
        type_ = int64_at(tensor + TYPE)
        if type_ == usual[0] or type_ == usual[1]:
            body = int64_at(tensor + body_at)
            fetch(body)
            fetch(body + 64)
            fetch(body + 128)
    if i + _AHEAD < count:
        tensor = tensors[i + _AHEAD]
        type_ = int64_at(tensor + TYPE)
        if type_ == usual[0] or type_ == usual[1]:
            fetch(int64_at(int64_at(tensor + body_at) + storage_at))


@njit(**KERNEL)
def inspect_tensors(
    get_item,
    describe,
    clear,
    usual,
    body_at,
    storage_at,
    items,
    count,
    tensors,
    described,
    shapes,
    strides,
    bounds,
    dtype_count,
    dtypes,
    tensor_type,
    none,
    absent,
    readable,
    addresses,
    formats,
):
    """Write the address and the format of each tensor of a list that the kernels can read.

    Tensors of the two `usual` types have the address of their body, and that the address of its
    storage, at these offsets, unless these are 0; no result depends on it.
    `none` has the format `absent`. What is not of `tensor_type`, unless that is 0, or lies in
    other memory, or has another shape, order in memory or dtype than those given, keeps the
    format that it has. So does what `describe` fails on, which takes very long; it is no longer
    `readable`, and that place is not tried again.
    """
    for i in range(count):
        tensors[i] = item(get_item, items, i)
    for i in range(count):
        if body_at != 0:
            _fetch_ahead(tensors, i, count, usual, body_at, storage_at)
        tensor = tensors[i]
        if tensor == none:
            formats[i] = absent
            continue
        if tensor_type != 0 and int64_at(tensor + TYPE) != tensor_type:
            continue
        if readable[i] == 0:
            continue
        if _failure(describe, tensor, described) != 0:
            _forget_error(clear)
            readable[i] = 0
            continue
        if described[_DEVICE] & _LOW != _HOST:
            continue
        if not _is_alike(described, shapes, strides, bounds[i], bounds[i + 1]):
            continue
        for known in range(dtype_count):
            if described[_AXES] >> 32 == dtypes[known]:
                formats[i] = known
                addresses[i] = described[_DATA] + described[_OFFSET]

"""Reading dicts and lists through Python's C API, without touching what is in them.

A loop in Python takes hold of each object that it sees, which brings it into the processor's cache;
that takes longer than all the rest where there are thousands.
"""

# The compiler's own types are untyped.
# mypy: ignore-errors

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from oneadam._engines.cpu.elements import KERNEL
from oneadam._engines.cpu.objects import fetch, int64_at

_POSITION, _KEY, _VALUE = range(3)

_AHEAD = 6
# Where a dict has the address of its table, depending on the version of Python.
_TABLES = (24, 32)

_WORD = ir.IntType(64)


def _call(builder, function, arguments, result):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.inttoptr(function, kind.as_pointer()), arguments)


@intrinsic
def item(typing_context, get_item, items, index):
    """Return the address of an item of a list, by Python's `PyList_GetItem`."""

    def generate(context, builder, signature, args):
        return _call(builder, args[0], args[1:], _WORD)

    return types.int64(get_item, items, index), generate


@intrinsic
def _length(typing_context, get_length, items):
    def generate(context, builder, signature, args):
        return _call(builder, args[0], args[1:], _WORD)

    return types.int64(get_length, items), generate


@intrinsic
def _has_next(typing_context, next_item, mapping, found):
    """Find the next item of a dict, by Python's `PyDict_Next`."""

    def generate(context, builder, signature, args):
        places = [builder.gep(args[2], [ir.Constant(_WORD, i)]) for i in range(3)]
        return _call(builder, args[0], [args[1], *places], ir.IntType(32))

    return types.int32(next_item, mapping, found), generate


@njit
def _fetch_ahead(mappings, i, count):
    """Have the dicts soon to come brought near: the objects, then their tables."""
    if i + 2 * _AHEAD < count:
        fetch(mappings[i + 2 * _AHEAD])
    if i + _AHEAD < count:
        for word in _TABLES:
            table = int64_at(mappings[i + _AHEAD] + word)
            fetch(table)
            fetch(table + 64)
            fetch(table + 128)


@njit(**KERNEL)
def compare_dicts(next_item, mappings, count, bounds, values, found, same):
    """Write 1 if dicts have these values in this order and no others, else 0.

    Dicts and values are given by the addresses of the objects, which are alive; `found` is three
    words of room.
    """
    same[0] = 0
    for i in range(count):
        _fetch_ahead(mappings, i, count)
        found[_POSITION] = 0
        for j in range(bounds[i], bounds[i + 1]):
            if _has_next(next_item, mappings[i], found) == 0 or found[_VALUE] != values[j]:
                return
        if _has_next(next_item, mappings[i], found) != 0:
            return
    same[0] = 1


@njit(**KERNEL)
def compare_lists(get_length, get_item, lists, count, bounds, values, same):
    """Write 1 if lists have these values and no others, else 0."""
    same[0] = 0
    for i in range(count):
        if _length(get_length, lists[i]) != bounds[i + 1] - bounds[i]:
            return
        for j in range(bounds[i], bounds[i + 1]):
            if item(get_item, lists[i], j - bounds[i]) != values[j]:
                return
    same[0] = 1

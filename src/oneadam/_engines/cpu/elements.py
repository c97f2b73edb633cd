"""Loading and storing one element at an address, in each format that memory may have.

Inside a kernel a format is the type of a marker, a parameter whose value means nothing; that of
an array that is absent is None. Its elements load as None and its stores do nothing. Narrow
formats are widened to float32 in registers and rounded to nearest even on the way back.

The kernels read and write arrays that never overlap. Each array of a kernel has a role, an int
known at compile time, and LLVM is told that different roles are different memory; without that
it would have to prove it at run time, and gives up on more than a few arrays.
"""

# The compiler's own types are untyped.
# mypy: ignore-errors

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from oneadam._engines.cpu.formats import ABSENT_KIND
from oneadam._engines.cpu.layout import COLUMNS

KERNEL = {
    "nogil": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
"""How kernels are compiled: they are called through their addresses, by nothing else."""

# The storage that numba sees: it knows no bfloat16, and half only in part.
_FLOAT16, _BFLOAT16 = types.int16, types.uint16
_STORAGE = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    _FLOAT16: ir.HalfType(),
    _BFLOAT16: ir.IntType(16),
}
_INT32 = ir.IntType(32)

TYPES = {
    "float32": types.float32,
    "float64": types.float64,
    "float16": _FLOAT16,
    "bfloat16": _BFLOAT16,
    ABSENT_KIND: types.none,
    "int64": types.int64,
    "int8*": types.CPointer(types.int8),
    "int64*": types.CPointer(types.int64),
}
"""The compiler's type for each kind of parameter."""


def _is_absent(marker) -> bool:
    return isinstance(marker, types.NoneType)


def _computed(marker):
    return types.float64 if marker == types.float64 else types.float32


def _role(role) -> int:
    if not isinstance(role, types.IntegerLiteral):
        raise TypingError("a role must be known when the kernel is compiled")
    return role.literal_value


def _separate(builder, instruction, role: int) -> None:
    module = builder.module
    domain = module.add_metadata(["oneadam"])
    scopes = [module.add_metadata([f"oneadam.{i}", domain]) for i in range(COLUMNS)]
    others = [scope for i, scope in enumerate(scopes) if i != role]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[role]]))
    instruction.set_metadata("noalias", module.add_metadata(others))


def _pointer(builder, marker, address, index):
    base = builder.inttoptr(address, _STORAGE[marker].as_pointer())
    return builder.gep(base, [index])


def _widened(builder, marker, value):
    if marker == _FLOAT16:
        return builder.fpext(value, ir.FloatType())
    if marker == _BFLOAT16:
        bits = builder.shl(builder.zext(value, _INT32), ir.Constant(_INT32, 16))
        return builder.bitcast(bits, ir.FloatType())
    return value


def _narrowed(builder, marker, value):
    if marker == _FLOAT16:
        return builder.fptrunc(value, ir.HalfType())
    if marker == _BFLOAT16:
        bits = builder.bitcast(value, _INT32)
        kept_is_odd = builder.and_(
            builder.lshr(bits, ir.Constant(_INT32, 16)), ir.Constant(_INT32, 1)
        )
        rounded = builder.add(builder.add(bits, _INT32(0x7FFF)), kept_is_odd)
        # Rounding could carry a NaN's payload into the sign; it stays a quiet NaN instead.
        quiet = builder.or_(bits, _INT32(0x00400000))
        is_nan = builder.fcmp_unordered("uno", value, value)
        kept = builder.lshr(builder.select(is_nan, quiet, rounded), ir.Constant(_INT32, 16))
        return builder.trunc(kept, ir.IntType(16))
    return value


@intrinsic(prefer_literal=True)
def load(typing_context, marker, role, address, index):
    """Return element `index` of the array at `address`, widened to the compute dtype."""
    number = _role(role)
    result = types.none if _is_absent(marker) else _computed(marker)

    def generate(context, builder, signature, args):
        if _is_absent(marker):
            return context.get_dummy_value()
        value = builder.load(_pointer(builder, marker, args[2], args[3]))
        _separate(builder, value, number)
        return _widened(builder, marker, value)

    return result(marker, role, address, index), generate


@intrinsic(prefer_literal=True)
def store(typing_context, marker, role, address, index, value):
    """Round `value` to the format and write it to element `index` of the array."""
    number = _role(role)

    def generate(context, builder, signature, args):
        if not _is_absent(marker):
            target = _pointer(builder, marker, args[2], args[3])
            _separate(builder, builder.store(_narrowed(builder, marker, args[4]), target), number)
        return context.get_dummy_value()

    return types.void(marker, role, address, index, value), generate


@intrinsic
def pointer(typing_context, marker, address):
    """Return an address as one of numbers in the compute dtype of the format."""
    result = types.CPointer(_computed(marker))

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(result))

    return result(marker, address), generate


@intrinsic
def integers(typing_context, address):
    """Return an address as one of integers."""
    result = types.CPointer(types.int64)

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(result))

    return result(address), generate


@intrinsic
def number(typing_context, marker, word):
    """Return the float64 that a word holds in the compute dtype of the format; None if absent."""
    result = types.none if _is_absent(marker) else _computed(marker)

    def generate(context, builder, signature, args):
        if _is_absent(marker):
            return context.get_dummy_value()
        value = builder.bitcast(args[1], ir.DoubleType())
        return context.cast(builder, value, types.float64, result)

    return result(marker, word), generate


@intrinsic
def take(typing_context, counter):
    """Return what is counted at an address, and count on: no two threads see the same."""

    def generate(context, builder, signature, args):
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", args[0], one, "monotonic")

    return types.int64(counter), generate


@intrinsic
def as_stored(typing_context, marker, value):
    """Return `value` as a load will find it after a store: rounded to the format."""

    def generate(context, builder, signature, args):
        return _widened(builder, marker, _narrowed(builder, marker, args[1]))

    return _computed(marker)(marker, value), generate


@intrinsic
def cast(typing_context, value, marker):
    """Return `value`, or None, in the compute dtype of the format."""
    if _is_absent(value):
        return types.none(
            value, marker
        ), lambda context, builder, signature, args: context.get_dummy_value()
    computed = _computed(marker)

    def generate(context, builder, signature, args):
        return context.cast(builder, args[0], value, computed)

    return computed(value, marker), generate

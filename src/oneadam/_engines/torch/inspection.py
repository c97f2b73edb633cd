"""Finding out where tensors lie and what they are, thousands in some microseconds.

Asking PyTorch from Python for all that matters of one tensor takes longer than updating a small
one. So a kernel asks through DLPack's C exchange API, which PyTorch publishes since 2.10. What it
says is tried on known tensors before it is trusted; where it is not there, or does not hold, all
tensors are asked from Python, with the same results.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneadam._engines.cpu.compiled import compiled
from oneadam._engines.cpu.formats import C_BYTES, FORMATS
from oneadam._engines.gradients import ABSENT, LOOK_CLOSER, Formats
from oneadam._engines.torch.tensors import format_of, is_dense, order

Int64s = NDArray[np.int64]

_PARAMETERS = (
    *("int64", "int64", "int64", "int64*", "int64", "int64", "int64", "int64", "int64*"),
    *("int64*", "int64*", "int64*", "int64*", "int64", "int64*"),
    *("int64", "int64", "int64", "int8*", "int64*", "int8*"),
)

# As DLPack numbers dtypes: the code of the kind, the bits of an element, and one lane.
_FLOAT, _BFLOAT = 2, 4
_DTYPES = np.array(
    [
        (_BFLOAT if name == "bfloat16" else _FLOAT) | int(8 * size) << 8 | 1 << 16
        for name, size in zip(FORMATS, C_BYTES, strict=True)
    ],
    np.int64,
)
_CAPSULE = b"dlpack_exchange_api"
_MAJOR, _MINOR = 1, 3
_WORDS_OF_TENSOR = 6
_USUAL = np.array([id(Tensor), id(torch.nn.Parameter)], np.int64)


class Inspector:
    """Finds the addresses of tensors that are to be like given ones.

    Its own arrays stay where they are, so that the kernel's arguments are made once.

    Args:
        like: strided tensors, whose shapes and orders in memory the others must have.
        gradients: whether the others are gradients, which may be absent, and must be plain
            tensors whose elements lie side by side. If not, they are the given tensors again.
    """

    def __init__(self, like: list[Tensor], *, gradients: bool) -> None:
        count = len(like)
        self.addresses = np.zeros(count, np.int64)
        """Where the data of each tensor was found, 0 where it was not."""
        self.formats: Formats = np.full(count, LOOK_CLOSER, np.int8)
        """Indices of `FORMATS`; `ABSENT` for None; `LOOK_CLOSER` for what is no tensor in host
        memory of the right shape, order and kind and of a dtype that the kernels know."""
        self._gradients = gradients
        self._shapes = [tensor.shape for tensor in like]
        self._strides = [tensor.stride() for tensor in like]
        self._some = np.array([tensor.numel() > 0 for tensor in like], np.bool_)
        self._orders = [None if gradients and not is_dense(t) else order(t) for t in like]
        # Where nothing is in order, no tensor has these strides.
        strides = [
            [-1] * len(steps) if known is None else steps
            for steps, known in zip(self._strides, self._orders, strict=True)
        ]
        self._kept = (
            np.zeros(count, np.int64),
            np.zeros(_WORDS_OF_TENSOR, np.int64),
            np.array([n for shape in self._shapes for n in shape], np.int64),
            np.array([step for steps in strides for step in steps], np.int64),
            np.cumsum([0] + [len(shape) for shape in self._shapes]).astype(np.int64),
            _DTYPES,
            np.ones(count, np.int8),
        )
        objects, described, sizes, steps, bounds, dtypes, readable = (
            array.ctypes.data for array in self._kept
        )
        self._arguments = (
            *(objects, described, sizes, steps, bounds, len(_DTYPES), dtypes),
            *(id(Tensor) if gradients else 0, id(None), ABSENT, readable),
            *(self.addresses.ctypes.data, self.formats.ctypes.data),
        )

    def inspect(self, tensors: list[Any]) -> None:
        """Find tensors, which the caller keeps alive while it uses their addresses."""
        self.addresses.fill(0)
        self.formats.fill(LOOK_CLOSER)
        if layout_holds():
            self._ask_kernel(tensors)
        else:
            self._ask_python(tensors)
        if self._gradients:
            self._leave_negated(tensors)

    def found(self) -> tuple[bytes, bytes]:
        """Return addresses and formats as what is quickly compared."""
        return self.addresses.tobytes(), self.formats.tobytes()

    def _ask_kernel(self, tensors: list[Any]) -> None:
        kernel = compiled("inspect_tensors", _PARAMETERS)
        # No more than there is room for, whatever the list has become.
        count = min(len(tensors), len(self.formats))
        kernel(*_functions(), *_layout(), id(tensors), count, *self._arguments)

    def _ask_python(self, tensors: list[Any]) -> None:
        found = self._found_at_once(tensors)
        if found is not None:
            self.addresses[:], self.formats[:] = found
            return
        for row, tensor in zip(range(len(self.formats)), tensors, strict=False):
            self.addresses[row], self.formats[row] = self._found(row, tensor)

    def _found_at_once(self, tensors: list[Any]) -> tuple[Int64s, Formats] | None:
        """Return addresses and formats where all tensors are as they usually are.

        Much faster than one tensor after the other, and by comprehensions faster than by loops.
        """
        if len(tensors) != len(self.formats) or None in self._orders:
            return None
        if self._gradients and set(map(type, tensors)) - {Tensor}:
            return None
        try:
            if (
                False in [tensor.is_cpu for tensor in tensors]
                or {tensor.layout for tensor in tensors} - {torch.strided}
                or list(map(Tensor.stride, tensors)) != self._strides
                or [tensor.shape for tensor in tensors] != self._shapes
            ):
                return None
            addresses = np.array(list(map(Tensor.data_ptr, tensors)), np.int64)
        except (AttributeError, RuntimeError):  # from what is no tensor, or has no memory
            return None
        formats = np.array([format_of(tensor.dtype) for tensor in tensors], np.int8)
        if LOOK_CLOSER in formats or not addresses[self._some].all():
            return None
        return addresses, formats

    def _found(self, row: int, tensor: Any) -> tuple[int, int]:
        """Return the address and the format of one tensor."""
        if tensor is None:
            return 0, ABSENT
        if self._gradients and type(tensor) is not Tensor:
            return 0, LOOK_CLOSER
        try:
            format_ = self._format(row, tensor)
            return tensor.data_ptr() if format_ != LOOK_CLOSER else 0, format_
        except RuntimeError:  # from some that have no memory of their own
            return 0, LOOK_CLOSER

    def _format(self, row: int, tensor: Tensor) -> int:
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested:
            return LOOK_CLOSER
        if tensor.shape != self._shapes[row]:
            return LOOK_CLOSER
        if tensor.numel() and (order(tensor) != self._orders[row] or not tensor.data_ptr()):
            return LOOK_CLOSER
        return format_of(tensor.dtype)

    def _leave_negated(self, tensors: list[Any]) -> None:
        """Take back those whose elements are the negatives of what lies in memory."""
        found = (self.formats != LOOK_CLOSER) & (self.formats != ABSENT)
        # A tensor's description does not tell.
        if any(map(Tensor.is_neg, tensors if found.all() else compress(tensors, found.tolist()))):
            for row in np.flatnonzero(found).tolist():
                if tensors[row].is_neg():
                    self.addresses[row], self.formats[row] = 0, LOOK_CLOSER


def held(tensors: list[Tensor]) -> list[Any]:
    """Return what makes a kernel ask tensors several times faster, as long as it is kept.

    Whoever takes hold of a tensor that has one owner has PyTorch tell Python of it. An export is
    a second owner, and one that Python's search for cycles cannot see through: it must be kept
    only of tensors that nothing else hangs on.
    """
    if not layout_holds():
        return []
    return [tensor.__dlpack__() for tensor in tensors if not tensor.requires_grad]


@cache
def _layout() -> tuple[int, int, int]:
    """Return where the types are of which tensors usually are, and where a tensor has its body.

    And where that has its storage; zeros where it is not known. It only makes a kernel faster.
    """
    usual = _USUAL.ctypes.data
    tensor, header = torch.zeros(3, device="cpu"), object.__basicsize__
    body, storage = (getattr(one, "_cdata", 0) for one in (tensor, tensor.untyped_storage()))
    if Tensor.__basicsize__ < header + 16:
        return usual, 0, 0
    for body_at in (header, header + 8):
        if body and ctypes.c_int64.from_address(id(tensor) + body_at).value == body:
            for storage_at in range(8, 64, 8):
                if ctypes.c_int64.from_address(body + storage_at).value == storage:
                    return usual, body_at, storage_at
    return usual, 0, 0


@cache
def _functions() -> tuple[int, int, int]:
    """Return the addresses of the functions that the kernel calls, 0 for one that is not there."""
    api = ctypes.pythonapi
    get_item = ctypes.cast(api.PyList_GetItem, ctypes.c_void_p).value or 0
    clear = ctypes.cast(api.PyErr_Clear, ctypes.c_void_p).value or 0
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
    if not is_valid(("PyCapsule_IsValid", api))(capsule, _CAPSULE):
        return get_item, 0, clear
    published = _Api.from_address(pointer(("PyCapsule_GetPointer", api))(capsule, _CAPSULE))
    is_known = published.major == _MAJOR and published.minor >= _MINOR
    return get_item, (published.describe or 0) if is_known else 0, clear


class _Api(ctypes.Structure):
    """The beginning of DLPack's table of functions, to the one that describes a tensor."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("others", ctypes.c_void_p * 3),
        ("describe", ctypes.c_void_p),
    )


@cache
def layout_holds() -> bool:
    """Return whether a kernel finds out about known tensors what Python does."""
    is_usual = sys.implementation.name == "cpython" and ctypes.sizeof(ctypes.c_void_p) == 8
    if not is_usual or not all(_functions()):
        return False
    matrix = torch.arange(15, dtype=torch.float32, device="cpu").reshape(3, 5)
    vector = torch.arange(7, dtype=torch.float32, device="cpu")
    pairs: list[tuple[Tensor, Any]] = [
        *((matrix, other) for other in (matrix, matrix.reshape(5, 3), matrix.double(), vector)),
        *((matrix.T, other) for other in (matrix.T, matrix.T.contiguous(), matrix.bfloat16().T)),
        *((vector, vector.to(getattr(torch, name))) for name in (*FORMATS, "int32")),
        *(
            (vector[:3], other)
            for other in (vector[4:], vector[:2], vector[::3], vector[:1].expand(3))
        ),
        *((matrix, other) for other in (matrix.to_sparse(), None, torch.nn.Parameter(matrix))),
        *((other, other) for other in (vector[6], vector[6:], matrix[:0], matrix[:, ::2])),
        (vector, torch.empty(7, device="meta")),
    ]
    tensors = [tensor for _, tensor in pairs]
    for gradients in (False, True):
        one, other = (Inspector([like for like, _ in pairs], gradients=gradients) for _ in range(2))
        one._ask_kernel(tensors)
        other._ask_python(tensors)
        are_same = np.array_equal(one.addresses, other.addresses)
        if not (are_same and np.array_equal(one.formats, other.formats)) or not one.addresses[0]:
            return False
    return True

"""The memory's own limit: kernels that move the bytes of a step and compute next to nothing.

They walk the pieces that oneadam's engine walks, in its order and on its threads, with its
loads and stores, which are vectorised. Addresses are looked up once, outside of the step.
"""

# Numba's decorators are untyped.
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba import njit

from benchmarks.models import Array, random
from oneadam._engines.cpu.elements import load, store
from oneadam._engines.cpu.layout import (
    ACCUMULATOR,
    AVERAGE,
    COLUMNS,
    GRAD,
    MOMENTUM,
    PARAM,
    VELOCITY,
)
from oneadam._engines.cpu.pieces import cut
from oneadam._engines.threads import share

_WORD = np.float32(0)
_ONE = np.float32(1)


@njit(nogil=True, error_model="numpy")
def _move(table, pieces, first, last, average0):
    for piece in range(first, last):
        row = pieces[piece, 0]
        param_at = table[row, PARAM]
        grad_at = table[row, GRAD]
        momentum_at = table[row, MOMENTUM]
        velocity_at = table[row, VELOCITY]
        average_at = table[row, AVERAGE]
        for i in range(pieces[piece, 1], pieces[piece, 2]):
            grad = load(_WORD, GRAD, grad_at, i)
            store(_WORD, PARAM, param_at, i, load(_WORD, PARAM, param_at, i) + grad)
            store(_WORD, MOMENTUM, momentum_at, i, load(_WORD, MOMENTUM, momentum_at, i) + grad)
            store(_WORD, VELOCITY, velocity_at, i, load(_WORD, VELOCITY, velocity_at, i) + grad)
            if average0 is not None:
                average = load(average0, AVERAGE, average_at, i) + grad
                store(average0, AVERAGE, average_at, i, average)


@njit(nogil=True, error_model="numpy")
def _move_halves(table, pieces, first, last):
    """Move narrow variables and gradients two elements to a word, so that none is converted."""
    for piece in range(first, last):
        row = pieces[piece, 0]
        param_at = table[row, PARAM]
        grad_at = table[row, GRAD]
        momentum_at = table[row, MOMENTUM]
        velocity_at = table[row, VELOCITY]
        for i in range(pieces[piece, 1] // 2, pieces[piece, 2] // 2):
            grad = load(_WORD, GRAD, grad_at, i)
            store(_WORD, PARAM, param_at, i, load(_WORD, PARAM, param_at, i) + grad)
        for i in range(pieces[piece, 1], pieces[piece, 2]):
            store(_WORD, MOMENTUM, momentum_at, i, load(_WORD, MOMENTUM, momentum_at, i) + _ONE)
            store(_WORD, VELOCITY, velocity_at, i, load(_WORD, VELOCITY, velocity_at, i) + _ONE)


@njit(nogil=True, error_model="numpy")
def _add(table, pieces, first, last):
    for piece in range(first, last):
        row = pieces[piece, 0]
        grad_at = table[row, GRAD]
        accumulator_at = table[row, ACCUMULATOR]
        for i in range(pieces[piece, 1], pieces[piece, 2]):
            total = load(_WORD, ACCUMULATOR, accumulator_at, i) + load(_WORD, GRAD, grad_at, i)
            store(_WORD, ACCUMULATOR, accumulator_at, i, total)


# Only where the order of the sum is free is it vectorised.
@njit(nogil=True, error_model="numpy", fastmath={"reassoc"})
def _read(table, pieces, first, last, sums):
    for piece in range(first, last):
        row = pieces[piece, 0]
        grad_at = table[row, GRAD]
        total = _WORD
        for i in range(pieces[piece, 1], pieces[piece, 2]):
            total += load(_WORD, GRAD, grad_at, i)
        sums[piece] = total


def _laid_out(columns: dict[int, list[Array]], sizes: Sequence[int]):
    table = np.zeros((len(sizes), COLUMNS), np.int64)
    for column, arrays in columns.items():
        table[:, column] = [array.ctypes.data for array in arrays]
    return table, cut(np.arange(len(sizes)), np.array(sizes, np.int64))


def step(sizes: Sequence[int], door: str = "numpy") -> Callable[[], None]:
    """Return what moves the 28 bytes per element of a float32 step."""
    roles = (PARAM, GRAD, MOMENTUM, VELOCITY)
    columns = {role: random(sizes, role, door=door) for role in roles}
    table, pieces = _laid_out(columns, sizes)

    def run(columns=columns) -> None:  # which must outlive the addresses
        share(pieces.shares, lambda part: _move(table, pieces.table.array, *part, None))

    return run


def recipe(sizes: Sequence[int], door: str = "numpy") -> Callable[[], None]:
    """Return what reads the gradients and then moves 36 bytes per element, from the last on."""
    roles = (PARAM, GRAD, MOMENTUM, VELOCITY, AVERAGE)
    columns = {role: random(sizes, role, door=door) for role in roles}
    table, pieces = _laid_out(columns, sizes)
    sums = np.empty(len(pieces.table.array), np.float32)

    def run(columns=columns) -> None:
        share(pieces.shares, lambda part: _read(table, pieces.table.array, *part, sums))
        share(pieces.shares[::-1], lambda part: _move(table, pieces.table.array, *part, _WORD))

    return run


def bfloat16(sizes: Sequence[int]) -> Callable[[], None]:
    """Return what moves 22 bytes per element: 2 of gradients, 4 of variables, 16 of state.

    Sizes are even.
    """
    halves = [size // 2 for size in sizes]
    columns = {role: random(halves, role) for role in (PARAM, GRAD)}
    columns |= {role: random(sizes, role) for role in (MOMENTUM, VELOCITY)}
    table, pieces = _laid_out(columns, sizes)

    def run(columns=columns) -> None:
        share(pieces.shares, lambda part: _move_halves(table, pieces.table.array, *part))

    return run


def accumulation(sizes: Sequence[int]) -> Callable[[], None]:
    """Return what moves the 12 bytes per element of adding gradients up."""
    columns = {role: random(sizes, role) for role in (GRAD, ACCUMULATOR)}
    table, pieces = _laid_out(columns, sizes)

    def run(columns=columns) -> None:
        share(pieces.shares, lambda part: _add(table, pieces.table.array, *part))

    return run

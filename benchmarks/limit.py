"""The memory's own limit: kernels that move the bytes of a step and compute next to nothing.

They take the shares that oneadam's engine takes, in its order and on its threads, with its
loads and stores, which are vectorised. Addresses are looked up once, outside of the step.
"""

# Numba's decorators are untyped.
# mypy: ignore-errors

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
from numba import cfunc, njit, types

from benchmarks.models import random
from oneadam._engines.cpu.elements import integers, load, pointer, store
from oneadam._engines.cpu.kernels import next_share
from oneadam._engines.cpu.layout import (
    ACCUMULATOR,
    AVERAGE,
    BACKWARDS,
    COLUMNS,
    EDGES,
    GRAD,
    MOMENTUM,
    PARAM,
    PIECES,
    SHARES,
    SUMS,
    TABLE,
    VELOCITY,
    WORDS,
)
from oneadam._engines.cpu.pieces import cut
from oneadam._engines.cpu.tables import Table
from oneadam._engines.threads import together
from oneadam._engines.torch import team

_WORD = np.float32(0)
_ONE = np.float32(1)
_TEAMS = {"numpy": together, "torch": team.together}
_TASK = types.void(types.CPointer(types.int64))
_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@njit(error_model="numpy")
def _move_all(task, average0):
    table, pieces = integers(task[TABLE]), integers(task[PIECES])
    edges = integers(task[EDGES])
    share = next_share(task)
    while share >= 0:
        for piece in range(edges[share], edges[share + 1]):
            row = pieces[3 * piece]
            param_at = table[row * COLUMNS + PARAM]
            grad_at = table[row * COLUMNS + GRAD]
            momentum_at = table[row * COLUMNS + MOMENTUM]
            velocity_at = table[row * COLUMNS + VELOCITY]
            average_at = table[row * COLUMNS + AVERAGE]
            for i in range(pieces[3 * piece + 1], pieces[3 * piece + 2]):
                grad = load(_WORD, GRAD, grad_at, i)
                store(_WORD, PARAM, param_at, i, load(_WORD, PARAM, param_at, i) + grad)
                store(_WORD, MOMENTUM, momentum_at, i, load(_WORD, MOMENTUM, momentum_at, i) + grad)
                store(_WORD, VELOCITY, velocity_at, i, load(_WORD, VELOCITY, velocity_at, i) + grad)
                if average0 is not None:
                    average = load(average0, AVERAGE, average_at, i) + grad
                    store(average0, AVERAGE, average_at, i, average)
        share = next_share(task)


@cfunc(_TASK, error_model="numpy")
def _move(task):
    _move_all(task, None)


@cfunc(_TASK, error_model="numpy")
def _move_with_average(task):
    _move_all(task, _WORD)


@cfunc(_TASK, error_model="numpy")
def _move_halves(task):
    """Move narrow variables and gradients two elements to a word, so that none is converted."""
    table, pieces = integers(task[TABLE]), integers(task[PIECES])
    edges = integers(task[EDGES])
    share = next_share(task)
    while share >= 0:
        for piece in range(edges[share], edges[share + 1]):
            row = pieces[3 * piece]
            param_at = table[row * COLUMNS + PARAM]
            grad_at = table[row * COLUMNS + GRAD]
            momentum_at = table[row * COLUMNS + MOMENTUM]
            velocity_at = table[row * COLUMNS + VELOCITY]
            for i in range(pieces[3 * piece + 1] // 2, pieces[3 * piece + 2] // 2):
                grad = load(_WORD, GRAD, grad_at, i)
                store(_WORD, PARAM, param_at, i, load(_WORD, PARAM, param_at, i) + grad)
            for i in range(pieces[3 * piece + 1], pieces[3 * piece + 2]):
                store(_WORD, MOMENTUM, momentum_at, i, load(_WORD, MOMENTUM, momentum_at, i) + _ONE)
                store(_WORD, VELOCITY, velocity_at, i, load(_WORD, VELOCITY, velocity_at, i) + _ONE)
        share = next_share(task)


@cfunc(_TASK, error_model="numpy")
def _add(task):
    table, pieces = integers(task[TABLE]), integers(task[PIECES])
    edges = integers(task[EDGES])
    share = next_share(task)
    while share >= 0:
        for piece in range(edges[share], edges[share + 1]):
            row = pieces[3 * piece]
            grad_at = table[row * COLUMNS + GRAD]
            accumulator_at = table[row * COLUMNS + ACCUMULATOR]
            for i in range(pieces[3 * piece + 1], pieces[3 * piece + 2]):
                total = load(_WORD, ACCUMULATOR, accumulator_at, i) + load(_WORD, GRAD, grad_at, i)
                store(_WORD, ACCUMULATOR, accumulator_at, i, total)
        share = next_share(task)


# Only where the order of the sum is free is it vectorised.
@cfunc(_TASK, error_model="numpy", fastmath={"reassoc"})
def _read(task):
    sums = pointer(_WORD, task[SUMS])
    table, pieces = integers(task[TABLE]), integers(task[PIECES])
    edges = integers(task[EDGES])
    share = next_share(task)
    while share >= 0:
        for piece in range(edges[share], edges[share + 1]):
            row = pieces[3 * piece]
            grad_at = table[row * COLUMNS + GRAD]
            total = _WORD
            for i in range(pieces[3 * piece + 1], pieces[3 * piece + 2]):
                total += load(_WORD, GRAD, grad_at, i)
            sums[piece] = total
        share = next_share(task)


class _Launch:
    """Arrays that kernels move.

    Args:
        roles: of the arrays.
        sizes: of the arrays of each role.
        door: whose memory they have, and on whose threads.
        halves: more roles, whose arrays have half as many elements.
    """

    def __init__(
        self,
        roles: Sequence[int],
        sizes: Sequence[int],
        door: str,
        *,
        halves: Sequence[int] = (),
    ) -> None:
        self._arrays = {role: random(sizes, role, door=door) for role in roles}
        half = [size // 2 for size in sizes]
        self._arrays |= {role: random(half, role, door=door) for role in halves}
        self._table = Table(np.zeros((len(sizes), COLUMNS), np.int64))
        for role, arrays in self._arrays.items():
            self._table.array[:, role] = [array.ctypes.data for array in arrays]
        self._pieces = cut(np.arange(len(sizes)), np.array(sizes, np.int64))
        self._sums = Table(np.empty(len(self._pieces.table.array), np.float32))
        self._team = _TEAMS[door]

    def run(self, kernel, *, backwards: bool = False) -> None:
        """Run a kernel on all pieces."""
        task = np.zeros(WORDS, np.int64)
        task[SHARES] = len(self._pieces.edges.array) - 1
        task[BACKWARDS] = backwards
        task[EDGES], task[PIECES] = self._pieces.edges.address, self._pieces.table.address
        task[TABLE], task[SUMS] = self._table.address, self._sums.address
        self._team(_Kernel(kernel.address), task.ctypes.data, self._pieces.elements)


def step(sizes: Sequence[int], door: str = "numpy") -> Callable[[], None]:
    """Return what moves the 28 bytes per element of a float32 step."""
    launch = _Launch((PARAM, GRAD, MOMENTUM, VELOCITY), sizes, door)
    return lambda: launch.run(_move)


def recipe(sizes: Sequence[int], door: str = "numpy") -> Callable[[], None]:
    """Return what reads the gradients and then moves 36 bytes per element, from the last on."""
    launch = _Launch((PARAM, GRAD, MOMENTUM, VELOCITY, AVERAGE), sizes, door)

    def run() -> None:
        launch.run(_read)
        launch.run(_move_with_average, backwards=True)

    return run


def bfloat16(sizes: Sequence[int]) -> Callable[[], None]:
    """Return what moves 22 bytes per element: 2 of gradients, 4 of variables, 16 of state.

    Sizes are even.
    """
    launch = _Launch((MOMENTUM, VELOCITY), sizes, "numpy", halves=(PARAM, GRAD))
    return lambda: launch.run(_move_halves)


def accumulation(sizes: Sequence[int]) -> Callable[[], None]:
    """Return what moves the 12 bytes per element of adding gradients up."""
    launch = _Launch((GRAD, ACCUMULATOR), sizes, "numpy")
    return lambda: launch.run(_add)

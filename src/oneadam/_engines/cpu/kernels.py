"""The rule, compiled for one element at a time over a table of addresses.

Every kernel walks pieces `first` to `last` of `pieces`, whose rows are (row of the tables,
first element, element after the last). It holds no reference and checks nothing: the caller
keeps the memory alive and has checked it. An array that is absent has the marker None.

`cast` brings a gradient of another width to the compute dtype of the variable.
"""

# Numba's decorators and the rule are untyped.
# mypy: ignore-errors

from __future__ import annotations

import math
import sys

from numba import njit

from oneadam import _plan, _rule
from oneadam._engines.cpu import formats
from oneadam._engines.cpu.cache import remember
from oneadam._engines.cpu.formats import as_stored, cast, load, store
from oneadam._plan import Scalars

# The columns of a table of addresses, which are also the roles of the arrays.
PARAM, GRAD, ACCUMULATOR, MOMENTUM, VELOCITY, VELOCITY_MAX, AVERAGE = range(7)
COLUMNS = 7

_accumulate = njit(_rule.accumulate)
_clip = njit(_rule.clip)
_adam = njit(_rule.adam)
_moving_average = njit(_rule.moving_average)


@njit
def _sqrt(x):
    return math.sqrt(x)


@njit
def _maximum(a, b):
    return a if a > b or a != a else b


@njit
def _minimum(a, b):
    return a if a < b or a != a else b


@njit
def _row_scalars(scalars, row):
    return Scalars(
        scalars[row, 0],
        scalars[row, 1],
        scalars[row, 2],
        scalars[row, 3],
        scalars[row, 4],
        scalars[row, 5],
        scalars[row, 6],
        scalars[row, 7],
        scalars[row, 8],
    )


@njit
def _averaged(average, param, s, overwrite):
    """Return the new average, and what the variable becomes: itself, or the average."""
    if average is None:
        return average, param
    else:
        average = _moving_average(average, param, s)
        return average, average if overwrite else param


@njit
def _optional(marker, value):
    if marker is None:
        return None
    else:
        return value


@njit(nogil=True, error_model="numpy")
def update(
    table,
    scalars,
    pieces,
    first,
    last,
    param0,
    grad0,
    accumulator0,
    state0,
    velocity_max0,
    average0,
    decay0,
    loss_scale,
    limit,
    overwrite,
):
    """Take one update: gradient, decay, Adam, moving average, in one pass over memory."""
    for piece in range(first, last):
        row = pieces[piece, 0]
        param_at = table[row, PARAM]
        grad_at = table[row, GRAD]
        accumulator_at = table[row, ACCUMULATOR]
        momentum_at = table[row, MOMENTUM]
        velocity_at = table[row, VELOCITY]
        velocity_max_at = table[row, VELOCITY_MAX]
        average_at = table[row, AVERAGE]
        s = _row_scalars(scalars, row)
        decay = _optional(decay0, s.decay)
        for i in range(pieces[piece, 1], pieces[piece, 2]):
            grad = _accumulate(
                load(accumulator0, ACCUMULATOR, accumulator_at, i),
                cast(load(grad0, GRAD, grad_at, i), param0),
                loss_scale,
            )
            param, momentum, velocity, velocity_max = _adam(
                load(param0, PARAM, param_at, i),
                _clip(grad, limit, s, _maximum, _minimum),
                load(state0, MOMENTUM, momentum_at, i),
                load(state0, VELOCITY, velocity_at, i),
                load(velocity_max0, VELOCITY_MAX, velocity_max_at, i),
                decay,
                s,
                _sqrt,
                _maximum,
            )
            average, param = _averaged(
                load(average0, AVERAGE, average_at, i), as_stored(param0, param), s, overwrite
            )
            store(param0, PARAM, param_at, i, param)
            store(accumulator0, ACCUMULATOR, accumulator_at, i, state0)
            store(state0, MOMENTUM, momentum_at, i, momentum)
            store(state0, VELOCITY, velocity_at, i, velocity)
            store(velocity_max0, VELOCITY_MAX, velocity_max_at, i, velocity_max)
            store(average0, AVERAGE, average_at, i, average)


@njit(nogil=True, error_model="numpy")
def average(table, scalars, pieces, first, last, param0, average0, overwrite):
    """Take variables that sit an update out into their moving averages."""
    for piece in range(first, last):
        row = pieces[piece, 0]
        param_at = table[row, PARAM]
        average_at = table[row, AVERAGE]
        s = _row_scalars(scalars, row)
        for i in range(pieces[piece, 1], pieces[piece, 2]):
            new, param = _averaged(
                load(average0, AVERAGE, average_at, i),
                load(param0, PARAM, param_at, i),
                s,
                overwrite,
            )
            store(average0, AVERAGE, average_at, i, new)
            if overwrite:
                store(param0, PARAM, param_at, i, param)


@njit(nogil=True, error_model="numpy")
def accumulate(table, pieces, first, last, grad0, accumulator0, loss_scale):
    """Add a micro-batch's gradients to the accumulators."""
    for piece in range(first, last):
        row = pieces[piece, 0]
        grad_at = table[row, GRAD]
        accumulator_at = table[row, ACCUMULATOR]
        for i in range(pieces[piece, 1], pieces[piece, 2]):
            total = _accumulate(
                load(accumulator0, ACCUMULATOR, accumulator_at, i),
                cast(load(grad0, GRAD, grad_at, i), accumulator0),
                loss_scale,
            )
            store(accumulator0, ACCUMULATOR, accumulator_at, i, total)


# The order of the sum is left to the compiler, which keeps several partial sums.
@njit(nogil=True, error_model="numpy", fastmath={"reassoc"})
def squares(table, pieces, first, last, sums, param0, grad0, accumulator0, loss_scale, factor):
    """Write the sum of the squares of each piece's gradients, times `factor`, in float64."""
    for piece in range(first, last):
        row = pieces[piece, 0]
        grad_at = table[row, GRAD]
        accumulator_at = table[row, ACCUMULATOR]
        total = 0.0
        for i in range(pieces[piece, 1], pieces[piece, 2]):
            grad = factor * _accumulate(
                load(accumulator0, ACCUMULATOR, accumulator_at, i),
                cast(load(grad0, GRAD, grad_at, i), param0),
                loss_scale,
            )
            total += grad * grad
        sums[piece] = total


remember([_rule, _plan, formats, sys.modules[__name__]], update, average, accumulate, squares)

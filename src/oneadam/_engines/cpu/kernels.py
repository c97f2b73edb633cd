"""The rule, compiled for one element at a time over a table of addresses.

Every kernel takes shares of a task, whose words `layout` names, until none is left; any number of
threads may do so at once. A share is some pieces, rows of (variable, first element, element after
the last). A kernel holds no reference and checks nothing: the caller keeps the memory alive and has
checked it. Parameters whose names end in 0 are markers of formats.

`cast` brings a gradient of another width to the compute dtype of the variable.
"""

# Numba's decorators and the rule are untyped.
# mypy: ignore-errors

from __future__ import annotations

import math

from numba import njit

from oneadam import _rule
from oneadam._engines.cpu.elements import (
    KERNEL,
    as_stored,
    cast,
    integers,
    load,
    number,
    pointer,
    store,
    take,
)
from oneadam._engines.cpu.layout import (
    ACCUMULATOR,
    AVERAGE,
    BACKWARDS,
    COLUMNS,
    EDGES,
    FACTOR,
    GRAD,
    LIMIT,
    LOSS_SCALE,
    MOMENTUM,
    OVERWRITE,
    PARAM,
    PIECES,
    SCALARS,
    SHARES,
    STRIDE,
    SUMS,
    TABLE,
    VELOCITY,
    VELOCITY_MAX,
)
from oneadam._plan import Scalars

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


# Clipping has a NaN in its first argument only, which one machine instruction each can do.
@njit
def _at_least(a, b):
    return b if a < b else a


@njit
def _at_most(a, b):
    return b if a > b else a


@njit
def _scalars_at(scalars, at):
    return Scalars(
        scalars[at],
        scalars[at + 1],
        scalars[at + 2],
        scalars[at + 3],
        scalars[at + 4],
        scalars[at + 5],
        scalars[at + 6],
        scalars[at + 7],
        scalars[at + 8],
        scalars[at + 9],
        scalars[at + 10],
        scalars[at + 11],
    )


@njit
def next_share(task):
    """Return a share that no other thread takes, or -1 if none is left."""
    share = take(task)
    if share >= task[SHARES]:
        return -1
    return task[SHARES] - 1 - share if task[BACKWARDS] else share


@njit
def _averaged(param0, average, param, s, overwrite):
    """Return the new average, and what the variable becomes: itself, or the average."""
    if average is None:
        return average, param
    else:
        stored = as_stored(param0, param)
        average = _moving_average(average, stored, s)
        return average, average if overwrite != 0 else stored


@njit
def _optional(marker, value):
    if marker is None:
        return None
    else:
        return value


@njit(**KERNEL)
def update(
    task,
    param0,
    grad0,
    accumulator0,
    state0,
    velocity_max0,
    average0,
    decay0,
    loss_scale0,
    limit0,
):
    """Take one update: gradient, decay, Adam, moving average, in one pass over memory."""
    table, scalars = integers(task[TABLE]), pointer(state0, task[SCALARS])
    loss_scale, limit = number(loss_scale0, task[LOSS_SCALE]), number(limit0, task[LIMIT])
    overwrite, nothing = task[OVERWRITE], cast(0.0, state0)
    pieces, edges = integers(task[PIECES]), integers(task[EDGES])
    share = next_share(task)
    while share >= 0:
        for piece in range(edges[share], edges[share + 1]):
            row = pieces[3 * piece]
            param_at = table[row * COLUMNS + PARAM]
            grad_at = table[row * COLUMNS + GRAD]
            accumulator_at = table[row * COLUMNS + ACCUMULATOR]
            momentum_at = table[row * COLUMNS + MOMENTUM]
            velocity_at = table[row * COLUMNS + VELOCITY]
            velocity_max_at = table[row * COLUMNS + VELOCITY_MAX]
            average_at = table[row * COLUMNS + AVERAGE]
            s = _scalars_at(scalars, row * task[STRIDE])
            decay = _optional(decay0, s.decay)
            for i in range(pieces[3 * piece + 1], pieces[3 * piece + 2]):
                grad = _accumulate(
                    load(accumulator0, ACCUMULATOR, accumulator_at, i),
                    cast(load(grad0, GRAD, grad_at, i), param0),
                    loss_scale,
                )
                param, momentum, velocity, velocity_max = _adam(
                    load(param0, PARAM, param_at, i),
                    _clip(grad, limit, s, _at_least, _at_most),
                    load(state0, MOMENTUM, momentum_at, i),
                    load(state0, VELOCITY, velocity_at, i),
                    load(velocity_max0, VELOCITY_MAX, velocity_max_at, i),
                    decay,
                    s,
                    _sqrt,
                    _maximum,
                )
                average, param = _averaged(
                    param0, load(average0, AVERAGE, average_at, i), param, s, overwrite
                )
                store(param0, PARAM, param_at, i, param)
                store(accumulator0, ACCUMULATOR, accumulator_at, i, nothing)
                store(state0, MOMENTUM, momentum_at, i, momentum)
                store(state0, VELOCITY, velocity_at, i, velocity)
                store(velocity_max0, VELOCITY_MAX, velocity_max_at, i, velocity_max)
                store(average0, AVERAGE, average_at, i, average)
        share = next_share(task)


@njit(**KERNEL)
def average(task, param0, average0):
    """Take variables that sit an update out into their moving averages."""
    table, scalars = integers(task[TABLE]), pointer(average0, task[SCALARS])
    overwrite = task[OVERWRITE]
    pieces, edges = integers(task[PIECES]), integers(task[EDGES])
    share = next_share(task)
    while share >= 0:
        for piece in range(edges[share], edges[share + 1]):
            row = pieces[3 * piece]
            param_at = table[row * COLUMNS + PARAM]
            average_at = table[row * COLUMNS + AVERAGE]
            s = _scalars_at(scalars, row * task[STRIDE])
            for i in range(pieces[3 * piece + 1], pieces[3 * piece + 2]):
                new, param = _averaged(
                    param0,
                    load(average0, AVERAGE, average_at, i),
                    load(param0, PARAM, param_at, i),
                    s,
                    overwrite,
                )
                store(average0, AVERAGE, average_at, i, new)
                if overwrite != 0:
                    store(param0, PARAM, param_at, i, param)
        share = next_share(task)


@njit(**KERNEL)
def accumulate(task, grad0, accumulator0, loss_scale0):
    """Add a micro-batch's gradients to the accumulators."""
    table, loss_scale = integers(task[TABLE]), number(loss_scale0, task[LOSS_SCALE])
    pieces, edges = integers(task[PIECES]), integers(task[EDGES])
    share = next_share(task)
    while share >= 0:
        for piece in range(edges[share], edges[share + 1]):
            row = pieces[3 * piece]
            grad_at = table[row * COLUMNS + GRAD]
            accumulator_at = table[row * COLUMNS + ACCUMULATOR]
            for i in range(pieces[3 * piece + 1], pieces[3 * piece + 2]):
                total = _accumulate(
                    load(accumulator0, ACCUMULATOR, accumulator_at, i),
                    cast(load(grad0, GRAD, grad_at, i), accumulator0),
                    loss_scale,
                )
                store(accumulator0, ACCUMULATOR, accumulator_at, i, total)
        share = next_share(task)


# The order of the sum is left to the compiler, which keeps several partial sums.
@njit(fastmath={"reassoc"}, **KERNEL)
def squares(task, param0, grad0, accumulator0, loss_scale0, sum0):
    """Write the sum of the squares of each piece's gradients, times a factor, in float64."""
    table, sums = integers(task[TABLE]), pointer(sum0, task[SUMS])
    loss_scale, factor = number(loss_scale0, task[LOSS_SCALE]), number(sum0, task[FACTOR])
    pieces, edges = integers(task[PIECES]), integers(task[EDGES])
    share = next_share(task)
    while share >= 0:
        for piece in range(edges[share], edges[share + 1]):
            row = pieces[3 * piece]
            grad_at = table[row * COLUMNS + GRAD]
            accumulator_at = table[row * COLUMNS + ACCUMULATOR]
            total = 0.0
            for i in range(pieces[3 * piece + 1], pieces[3 * piece + 2]):
                grad = factor * _accumulate(
                    load(accumulator0, ACCUMULATOR, accumulator_at, i),
                    cast(load(grad0, GRAD, grad_at, i), param0),
                    loss_scale,
                )
                total += grad * grad
            sums[piece] = total
        share = next_share(task)

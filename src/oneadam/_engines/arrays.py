"""The rule on whole arrays of any namespace that speaks the array API's names.

Nothing is written in place: the functions return new arrays. It serves devices without an
engine of their own, traced code and checks in float64.
"""

from __future__ import annotations

from typing import Any

from oneadam import _rule
from oneadam._engines import Buffers, Options
from oneadam._plan import Scalars

Array = Any
Namespace = Any


def update(buffers: Buffers, s: Scalars, options: Options, xp: Namespace) -> Buffers:
    """Return the buffers of one variable after an update; the gradient is gone.

    Args:
        buffers: arrays of `xp`; the state in the compute dtype.
        s: numbers, or 0-d arrays of the compute dtype.
        options: what holds for every element.
        xp: the namespace of the arrays, e.g. `numpy`.
    """
    dtype = compute_dtype(buffers.param, xp)
    param, momentum, velocity, velocity_max = _rule.adam(
        xp.asarray(buffers.param, dtype=dtype),
        _rule.clip(accumulated(buffers, options, xp), options.limit, s, xp.maximum, xp.minimum),
        buffers.momentum,
        buffers.velocity,
        buffers.velocity_max,
        s.decay if options.decays else None,
        s,
        xp.sqrt,
        xp.maximum,
    )
    param = xp.asarray(param, dtype=buffers.param.dtype)
    accumulator = buffers.accumulator
    after = Buffers(
        param=param,
        grad=None,
        accumulator=None if accumulator is None else xp.zeros_like(accumulator),
        momentum=momentum,
        velocity=velocity,
        velocity_max=velocity_max,
        average=buffers.average,
    )
    return after if after.average is None else average(after, s, options, xp)


def average(buffers: Buffers, s: Scalars, options: Options, xp: Namespace) -> Buffers:
    """Return the buffers with the variable taken into its moving average."""
    widened = xp.asarray(buffers.param, dtype=compute_dtype(buffers.param, xp))
    new = _rule.moving_average(buffers.average, widened, s)
    if not options.overwrite:
        return buffers._replace(average=new)
    return buffers._replace(average=new, param=xp.asarray(new, dtype=buffers.param.dtype))


def accumulated(buffers: Buffers, options: Options, xp: Namespace) -> Array:
    """Return the sum of the accumulation window, this call's gradient included."""
    grad = buffers.grad
    if grad is not None:
        grad = xp.asarray(grad, dtype=compute_dtype(buffers.param, xp))
    return _rule.accumulate(buffers.accumulator, grad, options.loss_scale)


def compute_dtype(param: Array, xp: Namespace) -> Any:
    """Return the dtype that a variable is computed in."""
    return xp.float64 if param.dtype == xp.float64 else xp.float32

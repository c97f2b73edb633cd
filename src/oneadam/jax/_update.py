"""The arithmetic of one call on a list of parameters, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oneadam import _plan
from oneadam._engines import Buffers, Options, arrays
from oneadam._plan import Scalars, Settings
from oneadam.jax import _norms, _numbers, _shards
from oneadam.jax._arguments import Arguments
from oneadam.jax._norms import Norm
from oneadam.jax._state import Rates

Array = Any
Factors = tuple[Array, Array]
"""Two numbers that gradients are multiplied by one after the other."""


class Measured(NamedTuple):
    """The norms of the sums of a window, before they are averaged."""

    each: list[Norm]
    """Of what is held to a limit: every parameter's, or the one of all together."""
    whole: Array
    """Over all parameters."""
    is_finite: Array


class Scaling(NamedTuple):
    """How the sums of a window are averaged and clipped."""

    factors: Sequence[Factors]
    """For each parameter that has a gradient, or once for all."""
    gradient_norm: Array | None
    clip_scale: Array | None


def measured(own: Arguments, rows: Sequence[Buffers]) -> Measured | None:
    """Return the norms that a call needs, if it needs any."""
    clips_each = own.value("clipnorm") is not None
    clips = clips_each or own.value("global_clipnorm") is not None
    if not clips and own.checked.on_nonfinite == "propagate":
        return None
    sums, axes = [], []
    for row in rows:
        total = accumulated(row, own)
        if total is not None:
            sums.append(total)
            axes.append(_shards.axes_of(row.param, own.sharded_over))
    groups = [[total] for total in sums] if clips_each else [sums]
    each = _norms.norms(groups, [[over] for over in axes] if clips_each else [axes])
    is_finite = jnp.stack([jnp.isfinite(norm.size) for norm in each]).all()
    return Measured(each, _norms.together(each), ~_shards.anywhere(~is_finite))


def scaling(own: Arguments, norms: Measured | None, divisor: Any) -> Scaling:
    """Return how the sums of a window over so many calls are averaged and clipped."""
    one, mean = _numbers.number(1.0), 1.0 / _numbers.number(divisor)
    if norms is None:
        return Scaling([(mean, one)], None, None)
    limit = own.value("clipnorm")
    if limit is None:
        limit = own.value("global_clipnorm")
    if limit is None:
        return Scaling([(mean, one)], norms.whole * mean, None)
    limit = _numbers.number(limit)
    factors = [_clipped(Norm(norm.size * mean, norm.power), limit) for norm in norms.each]
    smallest = jnp.stack([scale * power for scale, power in factors]).min()
    return Scaling(
        [(scale * mean, power) for scale, power in factors], norms.whole * mean, smallest
    )


def _clipped(norm: Norm, limit: Array) -> Factors:
    """Return two factors, the second a power of two, that bring a norm down to a limit."""
    # The limit over a norm that is not finite would be zero, and hide it.
    size = jnp.where(jnp.isfinite(norm.size), norm.size, np.nan)
    within = (size <= limit * norm.power) | jnp.isposinf(limit)
    scale = jnp.where(within, 1.0, limit / jnp.where(within, 1.0, size))
    power = jnp.where(within, 1.0, norm.power)
    whole = scale * power
    # Two only where the one would be too small for the dtype of the gradient.
    if whole.dtype == np.float64:
        factors: Factors = _plan.split(whole, jnp)
        return factors
    is_normal = ~(whole < 2.0**-100)
    return jnp.where(is_normal, whole, scale), jnp.where(is_normal, 1.0, power)


def scalars(own: Arguments, rates: Rates, updates: Array, averaged: Array) -> Scalars:
    """Return the scalars of an update, those of the gradient left at one.

    Args:
        own: the arguments.
        rates: of this call.
        updates: the counter of all parameters, or a row of them, this update included.
        averaged: bool, whether averages have been taken before.
    """
    decay, one = own.value("weight_decay"), _numbers.number(1.0)
    settings = Settings(
        rates,
        _numbers.number(own.value("epsilon")),
        _numbers.number(0.0 if decay is None else decay),
        own.checked.epsilon_hat,
        _numbers.number(own.value("ema_momentum")),
    )
    return _plan.scalars(
        settings,
        # A parameter that has not been updated yet has no t, and its scalars no use.
        steps=jnp.maximum(_numbers.as_number(updates), 1.0),
        decayed=True,
        averaged=averaged,
        grad_scales=(one, one),
        xp=jnp,
    )


def of_parameter(
    own: Arguments, s: Scalars, number: int, factors: Factors, decays: bool, dtype: Any
) -> Scalars:
    """Return the scalars of one parameter.

    Args:
        own: the arguments.
        s: of all.
        number: of the parameter, where they are rows.
        factors: of its gradient.
        decays: bool, whether it is not exempt from weight decay.
        dtype: that it is computed in.
    """
    decays = decays and own.value("weight_decay") is not None
    picked = [column[number] if jnp.ndim(column) else column for column in s]
    found = Scalars(*picked)._replace(grad_scale=factors[0], grad_scale_power=factors[1])
    return Scalars(*(jnp.asarray(value, dtype) for value in found))._replace(
        **({} if decays else {"decay": None})
    )


def updated(
    own: Arguments,
    row: Buffers,
    s: Scalars,
    takes_part: Array | None,
    overwrites: Array | None,
    constraint: Callable[[Array], Array] | None,
) -> Buffers:
    """Return the buffers of a parameter after an update; the accumulator stays as it is.

    Args:
        own: the arguments.
        row: the parameter, its gradient and its state.
        s: its scalars.
        takes_part: bool, whether a call of the window has given it a gradient; None: one has.
        overwrites: bool, whether parameters become their averages; None: they do not.
        constraint: what every new value of the parameter is put through, if anything.
    """
    numbers = (own.value("loss_scale_factor"), own.value("clipvalue"))
    after: Buffers = _updated(row, s, *numbers, takes_part, overwrites, constraint)
    return after


@partial(jax.jit, static_argnums=6)  # traced once for all parameters of one shape
def _updated(
    row: Buffers,
    s: Scalars,
    loss_scale: Any,
    limit: Any,
    takes_part: Any,
    overwrites: Any,
    constraint: Callable[[Array], Array] | None,
) -> Buffers:
    def constrained(param: Array) -> Array:
        return param if constraint is None else constraint(param).astype(param.dtype)

    options = Options(loss_scale, limit, decays=s.decay is not None)
    after = before = row._replace(grad=None, average=None)
    if row.grad is not None or row.accumulator is not None:
        after = arrays.update(row._replace(average=None), s, options, _Namespace)
        after = after._replace(param=constrained(after.param))
        if takes_part is not None:
            after = jax.tree.map(lambda a, b: jnp.where(takes_part, a, b), after, before)
    if row.average is None:
        return after
    after = arrays.average(after._replace(average=row.average), s, options, jnp)
    if overwrites is None:
        return after
    average = constrained(after.average.astype(after.param.dtype))
    return after._replace(param=jnp.where(overwrites, average, after.param))


class _Namespace:
    """What `arrays` needs of `jax.numpy`."""

    float32, float64 = jnp.float32, jnp.float64
    asarray, maximum, minimum = jnp.asarray, jnp.maximum, jnp.minimum
    sqrt = _norms.root

    @staticmethod
    def zeros_like(accumulator: Array) -> Array:
        """Return the accumulator, which is emptied where the window is known to be closed."""
        return accumulator


def accumulated(row: Buffers, own: Arguments) -> Array:
    """Return the sum of a window with this call's gradient, None where there is neither."""
    return arrays.accumulated(row, Options(own.value("loss_scale_factor")), jnp)

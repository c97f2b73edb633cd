"""Norms that neither overflow nor underflow, wherever the gradients lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oneadam.jax import _numbers, _shards
from oneadam.jax._shards import Axes

Array = Any


class Norm(NamedTuple):
    """A norm that may lie outside the range of its dtype: `size / power`.

    The size is a normal number or zero, and finite if and only if all elements are; the power is
    one of two.
    """

    size: Array
    power: Array

    @property
    def value(self) -> Array:
        """The norm itself, infinite if it is too large."""
        return self.size / self.power


class _Range(NamedTuple):
    """Sums of squares between the limits are exact; others are, once elements are multiplied."""

    least: float
    most: float
    raising: float
    """What small elements are multiplied by. Its square is finite: the compiler may multiply the
    square of a gradient that it knows, such as 0, by that."""
    factor: float
    """What large elements are divided by."""


_RANGES = {"float32": _Range(2.0**-64, 2.0**96, 2.0**63, 2.0**80),
           "float64": _Range(2.0**-500, 2.0**900, 2.0**511, 2.0**640)}  # fmt: skip


@jax.custom_jvp
def root(square: Array) -> Array:
    """Return the square root, with a derivative of zero at zero.

    There the true one is infinite, and times the zero of what was squared it would be NaN.
    """
    return jnp.sqrt(square)


@root.defjvp
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value = root(primals[0])
    is_zero = value == 0
    half = jnp.where(is_zero, 0, 0.5 / jnp.where(is_zero, 1, value))
    return value, half * tangents[0]


def norms(groups: Sequence[Sequence[Array]], axes: Sequence[Sequence[Axes]]) -> list[Norm]:
    """Return the norm of each group of gradients, reading them once but in rare cases.

    Args:
        groups: arrays of a compute dtype.
        axes: over which the shards of each lie.
    """
    limits = _RANGES[str(_numbers.real())]
    one = _numbers.number(1.0)
    plain = _squares(groups, axes, [one] * len(groups))
    fits = jnp.asarray([(limits.least < square) & (square < limits.most) for square in plain])
    powers = [
        jnp.where(
            square < limits.least,
            limits.raising,
            jnp.where(square < limits.most, 1.0, 1.0 / limits.factor),
        ).astype(one.dtype)
        for square in plain
    ]
    squares, powers = jax.lax.cond(
        fits.all(),
        lambda: (plain, [one] * len(groups)),
        lambda: (_squares(groups, axes, powers), powers),
    )
    return [Norm(root(square), power) for square, power in zip(squares, powers, strict=True)]


def together(norms: Sequence[Norm]) -> Array:
    """Return the norm over all of several norms."""
    values = jnp.stack([norm.value for norm in norms])
    largest = jax.lax.stop_gradient(values.max())
    is_plain = (largest > 0) & jnp.isfinite(largest)
    unit = jnp.where(is_plain, largest, 1.0)
    return root(jnp.sum((values / unit) ** 2)) * unit


def _squares(
    groups: Sequence[Sequence[Array]], axes: Sequence[Sequence[Axes]], powers: Sequence[Array]
) -> list[Array]:
    return [
        _shards.total([_sum_of_squares(array, power) for array in group], over)
        for group, over, power in zip(groups, axes, powers, strict=True)
    ]


@jax.jit
def _sum_of_squares(array: Array, power: Array) -> Array:
    scaled = array.astype(np.promote_types(array.dtype, power.dtype)) * power
    return jnp.sum(scaled * scaled)

"""What the devices of a `shard_map` hold of a parameter, and sums over all of them.

Elsewhere JAX shows whole arrays, whatever their sharding, and nothing is to be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = Any
Axes = frozenset[str]


def axes_of(param: Array, declared: tuple[str, ...] | None) -> Axes:
    """Return the names of the axes over which the shards of a parameter lie.

    Args:
        param: as `shard_map` shows it to one device.
        declared: the axes that the user names, where JAX does not know.

    Raises:
        ValueError: nobody knows.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if not manual:
        return frozenset()
    if _varying(jax.lax.axis_index(manual[0])):
        return _varying(param)
    if declared is None:
        raise ValueError(
            "sharded_over must name the axes over which the parameters are sharded, for their norms"
            f" are needed and nothing tells: inside pmap, or a shard_map with check_vma=False, over"
            f" {manual}, received None; pass () if they are replicated, or leave check_vma=True"
        )
    return frozenset(declared)


def _varying(array: Array) -> Axes:
    return frozenset(jax.typeof(array).mat.varying)


def total(parts: Sequence[Array], axes: Sequence[Axes]) -> Array:
    """Return the sum of numbers over all devices, asking each set of axes once.

    Args:
        parts: of this device.
        axes: over which each lies.
    """
    by_axes: dict[Axes, list[Array]] = {}
    for part, over in zip(parts, axes, strict=True):
        by_axes.setdefault(over, []).append(part)
    sums = [
        jax.lax.psum(_sum(each), tuple(sorted(over))) if over else _sum(each)
        for over, each in by_axes.items()
    ]
    return _sum(sums)


def _sum(numbers: list[Array]) -> Array:
    """Return a sum of numbers >= 0 that is rounded as if only once, in pairs of pairs.

    What an addition rounds off is found exactly and added at the end (D. E. Knuth, The Art of
    Computer Programming, volume 2, section 4.2.2, theorem B).
    """
    if len(numbers) == 1:
        return numbers[0]
    values = jnp.stack(numbers)
    rest = jnp.zeros_like(values)
    while len(values) > 1:
        values, rest = (jnp.pad(each, (0, len(values) % 2)) for each in (values, rest))
        (a, b), (rest_a, rest_b) = values.reshape(2, -1), rest.reshape(2, -1)
        values = a + b
        added = values - a
        lost = (a - (values - added)) + (b - added)
        rest = rest_a + rest_b + jnp.where(jnp.isfinite(values), lost, 0)
    return values[0] + rest[0]


def anywhere(flag: Array) -> Array:
    """Return whether a flag is set on any device."""
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if axes and _varying(jax.lax.axis_index(axes[0])):
        axes = tuple(sorted(_varying(flag)))
    return jax.lax.pmax(flag.astype(jnp.int32), axes) > 0 if axes else flag

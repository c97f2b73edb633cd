"""Pytrees of parameters and gradients: names, checks, and new ones like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.shard_alike import shard_alike
from jax.sharding import NamedSharding, PartitionSpec

from oneadam import _messages
from oneadam._engines import arrays

Array = Any
Tree = Any


def named(tree: Tree) -> dict[str, Any]:
    """Return the leaves by the names of their paths, such as `encoder/0/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def names(tree: Tree) -> list[str]:
    """Return the names of the leaves."""
    return list(named(tree))


def rebuilt(tree: Tree, leaves: Sequence[Any]) -> Tree:
    """Return a tree of the same structure with other leaves."""
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def check_parameters(params: Tree) -> None:
    """Refuse parameters that are no arrays of a real floating dtype, or have one name twice."""
    leaves = jax.tree.leaves(params)
    found = named(params)
    if len(found) != len(leaves):
        raise ValueError(
            "params must give every parameter a path of its own, received"
            f" {len(leaves)} parameters with {len(found)} paths; rename keys that have a / in them"
        )
    for name, leaf in found.items():
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(
                f"params must be arrays, received {leaf!r} ({type(leaf).__name__}) as {name!r};"
                " convert it with jnp.asarray"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"params must have a real floating dtype, received {leaf.dtype} for {name!r};"
                " leave it out, for example with optax.masked or equinox.filter"
            )


def checked(grads: Tree, params: Tree | None) -> tuple[list[Array], list[Array | None]]:
    """Return the parameters, and a gradient or None for each.

    Raises:
        TypeError, ValueError: gradients do not fit the parameters.
    """
    if params is None:
        raise ValueError(
            "params must be given to update, received None; call update(grads, state, params)"
        )
    check_parameters(params)
    leaves = [as_array(leaf) for leaf in jax.tree.leaves(params)]
    try:
        given = list[Any]()
        jax.tree.map(lambda leaf, grad: given.append(grad), params, grads)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"grads must have the structure of params, received another: {error}; take them with"
            " respect to these parameters, with None for what has no gradient"
        ) from error
    for name, leaf, grad in zip(names(params), leaves, given, strict=True):
        if grad is not None:
            _check_gradient(name, leaf, grad)
    return leaves, given


def _check_gradient(name: str, leaf: Array, grad: Any) -> None:
    if not hasattr(grad, "dtype") or not jnp.issubdtype(grad.dtype, jnp.floating):
        kind = getattr(grad, "dtype", type(grad).__name__)
        raise TypeError(
            f"grads must be arrays of a real floating dtype, received {kind} for {name!r}; take"
            " them with jax.grad of a real loss"
        )
    if grad.shape != leaf.shape:
        raise ValueError(
            f"grads must have the shapes of their parameters, received {grad.shape} for"
            f" {name!r} of shape {leaf.shape}; nothing is broadcast"
        )


def as_array(leaf: Array) -> Array:
    """Return an array of NumPy as one of JAX, which may be narrower."""
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def check_alike(what: str, tree: Tree, params: Tree) -> None:
    """Refuse a tree of the state that is of other parameters, or of others in other places."""
    found = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in named(tree).items()}
    wanted = {
        name: (leaf.shape, np.dtype(arrays.compute_dtype(leaf, jnp)).name)
        for name, leaf in named(params).items()
    }
    if list(found.items()) != list(wanted.items()):
        names = [name for name in wanted | found if found.get(name) != wanted.get(name)]
        raise ValueError(
            f"state must be that of these parameters, received one whose {what} differs in paths,"
            f" shapes, dtypes or order, at {_messages.listed(names or list(wanted))}; make it with"
            " init(params)"
        )


def zeros(leaf: Array) -> Array:
    """Return zeros like a parameter, in its compute dtype, where and how it lies."""
    leaf = as_array(leaf)
    dtype = arrays.compute_dtype(leaf, jnp)
    if isinstance(leaf, jax.core.Tracer):
        return zeros_beside(leaf, dtype)
    is_placed = isinstance(leaf, jax.Array) and leaf.committed
    return jnp.zeros_like(leaf, dtype=dtype, device=leaf.sharding if is_placed else None)


def placed(value: Any, like: Array) -> Array:
    """Return a value as an array of another one's dtype, where and how that lies."""
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
    value = value.astype(like.dtype)
    is_known = isinstance(like, jax.Array) and not isinstance(like, jax.core.Tracer)
    is_placed = is_known and like.committed
    return jax.device_put(value, like.sharding) if is_placed else jnp.asarray(value)


def zeros_beside(leaf: Array, dtype: Any = None) -> Array:
    """Return zeros like an array in traced code, sharded alike."""
    # The compiler sees no connection between an array and zeros, and would not shard these.
    return shard_alike(jnp.zeros_like(leaf, dtype=dtype), leaf)[0]


def zeros_of(shapes: Tree, near: Tree) -> Tree:
    """Return zeros of shapes and dtypes in traced code.

    Args:
        shapes: what has a shape and a dtype.
        near: arrays, some with the path and the shape of one of those, which is sharded alike.
    """
    found = named(near)

    def zero(path: Any, like: Any) -> Array:
        leaf = found.get(_name(path))
        if leaf is None or leaf.shape != like.shape:
            return jnp.zeros(like.shape, like.dtype)
        return zeros_beside(as_array(leaf), like.dtype)

    return jax.tree_util.tree_map_with_path(zero, shapes)


def beside(numbers: Tree, params: Tree) -> Tree:
    """Return numbers on the devices where the parameters lie, a copy on each."""
    placed = [
        leaf.sharding
        for leaf in jax.tree.leaves(params)
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.committed
    ]
    if not placed or any(one.device_set != placed[0].device_set for one in placed):
        return numbers
    place = placed[0]
    for sharding in placed:
        if isinstance(sharding, NamedSharding):
            place = NamedSharding(sharding.mesh, PartitionSpec())
    if len(place.device_set) > 1 and not isinstance(place, NamedSharding):
        return numbers
    return jax.device_put(numbers, place)

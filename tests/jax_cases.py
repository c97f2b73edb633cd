"""What the tests of the JAX door share: small parameters, their gradients, and whole runs."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneadam.jax import adam, loss_scale, step

Tree = Any

PLAIN: dict[str, Any] = {"learning_rate": 0.1}
CLIPPED: dict[str, Any] = {**PLAIN, "global_clipnorm": 1.0, "weight_decay": 0.01}
AVERAGED: dict[str, Any] = {**CLIPPED, "use_ema": True, "ema_overwrite_frequency": 2}
ACCUMULATING: dict[str, Any] = {**AVERAGED, "gradient_accumulation_steps": 2}
EVERYTHING: dict[str, Any] = {**ACCUMULATING, "amsgrad": True, "on_nonfinite": "skip"}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "clipped": CLIPPED,
    "averaged": AVERAGED,
    "accumulating": ACCUMULATING,
    "everything": EVERYTHING,
}


def made(config: dict[str, Any], scaled: bool = False) -> Any:
    """Return the transformation of a configuration of numbers, always the same one.

    Args:
        config: the arguments.
        scaled: whether it is under a loss scale of 8 that grows after 3 calls.
    """
    return _made(tuple(config.items()), scaled)


@functools.cache
def _made(config: tuple[tuple[str, Any], ...], scaled: bool) -> Any:
    transformation = adam(**dict(config))
    return loss_scale(transformation, 8.0, 3) if scaled else transformation


def parameters(seed: int = 0, dtype: Any = np.float32) -> dict[str, Any]:
    """Return a matrix, a vector and a number."""
    return {name: array * 0.5 for name, array in gradients(1000 + seed, dtype).items()}


def gradients(seed: int, dtype: Any = np.float32) -> dict[str, Any]:
    """Return a gradient for each of `parameters`, far from zero."""
    draw = np.random.default_rng(seed)
    shapes = {"bias": (3,), "kernel": (4, 3), "scale": ()}
    return {
        name: jnp.asarray(draw.choice([-1.0, 1.0], shape) * draw.uniform(0.5, 2.0, shape), dtype)
        for name, shape in shapes.items()
    }


def compiled(transformation: Any, **options: Any) -> Any:
    """Return a new compiled step of (parameters, state, gradients)."""

    def taken(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        return step(transformation, grads, state, params)

    return jax.jit(taken, **options)


@functools.cache
def _compiled_once(transformation: Any) -> Any:
    return compiled(transformation)


def call(transformation: Any, grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
    """Take a step that is compiled once for all tests."""
    result: tuple[Tree, Tree] = _compiled_once(transformation)(params, state, grads)
    return result


def trained(
    transformation: Any, params: Tree, every: Iterable[Tree], state: Tree = None
) -> tuple[Tree, Tree]:
    """Return parameters and state after a call with each of the gradients."""
    state = transformation.init(params) if state is None else state
    for grads in every:
        params, state = call(transformation, grads, state, params)
    return params, state


def same(left: Tree, right: Tree) -> None:
    """Assert that two trees are the same to the last bit, dtypes and structure included."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    pairs = zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True)
    for (path, a), b in pairs:
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), (
            f"{jax.tree_util.keystr(path)}: {a} and {b}"
        )
        assert a.tobytes() == b.tobytes(), f"{jax.tree_util.keystr(path)}: {a} and {b}"


def close(left: Tree, right: Tree, spacings: float) -> None:
    """Assert that two trees agree within so many float32 spacings of their largest elements."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    for a, b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        unit = np.spacing(np.float32(max(np.abs(b).max(initial=0.0), 1e-30)))
        assert np.abs(a - b).max(initial=0.0) <= spacings * unit, f"{a}\n{b}"

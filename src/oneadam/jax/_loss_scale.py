"""The dynamic loss scale as a transformation around another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from oneadam import _loss_scale
from oneadam._engines import arrays
from oneadam._loss_scale import Settings
from oneadam.jax import _numbers, _shards, _trees, _within
from oneadam.jax._adam import Adam, with_absences
from oneadam.jax._eager import compiled_from_python
from oneadam.jax._state import AdamState, LossScaleState

Array = Any
Tree = Any


class LossScale:
    """What `oneadam.jax.loss_scale` is made of.

    Args:
        inner: the transformation that takes the unscaled gradients.
        settings: the arguments.
    """

    def __init__(self, inner: Any, settings: Settings) -> None:
        if not callable(getattr(inner, "init", None)) or not hasattr(inner, "update"):
            raise TypeError(
                f"inner must be a gradient transformation, received {inner!r}; pass what adam(...)"
                " or a function of optax returned"
            )
        self.inner = optax.with_extra_args_support(inner)
        self.settings = settings
        found = made_of(inner)
        self.adam = found if isinstance(found, Adam) else None
        if self.adam is not None:
            _loss_scale.check_inner(self.adam.own.value("loss_scale_factor"))
        self._update = compiled_from_python(self._updated)
        self._step = compiled_from_python(self._stepped)

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """Return the pair of functions that optax knows."""
        return optax.GradientTransformationExtraArgs(self.init, self.update)

    def init(self, params: Tree) -> LossScaleState:
        """Return the state at the beginning."""
        numbers = LossScaleState(
            scale=_numbers.number(self.settings.initial_scale),
            finite_calls=jnp.zeros((), np.int32),
            skipped_in_a_row=jnp.zeros((), np.int32),
            skipped_calls=_numbers.counter(),
            inner=None,
        )
        placed: LossScaleState = _trees.beside(numbers, params)
        return placed._replace(inner=self.inner.init(params))

    def update(
        self, grads: Tree, state: LossScaleState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, LossScaleState]:
        """Return what is to be added to the parameters, and the next state."""
        if self.adam is None:
            return self._updated(grads, state, params, **extra_args)
        result: tuple[Tree, LossScaleState] = self._update(grads, state, params)
        return result

    def _updated(
        self, grads: Tree, state: LossScaleState, params: Tree | None, **extra_args: Any
    ) -> tuple[Tree, LossScaleState]:
        state = _ready(state, grads, params)

        def taken(unscaled: Tree) -> tuple[Tree, Any]:
            result: tuple[Tree, Any] = self.inner.update(
                unscaled, state.inner, params, **extra_args
            )
            return result

        near = grads if params is None else params
        return self._taken(
            grads, state, params, taken, lambda shapes: _trees.zeros_of(shapes, near)
        )

    def step(self, grads: Tree, state: LossScaleState, params: Tree) -> tuple[Tree, LossScaleState]:
        """Return the next parameters and the next state."""
        result: tuple[Tree, LossScaleState] = (
            self._stepped(grads, state, params)
            if self.adam is None
            else self._step(grads, state, params)
        )
        return result

    def _stepped(
        self, grads: Tree, state: LossScaleState, params: Tree
    ) -> tuple[Tree, LossScaleState]:
        state = _ready(state, grads, params)
        return self._taken(
            grads,
            state,
            params,
            lambda unscaled: stepped(self.inner, unscaled, state.inner, params),
            lambda _: params,
        )

    def _taken(
        self,
        grads: Tree,
        state: LossScaleState,
        params: Tree | None,
        taken: Callable[[Tree], tuple[Tree, Any]],
        skipped: Callable[[Tree], Tree],
    ) -> tuple[Tree, LossScaleState]:
        def unscaled() -> Tree:
            return _unscaled(grads, state.scale, params)

        # Of the shapes that the other branch is to return.
        result = jax.eval_shape(lambda: taken(unscaled()))[0]
        flags = [jnp.isfinite(leaf).all() for leaf in self._judged(unscaled(), state.inner)]
        finite = ~_shards.anywhere(~jnp.stack(flags).all()) if flags else jnp.asarray(True)
        result, inner = jax.lax.cond(
            finite, lambda: taken(unscaled()), lambda: (skipped(result), state.inner)
        )
        return result, _next(state, finite, self.settings)._replace(inner=inner)

    def _judged(self, unscaled: Tree, inner: Any) -> list[Array]:
        """Return what must be finite: gradients, added to the window's sums if we know these."""
        if self.adam is None or self.adam.window == 1:
            return jax.tree.leaves(unscaled)
        sums = jax.tree.map(
            lambda total, grad: None if grad is None else total + grad.astype(total.dtype),
            inner.gradient_accumulator,
            unscaled,
        )
        return jax.tree.leaves(sums)


def _ready(state: LossScaleState, grads: Tree, params: Tree | None) -> LossScaleState:
    """Return the state with the structure that it will have, skipped or not."""
    if not isinstance(state, LossScaleState):
        raise TypeError(
            f"state must be a LossScaleState, received {type(state).__name__}; make it with"
            " init(params) of the loss scale"
        )
    if len(jax.tree.leaves(grads)) >= len(jax.tree.leaves(params)):
        return state
    return state._replace(inner=_within.in_each(state.inner, AdamState, with_absences))


def made_of(transformation: Any) -> Adam | LossScale | None:
    """Return what a transformation is made of, None if it is not one of ours."""
    found = getattr(getattr(transformation, "update", None), "__self__", None)
    return found if isinstance(found, (Adam, LossScale)) else None


def stepped(transformation: Any, grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
    """Return the parameters after a call, exactly where the transformation is one of ours."""
    found = made_of(transformation)
    if found is not None:
        return found.step(grads, state, params)
    updates, state = transformation.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def _unscaled(grads: Tree, scale: Array, params: Tree | None) -> Tree:
    """Return the gradients over the scale, as wide as what their parameters are computed in."""

    def over(grad: Any, param: Any) -> Any:
        if not jnp.issubdtype(getattr(grad, "dtype", np.bool_), jnp.inexact):
            return grad  # for the transformation inside to refuse
        computed = np.promote_types(grad.dtype, np.float32)
        if jnp.issubdtype(getattr(param, "dtype", np.bool_), jnp.floating):
            computed = np.promote_types(computed, arrays.compute_dtype(param, jnp))
        return grad.astype(computed) / scale.astype(computed)

    # Another structure is also for the transformation inside to refuse.
    found, wanted = (
        cast(Any, jax.tree.structure(tree, is_leaf=_is_none)) for tree in (grads, params)
    )
    near = params if found == wanted else grads
    return jax.tree.map(over, grads, near, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _next(state: LossScaleState, finite: Array, settings: Settings) -> LossScaleState:
    grows = finite & (state.finite_calls + 1 >= settings.dynamic_growth_steps)
    larger = jnp.minimum(state.scale * 2.0, _loss_scale.MAXIMUM_SCALE)
    smaller = jnp.maximum(state.scale / 2.0, settings.minimum_scale)
    row = jnp.minimum(state.skipped_in_a_row, 2**31 - 2) + 1
    return state._replace(
        scale=jnp.where(finite, jnp.where(grows, larger, state.scale), smaller),
        finite_calls=jnp.where(finite & ~grows, state.finite_calls + 1, 0),
        skipped_in_a_row=jnp.where(finite, 0, row),
        skipped_calls=_numbers.counted(state.skipped_calls, ~finite),
    )

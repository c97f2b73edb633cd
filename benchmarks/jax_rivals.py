"""Those who take compiled steps: oneadam through JAX's door, and what others would write instead.

A step is `step(params, state, grads) -> (params, state)`, in this order for everybody: the order
decides which donated buffer a result is written to. Keras is imported only where it takes part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import oneadam.jax
from benchmarks.models import Array, Model, random
from benchmarks.rivals import RECIPE

WINDOW = 4
"""Calls to an update, where they are accumulated."""

_LEARNING_RATE, _EPSILON = 1e-3, 1e-8
_ACCUMULATING = {name: RECIPE[name] for name in ("weight_decay", "global_clipnorm")}

Tree = Any
Step = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


def _as_it_is(params: Tree, state: Tree) -> Tree:
    return state


class Recipe(NamedTuple):
    """How somebody begins and goes on."""

    begin: Callable[[Tree], Tree]
    """The state, given the parameters."""
    step: Step
    moments: Callable[[Tree], list[Tree]]
    """The trees of a state that others have as well."""
    settled: Callable[[Tree, Tree], Tree] = _as_it_is
    """The state after the first step, given the parameters and the state then."""


def oneadam_recipe(**arguments: Any) -> Recipe:
    """Return oneadam's; its epsilon stands where optax's does, unless the arguments tell."""
    arguments = {"epsilon": _EPSILON, "epsilon_hat": False} | arguments
    transformation = oneadam.jax.adam(_LEARNING_RATE, **arguments)

    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        after, new = oneadam.jax.step(transformation, grads, state, params)
        return after, new

    def moments(state: Tree) -> list[Tree]:
        average = [] if state.average is None else [state.average]
        return [state.momentum, state.velocity, *average]

    return Recipe(transformation.init, step, moments)


def oneadam_accumulating() -> Recipe:
    """Return clipping, decay and accumulation by oneadam."""
    return oneadam_recipe(gradient_accumulation_steps=WINDOW, **_ACCUMULATING)


def optax_plain() -> Recipe:
    """Return `optax.adam`."""
    return _through_optax(optax.adam(_LEARNING_RATE))


def optax_full() -> Recipe:
    """Return clipping by the global norm, AdamW, and a moving average of the parameters."""
    inner = _through_optax(_clip_and_adamw())

    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        params, own = inner.step(params, state[0], grads)
        kept = RECIPE["ema_momentum"]
        return params, (own, optax.incremental_update(params, state[1], 1.0 - kept))

    return Recipe(
        lambda params: (inner.begin(params), jax.tree.map(jnp.copy, params)),
        step,
        lambda state: [*inner.moments(state[0]), state[1]],
        # The first average is the parameters after the first step.
        lambda params, state: (state[0], jax.tree.map(jnp.copy, params)),
    )


def optax_accumulating() -> Recipe:
    """Return `optax.MultiSteps` around clipping and AdamW."""
    every = optax.MultiSteps(_clip_and_adamw(), WINDOW)
    return _through_optax(every.gradient_transformation())


def keras_recipe(model: Model, **arguments: Any) -> Recipe:
    """Return `keras.optimizers.Adam` on JAX, without side effects.

    Args:
        model: whose parameters it takes.
        arguments: of the optimizer.
    """
    keras = _keras()
    optimizer = keras.optimizers.Adam(_LEARNING_RATE, **arguments)
    optimizer.build([keras.Variable(np.zeros(shape, np.float32)) for shape in model.shapes])
    paths = [variable.path for variable in optimizer.variables]

    def begin(params: Tree) -> Tree:
        return [variable.value for variable in optimizer.variables]

    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        after, new = optimizer.stateless_apply(state, grads, params)
        return after, new

    def moments(state: Tree) -> list[Tree]:
        return [
            [value for path, value in zip(paths, state, strict=True) if path.endswith(kind)]
            for kind in ("_momentum", "_velocity", "_average")
        ]

    return Recipe(begin, step, moments)


def _clip_and_adamw() -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(RECIPE["global_clipnorm"]),
        optax.adamw(_LEARNING_RATE, weight_decay=RECIPE["weight_decay"]),
    )


def _through_optax(transformation: optax.GradientTransformation) -> Recipe:
    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def moments(state: Tree) -> list[Tree]:
        return [optax.tree_utils.tree_get(state, name) for name in ("mu", "nu")]

    return Recipe(transformation.init, step, moments)


def _keras() -> Any:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    if keras.backend.backend() != "jax":
        raise RuntimeError(
            f"keras must run on JAX, and was imported before with {keras.backend.backend()}"
        )
    return keras


def lowered(recipe: Recipe, model: Model) -> jax.stages.Lowered:
    """Return a step traced for a model, nothing of it allocated; parameters and state donated."""
    params = [jax.ShapeDtypeStruct(shape, np.float32) for shape in model.shapes]
    state = jax.eval_shape(recipe.begin, params)
    return jax.jit(recipe.step, donate_argnums=(0, 1)).lower(params, state, params)


def gradients(model: Model) -> list[jax.Array]:
    """Return the gradients of a model, which all contestants may be given: they are only read."""
    return [jnp.array(grad) for grad in random(model.shapes, 1)]


class Rival:
    """A compiled step of a model, with what it has come to, after the first call.

    Args:
        recipe: whose.
        model: whose parameters are updated.
        grads: of every call.
    """

    def __init__(self, recipe: Recipe, model: Model, grads: Sequence[jax.Array]) -> None:
        self._recipe, self._grads = recipe, list(grads)
        self._params: Tree = [jnp.array(param) for param in random(model.shapes, 0)]
        self._state: Tree = recipe.begin(self._params)
        self.compiled = (
            jax.jit(recipe.step, donate_argnums=(0, 1))
            .lower(self._params, self._state, self._grads)
            .compile()
        )
        self.step()
        self._state = recipe.settled(self._params, self._state)

    def step(self) -> None:
        """Make a call, and wait for it."""
        self._params, self._state = self.compiled(self._params, self._state, self._grads)
        jax.block_until_ready((self._params, self._state))

    def prepare(self) -> None:
        """Do nothing before a step."""

    def window(self) -> None:
        """Make as many calls as an update takes, where they are accumulated."""
        for _ in range(WINDOW):
            self.step()

    def results(self) -> list[Array]:
        """Return parameters and moments."""
        trees = [self._params, *self._recipe.moments(self._state)]
        return [np.asarray(leaf) for tree in trees for leaf in jax.tree.leaves(tree)]

    @property
    def bytes_accessed(self) -> float:
        """The bytes of memory that a call reads and writes, as the compiler counts them."""
        return float(self.compiled.cost_analysis()["bytes accessed"])

    @property
    def arguments(self) -> int:
        """The bytes of parameters, state and gradients."""
        return int(self.compiled.memory_analysis().argument_size_in_bytes)

    @property
    def beyond(self) -> int:
        """The bytes beyond the arguments that a call takes at most."""
        said = self.compiled.memory_analysis()
        written_elsewhere = said.output_size_in_bytes - said.alias_size_in_bytes
        return int(said.temp_size_in_bytes + written_elsewhere)

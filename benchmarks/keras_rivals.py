"""Those who take steps in Keras: oneadam's Adam and Keras's own, each as its backend does best.

Keras has one backend in each process: the one that `KERAS_BACKEND` names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import keras

import oneadam.keras
from benchmarks.models import Array, Model, random
from oneadam.cli import network
from oneadam.cli.digits import Digits
from oneadam.cli.network import HIDDEN, PIXELS
from oneadam.cli.recipe import Recipe
from oneadam.cli.training import arguments
from oneadam.schedules import CosineDecay

CLASSES = {"oneadam": oneadam.keras.Adam, "keras Adam": keras.optimizers.Adam}
"""By the names in tables."""

_LEARNING_RATE = 1e-3

Variable = Any
Tensor = Any


class Rival:
    """An optimizer of a model, after its first call.

    Args:
        who: a name in `CLASSES`.
        model: whose variables are updated.
        arguments: of the optimizer.
    """

    def __init__(self, who: str, model: Model, **arguments: Any) -> None:
        self._variables = [keras.Variable(value) for value in random(model.shapes, 0)]
        grads = [keras.ops.convert_to_tensor(grad) for grad in random(model.shapes, 1)]
        self._optimizer = CLASSES[who](_LEARNING_RATE, **arguments)
        self._optimizer.build(self._variables)
        self.step, self._finish = _WAYS[keras.backend.backend()](
            self._optimizer, self._variables, grads
        )
        self.step()

    def prepare(self) -> None:
        """Do nothing before a step."""

    def results(self) -> list[Array]:
        """Return variables, moments and averages."""
        self._finish()
        own = self._optimizer
        columns = [self._variables, own._momentums, own._velocities]
        if own.use_ema:
            columns.append(own._model_variables_moving_average)
        return [keras.ops.convert_to_numpy(one.value) for column in columns for one in column]


Way = tuple[Callable[[], object], Callable[[], object]]
"""A step that is over when it returns, and what brings its results into the variables."""


def _in_torch(optimizer: Any, variables: Sequence[Variable], grads: Sequence[Tensor]) -> Way:
    """Call the optimizer as it is, which works in place."""
    torch = importlib.import_module("torch")

    def step() -> None:
        with torch.no_grad():
            optimizer.apply(grads, variables)

    return step, lambda: None


def _in_jax(optimizer: Any, variables: Sequence[Variable], grads: Sequence[Tensor]) -> Way:
    """Compile a step whose variables are donated, as Keras's `fit` does."""
    jax = importlib.import_module("jax")
    every = (list(variables), list(optimizer.variables))
    values = [[jax.numpy.copy(variable.value) for variable in part] for part in every]

    def apply(trained: Any, own: Any, grads: Any) -> Any:
        return optimizer.stateless_apply(own, grads, trained)

    compiled = jax.jit(apply, donate_argnums=(0, 1))

    def step() -> None:
        values[:] = compiled(*values, grads)
        jax.block_until_ready(values)

    def finish() -> None:
        for part, found in zip(every, values, strict=True):
            for variable, value in zip(part, found, strict=True):
                variable.assign(jax.numpy.copy(value))

    return step, finish


def _in_tensorflow(optimizer: Any, variables: Sequence[Variable], grads: Sequence[Tensor]) -> Way:
    """Compile a step by XLA, as Keras's `fit` does."""
    tensorflow = importlib.import_module("tensorflow")

    def apply() -> None:
        optimizer.apply(grads, variables)

    return tensorflow.function(apply, jit_compile=True), lambda: None


_WAYS: dict[str, Callable[..., Way]] = {
    "torch": _in_torch,
    "jax": _in_jax,
    "tensorflow": _in_tensorflow,
}


def fitting(who: str, data: Digits, recipe: Recipe | None) -> Callable[[], object]:
    """Return what trains the demo's network for an epoch with `fit`, after the first epoch.

    Args:
        who: a name in `CLASSES`.
        data: the demo's.
        recipe: the demo's, or None for an optimizer without arguments.
    """
    batch = Recipe().batch
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((PIXELS,)),
            keras.layers.Dense(HIDDEN, "relu"),
            keras.layers.Dense(network.CLASSES),
        ]
    )
    # With averages Keras's own fails in its second `fit` on JAX.
    own = {} if recipe is None else {**arguments(recipe, data), "use_ema": False}
    if recipe is not None and who != "oneadam":
        own["learning_rate"] = _of_keras(own["learning_rate"])
    model.compile(
        optimizer=CLASSES[who](**own),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def epoch() -> None:
        model.fit(data.training.images, data.training.labels, batch_size=batch, verbose=0)

    epoch()
    return epoch


def _of_keras(schedule: CosineDecay) -> Any:
    """Return Keras's schedule of the same name and arguments."""
    return keras.optimizers.schedules.CosineDecay(**schedule.get_config())

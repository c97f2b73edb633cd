"""The demo's training with JAX: one compiled function per call, whose buffers are written in place.

No other module of the command imports JAX.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import oneadam.jax
from oneadam.cli import network, progress
from oneadam.cli.digits import Digits, Examples
from oneadam.cli.progress import Tensors
from oneadam.cli.recipe import Recipe
from oneadam.cli.training import arguments

Array = jax.Array
Parameters = dict[str, dict[str, Array]]


class Optimizer:
    """A transformation, with the parameters and the state that it has come to.

    Args:
        transformation: what `oneadam.jax.adam` returned.
        params: that it starts from.
    """

    def __init__(self, transformation: Any, params: Parameters) -> None:
        self.params = params
        self.state = transformation.init(params)
        self._transformation = transformation
        self._call = jax.jit(self._traced, donate_argnums=(0, 1))

    @property
    def updates(self) -> int:
        """The number of finished updates."""
        return int(self.metrics()["updates"])

    def metrics(self) -> dict[str, float]:
        """Return plain numbers to log."""
        return oneadam.jax.metrics(self.state)

    def step(self, images: Array, labels: Array) -> float:
        """Make one call with the gradients of a batch, and return its loss before."""
        self.params, self.state, loss = self._call(self.params, self.state, images, labels)
        return float(loss)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters be their averages for a block, in which there are no calls."""
        trained = self.params
        self.params = oneadam.jax.averaged(self.state, trained)
        try:
            yield
        finally:
            self.params = trained

    def flush(self) -> None:
        """Close an incomplete accumulation window."""
        self.params, self.state = oneadam.jax.flush(self._transformation, self.state, self.params)

    def save(self, path: Path) -> None:
        """Write a portable checkpoint."""
        oneadam.jax.save(path, self._transformation, self.state, self.params)

    def saved(self) -> Tensors:
        """Return the state by name."""
        return oneadam.jax.state_dict(self._transformation, self.state, self.params)

    def load(self, saved: Tensors) -> None:
        """Take over what `saved` returned."""
        self.state = oneadam.jax.load_state_dict(
            self._transformation, self.state, self.params, saved
        )

    def _traced(
        self, params: Parameters, state: Any, images: Array, labels: Array
    ) -> tuple[Parameters, Any, Array]:
        loss, grads = jax.value_and_grad(_loss)(params, images, labels)
        # Returned in the order of the arguments, so that each is written where it was.
        params, state = oneadam.jax.step(self._transformation, grads, state, params)
        return params, state, loss


class Training:
    """The network, from the weights that NumPy's starts from, and its optimizer."""

    def __init__(self, recipe: Recipe, digits: Digits) -> None:
        transformation = oneadam.jax.adam(
            **arguments(recipe, digits), exclude_from_weight_decay=["bias"]
        )
        params = jax.tree.map(jnp.array, network.initial_parameters(recipe.seed))
        self.optimizer = Optimizer(transformation, params)

    def step(self, batch: Examples) -> float:
        """Make one call with the gradients of a batch, and return its loss before."""
        return self.optimizer.step(*map(jnp.asarray, batch))

    def accuracy(self, examples: Examples) -> float:
        """Return the share of examples whose digit is recognised."""
        recognised = _logits(self.optimizer.params, jnp.asarray(examples.images)).argmax(axis=1)
        return float((jax.device_get(recognised) == examples.labels).mean())

    def tensors(self) -> Tensors:
        """Return all that has to be kept to continue later, by name."""
        weights = {
            f"{layer}/{name}": jax.device_get(value)
            for layer, arrays in self.optimizer.params.items()
            for name, value in arrays.items()
        }
        return progress.joined(weights=weights, optimizer=self.optimizer.saved())

    def restore(self, tensors: Tensors) -> None:
        """Take over what `tensors` returned, or raise ValueError where it does not fit."""
        progress.check_alike(tensors, self.tensors())
        saved = progress.part(tensors, "weights")
        self.optimizer.params = {
            layer: {name: jnp.array(saved[f"{layer}/{name}"]) for name in arrays}
            for layer, arrays in self.optimizer.params.items()
        }
        self.optimizer.load(progress.part(tensors, "optimizer"))


def _loss(params: Parameters, images: Array, labels: Array) -> Array:
    """Return the mean cross-entropy of a batch."""
    log_probabilities = jax.nn.log_softmax(_logits(params, images))
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()


def _logits(params: Parameters, images: Array) -> Array:
    hidden = jax.nn.relu(_through(params["hidden"], images))
    return _through(params["output"], hidden)


def _through(layer: dict[str, Array], inputs: Array) -> Array:
    # Accelerators would round float32 to fewer bits, and draw another curve.
    return jnp.matmul(inputs, layer["kernel"], precision="highest") + layer["bias"]

"""The demo's training with NumPy: gradients by hand, one call of `apply` per batch."""

from __future__ import annotations

from oneadam.cli import network, progress
from oneadam.cli.digits import Digits, Examples
from oneadam.cli.progress import Tensors
from oneadam.cli.recipe import Recipe
from oneadam.cli.training import arguments
from oneadam.numpy import Adam


class Training:
    """The network and its optimizer, before the first epoch."""

    def __init__(self, recipe: Recipe, digits: Digits) -> None:
        self._parameters = network.initial_parameters(recipe.seed)
        self.optimizer = Adam(**arguments(recipe, digits))
        self.optimizer.exclude_from_weight_decay(var_names=["bias"])
        self.optimizer.build(self._parameters)

    def step(self, batch: Examples) -> float:
        """Make one call with the gradients of a batch, and return its loss before."""
        loss, gradients = network.loss_and_gradients(self._parameters, batch)
        self.optimizer.apply(gradients)
        return loss

    def accuracy(self, examples: Examples) -> float:
        """Return the share of examples whose digit is recognised."""
        return network.accuracy(self._parameters, examples)

    def tensors(self) -> Tensors:
        """Return all that has to be kept to continue later, by name."""
        state = self.optimizer.state_dict()
        return progress.joined(weights=self._weights(), optimizer=state)

    def restore(self, tensors: Tensors) -> None:
        """Take over what `tensors` returned, or raise ValueError where it does not fit."""
        progress.check_alike(tensors, self.tensors())
        self.optimizer.load_state_dict(progress.part(tensors, "optimizer"))
        saved = progress.part(tensors, "weights")
        for name, weights in self._weights().items():
            weights[...] = saved[name]

    def _weights(self) -> Tensors:
        return {
            f"{layer}/{name}": value
            for layer, arrays in self._parameters.items()
            for name, value in arrays.items()
        }

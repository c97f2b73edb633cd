"""The demo's training with Keras: a model compiled with the optimizer, one batch after the other.

No other module of the command imports Keras, which runs on the backend that `KERAS_BACKEND` names.
"""

from __future__ import annotations

from importlib import import_module

import keras
import numpy as np

from oneadam.cli import network, progress
from oneadam.cli.digits import Digits, Examples
from oneadam.cli.progress import Tensors
from oneadam.cli.recipe import Recipe
from oneadam.cli.training import arguments
from oneadam.keras import Adam


class Training:
    """The network, from the weights that NumPy's starts from, and its optimizer."""

    def __init__(self, recipe: Recipe, digits: Digits) -> None:
        if keras.backend.backend() == "torch":
            # In a network this small, further threads only wait for each other.
            import_module("torch").set_num_threads(1)
        self._model = keras.Sequential(
            [
                keras.Input((network.PIXELS,)),
                keras.layers.Dense(network.HIDDEN, activation="relu", name="hidden"),
                keras.layers.Dense(network.CLASSES, name="output"),
            ],
            name="digits",
        )
        for layer, arrays in network.initial_parameters(recipe.seed).items():
            self._model.get_layer(layer).set_weights([arrays["kernel"], arrays["bias"]])
        self.optimizer = Adam(**arguments(recipe, digits), name="adam")
        self.optimizer.exclude_from_weight_decay(var_names=["bias"])
        self._model.compile(
            optimizer=self.optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        self.optimizer.build(self._model.trainable_variables)

    def step(self, batch: Examples) -> float:
        """Make one call with the gradients of a batch, and return its loss before."""
        return float(self._model.train_on_batch(batch.images, batch.labels))

    def accuracy(self, examples: Examples) -> float:
        """Return the share of examples whose digit is recognised."""
        recognised = self._model.predict_on_batch(examples.images).argmax(axis=1)
        return float((recognised == examples.labels).mean())

    def tensors(self) -> Tensors:
        """Return all that has to be kept to continue later, by name."""
        weights = {
            f"{layer.name}/{variable.name}": np.array(keras.ops.convert_to_numpy(variable.value))
            for layer in self._model.layers
            for variable in layer.trainable_variables
        }
        return progress.joined(weights=weights, optimizer=self.optimizer.state_dict())

    def restore(self, tensors: Tensors) -> None:
        """Take over what `tensors` returned, or raise ValueError where it does not fit."""
        progress.check_alike(tensors, self.tensors())
        self.optimizer.load_state_dict(progress.part(tensors, "optimizer"))
        weights = progress.part(tensors, "weights")
        for layer in self._model.layers:
            for variable in layer.trainable_variables:
                variable.assign(weights[f"{layer.name}/{variable.name}"])

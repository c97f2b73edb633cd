"""The JAX door behind the interface of the NumPy door, for the tests that all doors share.

Every call is compiled; what it returns is written into the arrays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scenarios import Scenario
from torch_as_numpy import leaves

from oneadam import jax as door
from oneadam._hyperparameters import Hyperparameters, learning_rate_now


def can(scenario: Scenario) -> bool:
    """Whether there may be parameters of such dtypes, and such an answer to an inf or NaN."""
    return scenario == fitting(scenario)


def fitting(scenario: Scenario) -> Scenario:
    """The scenario, with what JAX does not have exchanged for what comes next to it."""
    variables = scenario.variables
    if not jax.config.jax_enable_x64:
        narrower = {"float64": "float32"}
        variables = tuple(replace(v, dtype=narrower.get(v.dtype, v.dtype)) for v in variables)
    config = dict(scenario.config)
    if config.get("on_nonfinite") == "raise":
        config["on_nonfinite"] = "skip"
    return replace(scenario, variables=variables, config=config)


class Adam:
    """`oneadam.jax.adam` and its state."""

    def __init__(self, **config: Any) -> None:
        self.config = config
        self.excluded: dict[str, Any] = {}

    flushes_subnormals = True  # XLA, on CPUs

    @property
    def precision(self) -> float:
        """Of the numbers in the state."""
        return 1e-15 if jax.config.jax_enable_x64 else 2.0**-24

    def exclude_from_weight_decay(self, var_names: list[str]) -> None:
        self.excluded = {"exclude_from_weight_decay": var_names}

    def build(self, structure: Any) -> None:
        self.arrays = leaves(structure)
        self.transformation = self.made()
        self.state = self.transformation.init(self.params())
        self.compile()

    def compile(self) -> None:
        transformation = self.transformation
        self.step = jax.jit(lambda g, s, p: door.step(transformation, g, s, p))

    def made(self) -> Any:
        return door.adam(**self.config, **self.excluded)

    def params(self) -> dict[str, Any]:
        return {name: jnp.array(array) for name, array in self.arrays.items()}

    def take(self, params: Any, state: Any) -> None:
        for name, array in self.arrays.items():
            array[...] = np.asarray(params[name])
        self.state = state

    def apply(self, gradients: Any) -> None:
        given = {
            name: None if gradient is None else jnp.array(gradient)
            for name, gradient in zip(self.arrays, leaves(gradients).values(), strict=True)
        }
        if given:
            self.take(*self.step(given, self.state, self.params()))

    def flush(self) -> None:
        self.take(*door.flush(self.transformation, self.state, self.params()))

    def finalize_variable_values(self, arrays: list[np.ndarray]) -> None:
        finalized = door.finalize(self.state, self.params())
        wanted = {id(array) for array in arrays}
        for name, array in self.arrays.items():
            if id(array) in wanted:
                array[...] = np.asarray(finalized[name])

    def state_dict(self) -> dict[str, np.ndarray]:
        return door.state_dict(self.transformation, self.state, self.params())

    def save(self, path: Any) -> None:
        door.save(path, self.transformation, self.state, self.params())

    def load(self, path: Any, *args: Any, **options: Any) -> None:
        params = self.params()
        self.state = door.load(path, self.transformation, self.state, params, *args, **options)

    def metrics(self) -> dict[str, float]:
        return door.metrics(self.state)

    @property
    def calls(self) -> int:
        return int(self.metrics()["calls"])

    @property
    def updates(self) -> int:
        return int(self.metrics()["updates"])

    iterations = updates

    @property
    def learning_rate(self) -> float:
        """Of the next call."""
        rate = self.config.get("learning_rate")
        if callable(rate):
            return learning_rate_now(Hyperparameters(learning_rate=rate), self.calls)
        return float(self.state_dict()[f"{self.config.get('name', 'adam')}/learning_rate"])

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if callable(value) or callable(self.config.get("learning_rate")):
            # Another function is another transformation.
            self.config = {**self.config, "learning_rate": value}
            self.transformation = self.made()
            self.compile()
        if not callable(value):
            self.state = door.set_learning_rate(self.state, value)


class LossScaleOptimizer(Adam):
    """`oneadam.jax.loss_scale` around the door."""

    def __init__(self, inner: Adam, **settings: Any) -> None:
        super().__init__(**inner.config)
        self.settings = settings

    def made(self) -> Any:
        return door.loss_scale(super().made(), **self.settings)

    @property
    def scale(self) -> float:
        return self.metrics()["loss_scale"]

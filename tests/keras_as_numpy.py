"""The Keras door behind the interface of the NumPy door, for the tests that all doors share.

Every call goes through variables of Keras; what they hold is written back into the arrays.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops
from scenarios import Dial, Scenario
from torch_as_numpy import leaves

from oneadam import keras as door
from oneadam._hyperparameters import learning_rate_now
from oneadam.keras import _learning_rate

BACKEND = keras.backend.backend()


def _has_float64() -> bool:
    if BACKEND != "jax":
        return True
    import jax

    return bool(jax.config.jax_enable_x64)


def can(scenario: Scenario) -> bool:
    """Whether there may be variables of such dtypes, and such an answer to an inf or NaN."""
    return scenario == fitting(scenario)


def fitting(scenario: Scenario) -> Scenario:
    """The scenario, with what a backend does not have exchanged for what comes next to it."""
    variables = scenario.variables
    if not _has_float64():
        narrower = {"float64": "float32"}
        variables = tuple(replace(v, dtype=narrower.get(v.dtype, v.dtype)) for v in variables)
    config = dict(scenario.config)
    if config.get("on_nonfinite") == "raise" and BACKEND != "torch":
        config["on_nonfinite"] = "skip"
    return replace(scenario, variables=variables, config=config)


class Adam:
    """`oneadam.keras.Adam` on variables that hold what arrays of NumPy held."""

    jit_compile = False
    flushes_subnormals = BACKEND != "torch"  # XLA, on CPUs

    def __init__(self, **config: Any) -> None:
        self.optimizer = door.Adam(**{"name": "adam", **config})

    @property
    def precision(self) -> float:
        """Of the numbers in the state."""
        return 1e-15 if BACKEND != "jax" else 2.0**-24

    def exclude_from_weight_decay(self, var_names: list[str]) -> None:
        self.optimizer.exclude_from_weight_decay(var_names=var_names)

    def build(self, structure: Any) -> None:
        self.arrays = leaves(structure)
        self.variables = [_variable(name, array) for name, array in self.arrays.items()]
        self.optimizer.build(self.variables)
        self.patterns: Counter[tuple[str, ...]] = Counter()
        self.trace()

    def trace(self) -> None:
        if BACKEND == "tensorflow":
            import tensorflow as tf

            self.graph = tf.function(
                lambda gradients: self.optimizer.apply(gradients, self.variables),
                jit_compile=self.jit_compile,
            )

    def apply(self, gradients: Any) -> None:
        given = list(leaves(gradients).values())
        self._put()
        self._call([None if g is None else _tensor(g) for g in given])
        self._take()

    def _call(self, gradients: list[Any]) -> None:
        if BACKEND != "tensorflow":
            self.optimizer.apply(gradients, self.variables)
            return
        pattern = tuple(str(getattr(gradient, "dtype", None)) for gradient in gradients)
        self.patterns[pattern] += 1
        # A graph is worth its tracing where many calls are alike, and goes on where others ended.
        alike = self.patterns[pattern] > 3
        if alike:
            self.graph(gradients)
        else:
            self.optimizer.apply(gradients, self.variables)

    def _put(self) -> None:
        for variable, array in zip(self.variables, self.arrays.values(), strict=True):
            variable.assign(_tensor(array))

    def _take(self) -> None:
        for variable, array in zip(self.variables, self.arrays.values(), strict=True):
            array[...] = ops.convert_to_numpy(variable.value)

    def flush(self) -> None:
        self._put()
        self.optimizer.flush()
        self._take()

    def finalize_variable_values(self, arrays: list[np.ndarray]) -> None:
        wanted = {id(array) for array in arrays}
        self._put()
        self.optimizer.finalize_variable_values(
            [
                variable
                for variable, array in zip(self.variables, self.arrays.values(), strict=True)
                if id(array) in wanted
            ]
        )
        self._take()

    def state_dict(self) -> dict[str, np.ndarray]:
        return self.optimizer.state_dict()

    def save(self, path: Any) -> None:
        self.optimizer.save(path)

    def load(self, *args: Any, **options: Any) -> None:
        self.optimizer.load(*args, **options)

    def metrics(self) -> dict[str, float]:
        return self.optimizer.metrics()

    @property
    def calls(self) -> int:
        return self.optimizer.calls

    @property
    def updates(self) -> int:
        return self.optimizer.updates

    iterations = updates

    @property
    def learning_rate(self) -> float:
        """Of the next call."""
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return learning_rate_now(_learning_rate.in_use(inner), self.calls)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if callable(value):
            self.trace()  # what compiled steps of TensorFlow could not take up is refused
        self.optimizer.learning_rate = value


def _variable(name: str, array: np.ndarray) -> Any:
    variable = keras.Variable(np.zeros(array.shape), dtype=array.dtype.name, name="variable")
    variable.assign(_tensor(array))
    variable._path = name
    return variable


def _tensor(array: Any) -> Any:
    return ops.convert_to_tensor(np.array(array, order="C"))


class CompiledAdam(Adam):
    """Steps that TensorFlow has XLA compile."""

    jit_compile = True

    def _call(self, gradients: list[Any]) -> None:
        self.graph(gradients)


class LossScaleOptimizer(Adam):
    """`oneadam.keras.LossScaleOptimizer` around the door."""

    def __init__(self, inner: Adam, **settings: Any) -> None:
        self.optimizer = door.LossScaleOptimizer(inner.optimizer, **settings)

    @property
    def scale(self) -> float:
        return float(ops.convert_to_numpy(self.optimizer.dynamic_scale.value))


class CompiledLossScaleOptimizer(LossScaleOptimizer, CompiledAdam):
    """The same, compiled by XLA."""


def fitting_xla(scenario: Scenario) -> Scenario:
    """The scenario without functions that compiled code would have to call."""
    fitted = fitting(scenario)
    asked = {
        key: value.numbers[0] for key, value in fitted.config.items() if isinstance(value, Dial)
    }
    steps = tuple(
        replace(step, rate=step.rate.numbers[0])
        if isinstance(getattr(step, "rate", None), Dial)
        else step
        for step in fitted.steps
    )
    return replace(fitted, config={**fitted.config, **asked}, steps=steps)


COMPILED = SimpleNamespace(
    Adam=CompiledAdam,
    LossScaleOptimizer=CompiledLossScaleOptimizer,
    can=lambda scenario: scenario == fitting_xla(scenario),
    fitting=fitting_xla,
)

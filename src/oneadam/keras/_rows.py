"""The variables of a model that an optimizer trains, as it numbers and names them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import keras
import numpy as np
from keras import backend, ops
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.utils.jax_utils import is_in_jax_tracing_scope

from oneadam import _hyperparameters as hyper
from oneadam._hyperparameters import Hyperparameters

Variable = Any

FLOATS = ("float16", "bfloat16", "float32", "float64")


def name_of(variable: Variable) -> str:
    """Return the full name of a variable of Keras or TensorFlow."""
    return str(getattr(variable, "path", None) or variable.name)


def names_of(variables: Sequence[Variable]) -> list[str]:
    """Return a name for each variable, its own or, where others have that, with a number."""
    return unique([name_of(variable) for variable in variables])


def unique(names: Sequence[str]) -> list[str]:
    """Return different names: where one is there before, with a number behind it."""
    found: dict[str, None] = {}
    for given in names:
        name, number = given, 0
        while name in found or (number and name in names):
            number += 1
            name = f"{given}_{number}"
        found[name] = None
    return list(found)


def dtype_of(array: Any) -> str:
    """Return the name of the dtype of a variable or tensor."""
    return str(keras.backend.standardize_dtype(array.dtype))


def compute_dtype(variable: Variable) -> str:
    """Return the name of the dtype that a variable is computed in."""
    return "float64" if dtype_of(variable) == "float64" else "float32"


def number_dtype() -> str:
    """Return the dtype of numbers that compiled code reads: float64 where the backend has it."""
    if backend_name() == "jax":
        return str(import_module("oneadam.jax._numbers").real())
    return "float64"


def is_overwritten(variable: Variable) -> bool:
    """Return whether a variable takes its gradient as its value, as scales of float8 do."""
    return bool(getattr(variable, "overwrite_with_gradient", False))


def check_trained(hyperparameters: Hyperparameters, variables: Sequence[Variable]) -> None:
    """Refuse variables that cannot be trained with these arguments."""
    for variable in variables:
        if dtype_of(variable) not in FLOATS:
            raise TypeError(
                f"variables must have a dtype out of {', '.join(FLOATS)}, received"
                f" {dtype_of(variable)} for {name_of(variable)!r}; make it non-trainable"
            )
        hyper.check_compute_dtype(hyperparameters, compute_dtype(variable), name_of(variable))


def backend_name() -> str:
    """Return the name of the backend that Keras runs on."""
    return str(backend.backend())


def is_at_hand(variable: Variable) -> bool:
    """Return whether a variable has a value, which `fit` on JAX takes away until the epoch ends."""
    if variable._value is not None:
        return True
    scope = get_stateless_scope()
    return scope is not None and scope.get_current_value(variable) is not None


def outside_of_graphs() -> AbstractContextManager[Any]:
    """Return a context in which TensorFlow does now what would be put into a graph."""
    if backend_name() != "tensorflow":
        return nullcontext()
    context: AbstractContextManager[Any] = import_module("tensorflow").init_scope()
    return context


def check_at_hand(variable: Variable) -> None:
    """Refuse a variable whose value `fit` on JAX has taken away."""
    if not is_at_hand(variable):
        raise RuntimeError(
            "the optimizer's variables must be at hand, but fit on JAX holds them during an epoch;"
            " in a callback take self.model.optimizer, for self.model has them brought back"
        )


def fetched(value: Any) -> np.ndarray[Any, Any]:
    """Return what a variable or tensor holds as an array of NumPy."""
    if isinstance(value, keras.Variable):
        check_at_hand(value)
    found = own(value)
    if hasattr(found, "read_value"):
        # A variable of TensorFlow, which NumPy cannot read where it has several copies.
        found = found.read_value()
    array: np.ndarray[Any, Any] = ops.convert_to_numpy(found)
    return array


def is_traced(value: Any) -> bool:
    """Return whether a variable or tensor has its value only where a compiled step runs."""
    if backend_name() == "tensorflow":
        return not import_module("tensorflow").executing_eagerly()
    return bool(is_in_jax_tracing_scope(own(value)))


def step(calls: Any) -> Any:
    """Return the counter of calls as schedules are given it."""
    # TensorFlow divides no number by an integer.
    return ops.cast(calls, "float64") if backend_name() == "tensorflow" else calls


def own(variable: Any) -> Any:
    """Return the variable or tensor of the backend that is behind a variable of Keras."""
    return variable.value if isinstance(variable, keras.Variable) else variable

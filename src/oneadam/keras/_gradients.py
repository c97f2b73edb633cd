"""The gradients of a call, by the variables that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from operator import is_
from typing import TYPE_CHECKING, Any

from keras import ops

from oneadam._messages import listed
from oneadam._warnings import warn
from oneadam.keras import _rows

if TYPE_CHECKING:
    from oneadam.keras._adam import Adam

Variable = Any
Tensor = Any


def keys_of(optimizer: Adam, variables: Sequence[Variable]) -> list[Any]:
    """Return the keys of variables, having refused what cannot be updated."""
    own = optimizer._own
    if len(variables) == len(own.variables) and all(map(is_, variables, own.variables)):
        return own.keys
    if optimizer.built:
        optimizer._check_variables_are_known(variables)
    keys = [optimizer._var_key(variable) for variable in variables]
    if len(set(keys)) != len(keys):
        raise ValueError(
            "trainable_variables must have each variable once, received one of them twice;"
            " add its gradients up"
        )
    return keys


def checked(
    optimizer: Adam, grads: Sequence[Any], variables: Sequence[Variable], keys: Sequence[Any]
) -> dict[Any, Tensor]:
    """Return the gradients that there are, checked, by the keys of their variables."""
    found, fitting = {}, optimizer._own.fitting
    for key, variable, grad in zip(keys, variables, grads, strict=True):
        if grad is None:
            continue
        kind = (grad.__class__, getattr(grad, "dtype", None), getattr(grad, "shape", None))
        if fitting.get(key) == kind:
            found[key] = grad
            continue
        found[key] = _fitting(variable, grad)
        if found[key] is grad:
            fitting[key] = kind
    if not found:
        raise ValueError(
            "No gradients provided for any variable: grads must have a gradient for at least"
            " one, received None for every one; check that the loss depends on the variables"
        )
    return found


def warn_of_missing(optimizer: Adam, grads: Sequence[Any], variables: Sequence[Variable]) -> None:
    """Warn of variables without a gradient, once of the same ones."""
    missing = tuple(
        _rows.name_of(variable)
        for grad, variable in zip(grads, variables, strict=True)
        if grad is None
    )
    if missing not in optimizer._own.warned_of:
        optimizer._own.warned_of.add(missing)
        warn(
            f"Gradients do not exist for variables {listed(missing)} in this call, which"
            " leaves them as they are; if that is not meant, check that the loss depends on"
            " them"
        )


def _fitting(variable: Variable, grad: Any) -> Tensor:
    """Return a gradient as a tensor, having refused what does not fit its variable."""
    # Keras calls sparse arrays of JAX and slices of TensorFlow tensors too.
    is_sparse = hasattr(grad, "todense") or hasattr(grad, "dense_shape")
    is_dense = not is_sparse and hasattr(grad, "dtype") and ops.is_tensor(grad)
    tensor = grad if is_dense else _as_tensor(grad)
    if _rows.dtype_of(tensor) not in _rows.FLOATS and not _rows.is_overwritten(variable):
        raise TypeError(
            f"grads must have a real floating dtype, received {_rows.dtype_of(tensor)} for"
            f" {_rows.name_of(variable)!r}; take them of a real loss"
        )
    if getattr(tensor.shape, "rank", 0) is None:
        return tensor  # TensorFlow knows its shape when the step runs
    found, wanted = tuple(tensor.shape), tuple(variable.shape)
    fits = len(found) == len(wanted) and all(
        a is None or a == b for a, b in zip(found, wanted, strict=True)
    )
    if not fits:
        raise ValueError(
            f"grads must have the shapes of their variables, received {found} for"
            f" {_rows.name_of(variable)!r} of shape {wanted}; nothing is broadcast"
        )
    return tensor


def _as_tensor(grad: Any) -> Any:
    """Return what is no dense tensor as one; what has repeated indices is added up."""
    if _rows.backend_name() == "tensorflow":
        tf = import_module("tensorflow")
        if isinstance(grad, tf.IndexedSlices):
            return tf.convert_to_tensor(grad)
    return ops.convert_to_tensor(grad, sparse=False)

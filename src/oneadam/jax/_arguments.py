"""The arguments of the transformation as users of optax write them, traced ones included."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from oneadam._hyperparameters import Hyperparameters

SPELLINGS = {"beta_1": "b1", "beta_2": "b2", "epsilon": "eps"}
"""optax's names, by ours."""

_MAY_BE_TRACED = {
    "learning_rate": 0.001,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-7,
    "weight_decay": 0.0,
    "clipnorm": 1.0,
    "clipvalue": 1.0,
    "global_clipnorm": 1.0,
    "ema_momentum": 0.99,
    "loss_scale_factor": 1.0,
}
"""Arguments that may be unknown when the step is compiled, and what is checked in their place."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a transformation is made with."""

    checked: Hyperparameters
    """What is a number or a callable; of arrays only that they are there."""
    arrays: Mapping[str, Any]
    """Arguments that are arrays of JAX, traced or not."""
    sharded_over: tuple[str, ...] | None
    """The axes over which parameters are sharded where JAX does not know; None if not given."""

    def value(self, name: str) -> Any:
        """Return an argument as it was given."""
        return self.arrays.get(name, getattr(self.checked, name))


def arguments(given: Mapping[str, Any], defaults: Sequence[Any]) -> Arguments:
    """Return the arguments that every door has, from those of this one.

    Args:
        given: by name; None for what of optax's names is not given.
        defaults: the very objects that stand for what is not given of our names.

    Raises:
        TypeError, ValueError: one of them is of another kind or out of range, or is given in
            both spellings.
    """
    values = dict(given)
    sharded_over = _axes(values.pop("sharded_over"))
    for ours, theirs in SPELLINGS.items():
        value = values.pop(theirs)
        if value is not None:
            if not any(values[ours] is default for default in defaults):
                raise ValueError(
                    f"{theirs} must not be given together with {ours}, which is the same, received"
                    f" {value!r} and {values[ours]!r}; leave one of them out (under"
                    f" optax.inject_hyperparams {theirs}: it always gives {ours})"
                )
            values[ours] = value
    arrays = {name: value for name, value in values.items() if isinstance(value, jax.Array)}
    for name, array in arrays.items():
        if isinstance(array, jax.core.Tracer):
            values[name] = _in_place_of(name, array)
    checked = Hyperparameters(**values)
    check_supported(checked)
    return Arguments(checked, arrays, sharded_over)


def check_supported(checked: Hyperparameters) -> None:
    """Refuse what compiled steps cannot do."""
    if checked.on_nonfinite == "raise":
        raise ValueError(
            "on_nonfinite must be 'propagate' or 'skip' in JAX, whose compiled steps cannot raise,"
            " received 'raise'; use 'skip', and look at metrics(state)['skipped_calls']"
        )


def _in_place_of(name: str, array: Any) -> float:
    """Return a number to check the other arguments with, where one is not known."""
    if name not in _MAY_BE_TRACED:
        raise TypeError(
            f"{name} must be known when the step is compiled, received the traced array {array};"
            " pass a plain value, or name it in static_args of optax.inject_hyperparams"
        )
    if array.ndim:
        raise ValueError(
            f"{name} must be a number, received an array of shape {array.shape}; pass one of shape"
            " (), or map over transformations with jax.vmap"
        )
    return _MAY_BE_TRACED[name]


def _axes(given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    axes = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if not all(isinstance(axis, str) for axis in axes):
        raise TypeError(
            f"sharded_over must be the name of an axis, or several, received {given!r}; pass for"
            ' example "fsdp"'
        )
    return axes

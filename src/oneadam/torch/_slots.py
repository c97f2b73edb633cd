"""The state of one parameter, under torch's names, and how it fits the parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from oneadam import _state
from oneadam._engines.torch.tensors import compute_dtype, order
from oneadam._hyperparameters import Hyperparameters
from oneadam.torch import _sharding

KEYS = {
    _state.MOMENTUM: "exp_avg",
    _state.VELOCITY: "exp_avg_sq",
    _state.VELOCITY_HAT: "max_exp_avg_sq",
    _state.AVERAGE: "average",
    _state.ACCUMULATOR: "gradient_accumulator",
    _state.UPDATES: "step",
    _state.IN_WINDOW: "in_window",
    _state.AVERAGED: "averaged",
}
"""The keys of a parameter's state, by the names in portable checkpoints."""

NUMBERS = {"step": torch.float64, "in_window": torch.bool, "averaged": torch.bool}
"""The keys under which there is one number, with its dtype; float64 counts to 2**53."""


def slots_of(hyperparameters: Hyperparameters, *, amsgrad: bool) -> tuple[str, ...]:
    """Return which arrays of state the parameters of a group have.

    Args:
        hyperparameters: of the optimizer.
        amsgrad: of the group.
    """
    return _state.array_slots(dataclasses.replace(hyperparameters, amsgrad=amsgrad))


def keys_of(slots: Iterable[str]) -> tuple[str, ...]:
    """Return all keys of the state of a parameter with these arrays."""
    slots = list(slots)
    numbers = ["step"]
    if _state.ACCUMULATOR in slots:
        numbers.append("in_window")
    if _state.AVERAGE in slots:
        numbers.append("averaged")
    return (*numbers, *(KEYS[slot] for slot in slots))


def empty(param: Tensor, key: str) -> Tensor:
    """Return the state of a parameter under a key, at its beginning."""
    if key in NUMBERS:
        return torch.zeros((), dtype=NUMBERS[key], device="cpu")
    return torch.zeros_like(param, dtype=compute_dtype(param.dtype), requires_grad=False)


def fitted(param: Tensor, key: str, value: Any) -> Tensor:
    """Return state in the dtype and the memory layout that the engines want, copied if need be.

    Args:
        param: the parameter.
        key: of the state.
        value: a tensor of the parameter's shape, or a number.

    Raises:
        TypeError: it is neither.
        ValueError: it has another shape than the parameter.
    """
    if key in NUMBERS:
        given = value.detach() if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
        number = given.to("cpu", NUMBERS[key]).reshape(())
        if not (number >= 0 and number == torch.floor(number.double())):
            raise ValueError(
                f"state {key!r} must be a whole number >= 0, received {value!r}; it is damaged, and"
                " nothing was loaded"
            )
        return number
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(
            f"state {key!r} must be a tensor of a floating dtype, received"
            f" {getattr(value, 'dtype', type(value).__name__)}; load what state_dict() returned"
        )
    if value.shape != param.shape:
        raise ValueError(
            f"state {key!r} must have its parameter's shape {tuple(param.shape)}, received"
            f" {tuple(value.shape)}; load the state of the same model"
        )
    spread = _sharding.like(value.detach(), param)
    if is_fitted(param, spread):
        return spread
    new = empty(param, key)
    with torch.no_grad():
        new.copy_(spread)
    return new


def copied(param: Tensor, key: str, value: Any) -> Tensor:
    """Return state as `fitted` does, in memory of its own."""
    new = fitted(param, key, value)
    if isinstance(value, Tensor) and shares_storage(new, value):
        return new.clone()
    return new


def shares_storage(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors, or their parts here, lie in the same piece of memory."""
    storages = (_sharding.local(tensor).untyped_storage() for tensor in (one, other))
    here, there = (storage.data_ptr() for storage in storages)
    return here == there != 0


def is_fitted(param: Tensor, value: Tensor) -> bool:
    """Return whether a tensor of state lies in memory as the engines want it."""
    if isinstance(value, DTensor) and isinstance(param, DTensor):
        if value.device_mesh != param.device_mesh or value.placements != param.placements:
            return False
        value, param = _sharding.local(value), _sharding.local(param)
    return (
        type(value) in (Tensor, type(param))
        and value.dtype == compute_dtype(param.dtype)
        and value.device == param.device
        and value.layout == torch.strided
        and order(value) == order(_like(param))
        and not value.is_inference()
    )


def _like(param: Tensor) -> Tensor:
    """Return a tensor without memory that lies like the state of a parameter would."""
    return torch.empty_like(param, device="meta")

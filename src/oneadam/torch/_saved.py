"""Portable checkpoints of the optimizer: the state by name, the same for every door."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneadam import _interrupts, _saved_state, _state, checkpoint
from oneadam._hyperparameters import Hyperparameters
from oneadam._saved_state import Axes, Restoring
from oneadam._state import full
from oneadam.torch import _sharding, _slots
from oneadam.torch._run import Run

Array = NDArray[Any]


def write(run: Run, path: str | os.PathLike[str], also: Mapping[str, Array]) -> None:
    """Write the state and the configuration to a file; the first process of several does.

    Args:
        run: of which all processes have to call this that hold a part.
        path: where to.
        also: further state of the optimizer's own, by full name.
    """
    tensors, params = {**state(run), **also}, run.parameters()
    failure: Exception | None = None
    if _sharding.is_first(params):
        try:
            checkpoint.write(path, tensors, metadata(run))
        except Exception as error:
            failure = error
    failed = _sharding.happened_anywhere(params, failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise OSError(
            f"path must be writable for the first process, received {os.fspath(path)!r}, which it"
            " could not write; its error says why"
        )


def state(run: Run) -> dict[str, Array]:
    """Return the whole state by name, of all processes."""
    run.check_trained()
    run.check_whole()
    _state.check_distinct(run.hyperparameters.name, dict.fromkeys(run.names()))
    model = run.model()
    arrays = {
        full(name, slot): _as_array(key, own[key])
        for name, own in zip(model.names, model.state, strict=True)
        for slot, key in _slots.KEYS.items()
        if key in own
    }
    return arrays | _saved_state.state(_hyperparameters(run), run.counters)


def metadata(run: Run) -> dict[str, str]:
    """Return what a checkpoint says besides the state."""
    variables = {
        name: (tuple(param.shape), str(param.dtype).removeprefix("torch."))
        for name, param in zip(run.names(), run.parameters(), strict=True)
    }
    rate, h = _common_rate(run), run.hyperparameters
    if rate is not None:
        h = dataclasses.replace(h, learning_rate=rate)
    return _saved_state.metadata(h, run.exclusions, variables)


def read(
    run: Run,
    path: str | os.PathLike[str],
    names: Mapping[str, str] | Callable[[str], str] | None,
    transposed: Axes | None,
) -> dict[str, Array]:
    """Return the state in a file under the names, and with the axes, that it has in this run."""
    return _saved_state.read(path, names, run.hyperparameters.name, transposed)


def restoring(
    run: Run, saved: Mapping[str, Array], keep_learning_rate: bool, also: Sequence[str] = ()
) -> Restoring:
    """Check saved state against a run, and warn of what only one of them has."""
    run.check_trained()
    run.check_whole()
    _state.check_distinct(run.hyperparameters.name, dict.fromkeys(run.names()))
    owners = {name.rpartition("/")[0] for name in saved}
    slots: dict[str, _state.Slot] = {}
    wanted: set[str] = set()
    for name, param, group in _each(run):
        computed = "float64" if param.dtype == torch.float64 else "float32"
        slots |= _state.variable_slots(name, tuple(param.shape), computed)
        # A parameter that was never trained has no state.
        if param.requires_grad or name in owners:
            wanted |= {full(name, slot) for slot in _wanted(run, group)}
    return _saved_state.restoring(
        saved,
        slots,
        wanted,
        _hyperparameters(run),
        keep_learning_rate=keep_learning_rate,
        also=also,
    )


def restore(run: Run, restoring: Restoring) -> None:
    """Take over saved state that has been checked."""
    state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    arrays = restoring.arrays
    for name, param, group in _each(run):
        slots = _wanted(run, group)
        if param.requires_grad or any(full(name, slot) in arrays for slot in slots):
            state[param] = {
                _slots.KEYS[slot]: _as_tensor(
                    param, _slots.KEYS[slot], arrays.get(full(name, slot))
                )
                for slot in slots
            }
    rate = restoring.hyperparameters.learning_rate
    with _interrupts.held_back():
        run.replace(state)
        run.counters = restoring.counters
        if isinstance(rate, float) and rate != _common_rate(run):
            _assign(run, rate)


def _each(run: Run) -> list[tuple[str, Tensor, dict[str, Any]]]:
    groups = [group for group in run.param_groups for _ in group["params"]]
    return list(zip(run.names(), run.parameters(), groups, strict=True))


def _wanted(run: Run, group: dict[str, Any]) -> list[str]:
    """Return the slots of the state of a group's parameters."""
    keys = run.keys(group)
    return [slot for slot, key in _slots.KEYS.items() if key in keys]


def _assign(run: Run, rate: float) -> None:
    """Give all groups a learning rate; tensors stay the ones that others may hold."""
    tensors = [group["lr"] for group in run.param_groups if isinstance(group["lr"], Tensor)]
    if len(tensors) != len(run.param_groups):
        run.groups.assign_learning_rate(run.param_groups, rate)
    for tensor in tensors:
        with torch.no_grad():
            tensor.fill_(rate)


def _hyperparameters(run: Run) -> Hyperparameters:
    """Return the optimizer's hyperparameters with the learning rate that all groups have."""
    rate = _common_rate(run)
    # What has no one number is not saved as one, and not taken from one.
    return dataclasses.replace(run.hyperparameters, learning_rate=_none if rate is None else rate)


def _common_rate(run: Run) -> float | None:
    """Return the number that is the learning rate of all groups, if there is one."""
    if any(callable(run.groups.of(group).learning_rate) for group in run.param_groups):
        return None
    rates = {float(group["lr"]) for group in run.param_groups}
    return rates.pop() if len(rates) == 1 else None


def _none() -> float:
    return math.nan


def _as_array(key: str, tensor: Tensor) -> Array:
    array: Array = _sharding.whole(tensor).detach().cpu().numpy()
    return array.astype(np.int64) if key == "step" else array


def _as_tensor(param: Tensor, key: str, array: Array | None) -> Tensor:
    if array is None:
        return _slots.empty(param, key)
    return _slots.fitted(param, key, torch.from_numpy(np.array(array, order="C")))

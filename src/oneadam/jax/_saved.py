"""Portable checkpoints: the state by the names of the parameters' paths, the same in every door."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from oneadam import _loss_scale, _saved_state, _state, checkpoint
from oneadam._engines import arrays as engine
from oneadam._hyperparameters import Hyperparameters
from oneadam._loss_scale import LossScale as Scale
from oneadam._loss_scale import Settings
from oneadam._plan import Counters
from oneadam._saved_state import Axes
from oneadam._state import full
from oneadam.jax import _numbers, _trees
from oneadam.jax._adam import Adam
from oneadam.jax._state import Absences, AdamState, LossScaleState

Array = NDArray[Any]
Tree = Any


def write(
    path: str | os.PathLike[str],
    adam: Adam,
    state: AdamState,
    scale: LossScaleState | None,
    params: Tree,
) -> None:
    """Write a state to a file."""
    described = {
        name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _owners(state, params).items()
    }
    h = _as_it_is(adam, state)
    metadata = _saved_state.metadata(h, adam.exclusions, described)
    checkpoint.write(path, arrays(adam, state, scale, params), metadata)


def arrays(
    adam: Adam, state: AdamState, scale: LossScaleState | None, params: Tree
) -> dict[str, Array]:
    """Return a state as arrays of NumPy, by name."""
    adam.check_state(state)
    h = _as_it_is(adam, state)
    owners = _owners(state, params)
    _state.check_distinct(h.name, owners)
    found: dict[str, Array] = {}
    for slot in _state.array_slots(h):
        for name, leaf in _trees.named(getattr(state, slot)).items():
            found[full(name, slot)] = _fetched(full(name, slot), leaf)
    for slot, numbers in _columns(adam, state).items():
        for name, number in zip(owners, numbers, strict=True):
            found[full(name, slot)] = np.array(number)
    skipped = int(_numbers.count_of(state.skipped_calls))
    if scale is not None:
        skipped += int(_numbers.count_of(scale.skipped_calls))
    counters = Counters(
        int(_numbers.count_of(state.calls)),
        int(_numbers.count_of(state.updates)),
        int(state.accumulated_calls),
        skipped,
    )
    found |= _saved_state.state(h, counters)
    if scale is not None:
        plain = Scale(float(scale.scale), int(scale.finite_calls), int(scale.skipped_in_a_row))
        own = _loss_scale.saved(plain)
        found |= {full(h.name, key): np.array(value) for key, value in own.items()}
    return found


def read(
    path: str | os.PathLike[str],
    adam: Adam,
    names: Mapping[str, str] | Callable[[str], str] | None,
    transposed: Axes | None,
) -> dict[str, Array]:
    """Return the state in a file under the names, and with the axes, that it has here."""
    return _saved_state.read(path, names, adam.own.checked.name, transposed)


def restored(
    saved: Mapping[str, Array],
    adam: Adam,
    state: AdamState,
    scale: tuple[LossScaleState, Settings] | None,
    params: Tree,
    keep_learning_rate: bool,
) -> tuple[AdamState, LossScaleState | None]:
    """Return saved state in the place of another, where and how that lies.

    Args:
        saved: arrays by name.
        adam: what the state is of.
        state: as `init` returns it, or later.
        scale: the state and the settings of the loss scale, if there is one.
        params: the parameters.
        keep_learning_rate: keep the configured learning rate.

    Raises:
        ValueError: something is missing, unexpected, or of another shape or dtype.
    """
    adam.check_state(state)
    owners = _owners(state, params)
    slots: dict[str, _state.Slot] = {}
    for name, leaf in owners.items():
        computed = np.dtype(engine.compute_dtype(leaf, jnp)).name
        slots |= _state.variable_slots(name, tuple(leaf.shape), computed)
    used = (*_state.array_slots(adam.own.checked), *_columns(adam, state))
    restoring = _saved_state.restoring(
        saved,
        slots,
        {full(name, slot) for name in owners for slot in used},
        _as_it_is(adam, state),
        keep_learning_rate=keep_learning_rate,
        also=() if scale is None else _loss_scale.SAVED,
    )
    new = _with_arrays(state, owners, restoring.arrays)
    counters = restoring.counters
    new = new._replace(
        calls=_trees.placed(_numbers.counter(counters.calls), state.calls),
        updates=_trees.placed(_numbers.counter(counters.updates), state.updates),
        skipped_calls=_trees.placed(_numbers.counter(counters.skipped_calls), state.skipped_calls),
        accumulated_calls=_trees.placed(counters.accumulated_calls, state.accumulated_calls),
        absences=_absences(state, owners, restoring.arrays, counters),
    )
    rate = restoring.hyperparameters.learning_rate
    if isinstance(rate, float):
        rates = new.rates._replace(learning_rate=_trees.placed(rate, new.rates.learning_rate))
        new = new._replace(rates=rates)
    if scale is None:
        return new, None
    before, settings = scale
    plain = _loss_scale.restored(restoring.also, settings)
    found = {
        part: _trees.placed(value, getattr(before, part)) for part, value in plain._asdict().items()
    }
    # The inner counter has them all.
    nothing = _trees.placed(_numbers.counter(), before.skipped_calls)
    return new, before._replace(**found, skipped_calls=nothing)


def _owners(state: AdamState, params: Tree) -> dict[str, Any]:
    """Return the parameters that a state is of, by name."""
    named = _trees.named(params)
    names = _trees.names(state.momentum)
    lacking = [name for name in names if name not in named]
    if lacking:
        raise ValueError(
            f"params must be those of the state, received none with the path {lacking[0]!r}; they"
            f" have {list(named)[:10]}"
        )
    return {name: named[name] for name in names}


def _as_it_is(adam: Adam, state: AdamState) -> Hyperparameters:
    """Return the hyperparameters with the numbers that the state has for the rates."""
    h = adam.own.checked
    found: dict[str, float] = {}
    rate = state.rates.learning_rate
    # What is the same stays as it was written, not rounded.
    if not callable(h.learning_rate) and rate != _numbers.number(h.learning_rate):
        found["learning_rate"] = _shortest(rate)
    for name in ("beta_1", "beta_2"):
        beta, kept = getattr(h, name), getattr(state.rates, name).complement
        if not callable(beta) and kept != _numbers.weights(beta).complement:
            found[name] = _shortest((1.0 - np.float64(kept)).astype(kept.dtype))
    return dataclasses.replace(h, **found)  # type: ignore[arg-type]


def _shortest(number: Any) -> float:
    """Return the shortest number that rounds to one: 0.1 that was made float32 is 0.1 again."""
    return float(str(np.asarray(number)[()]))


def _columns(adam: Adam, state: AdamState) -> dict[str, Array]:
    """Return what there is one number of for each parameter, by slot."""
    count = len(jax.tree.leaves(state.momentum))
    absences = state.absences
    updates = _numbers.count_of(state.updates if absences is None else absences.updates)
    columns = {_state.UPDATES: np.broadcast_to(updates, count).astype(np.int64)}
    if adam.window > 1:
        in_window = state.accumulated_calls > 0 if absences is None else absences.in_window
        columns[_state.IN_WINDOW] = np.broadcast_to(np.asarray(in_window), count)
    if adam.own.checked.use_ema:
        columns[_state.AVERAGED] = np.broadcast_to(np.asarray(state.averaged), count)
    return columns


def _fetched(name: str, leaf: Any) -> Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(
            f"{name} must lie on devices of this process to be saved here, received one that"
            f" spans several, {leaf.sharding}; gather the state with"
            " jax.experimental.multihost_utils.process_allgather, or save it with orbax"
        )
    return np.asarray(leaf)


def _with_arrays(
    state: AdamState, owners: Mapping[str, Any], found: Mapping[str, Array]
) -> AdamState:
    """Return the state with arrays that were found, zeros where there are none."""
    trees = {
        slot: getattr(state, slot)
        for slot in (_state.MOMENTUM, _state.VELOCITY, _state.VELOCITY_HAT, _state.AVERAGE,
                     _state.ACCUMULATOR)
        if getattr(state, slot) is not None
    }  # fmt: skip
    new: dict[str, Any] = {}
    for slot, tree in trees.items():
        leaves = [
            _trees.placed(found.get(full(name, slot), np.zeros(leaf.shape)), leaf)
            for name, leaf in _trees.named(tree).items()
        ]
        new[slot] = _trees.rebuilt(tree, leaves)
    flags = [bool(found.get(full(name, _state.AVERAGED), False)) for name in owners]
    if state.average is not None and any(flags) and not all(flags):
        # What was never trained has no average in other doors: here it is the parameter so far.
        leaves = [
            # A copy, for both may be donated.
            average if flag else _trees.placed(jnp.array(param, copy=True), average)
            for average, flag, param in zip(
                jax.tree.leaves(new[_state.AVERAGE]), flags, owners.values(), strict=True
            )
        ]
        new[_state.AVERAGE] = _trees.rebuilt(state.average, leaves)
    return state._replace(**new, averaged=_trees.placed(any(flags), state.averaged))


def _absences(
    state: AdamState, owners: Mapping[str, Any], found: Mapping[str, Array], counters: Counters
) -> Absences | None:
    """Return what is counted of each parameter, None where all have always had gradients."""
    updates = np.array([found[full(name, _state.UPDATES)] for name in owners], np.uint64)
    is_open = counters.accumulated_calls > 0
    in_window = np.array([found.get(full(name, _state.IN_WINDOW), False) for name in owners])
    is_even = (updates == counters.updates).all() and (in_window == is_open).all()
    if is_even and state.absences is None:
        return None
    return Absences(
        _trees.placed(_numbers.counter(updates), state.updates),
        _trees.placed(in_window, state.averaged),
    )

"""Saved state of an optimizer: what it says, reading it, and what of it is taken over.

Names, shapes and dtypes are those of `_state`, the same in every door.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam import _configuration, _state, checkpoint
from oneadam._exclusions import Exclusions
from oneadam._hyperparameters import Hyperparameters, with_learning_rate
from oneadam._messages import listed
from oneadam._plan import Counters
from oneadam._state import Slot, full, owners
from oneadam._warnings import warn

Array = NDArray[Any]
Axes = Mapping[str, Sequence[int]] | Callable[[str], Sequence[int] | None]
"""The orders of axes in which arrays are taken over, by the names that variables have here."""


def state(hyperparameters: Hyperparameters, counters: Counters) -> dict[str, Array]:
    """Return the state that is the optimizer's own, by full name."""
    name = hyperparameters.name
    own: dict[str, Array] = {
        full(name, key): np.array(value, np.int64) for key, value in counters._asdict().items()
    }
    if isinstance(hyperparameters.learning_rate, float):
        own[full(name, "learning_rate")] = np.array(hyperparameters.learning_rate)
    return own


def metadata(
    hyperparameters: Hyperparameters,
    exclusions: Exclusions,
    variables: Mapping[str, tuple[tuple[int, ...], str]],
) -> dict[str, str]:
    """Return what a checkpoint says besides the state.

    Args:
        hyperparameters: the optimizer's.
        exclusions: the optimizer's.
        variables: shape and name of the dtype of each variable, by name.
    """
    described = {
        name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in variables.items()
    }
    told = {"optimizer": hyperparameters.name, "variables": json.dumps(described)}
    # Some functions and schedules cannot be written down; the state is whole without them.
    with suppress(ValueError, TypeError, NotImplementedError):
        told["config"] = json.dumps(_configuration.to_config(hyperparameters, exclusions))
    return told


def read(
    path: str | os.PathLike[str],
    names: Mapping[str, str] | Callable[[str], str] | None,
    optimizer_name: str,
    transposed: Axes | None = None,
) -> dict[str, Array]:
    """Return the state in a file under the names, and with the axes, that it has in an optimizer.

    Args:
        path: the file.
        names: the names of its variables there, by their names in the file.
        optimizer_name: the name of the optimizer.
        transposed: the axes of arrays in the file, in the order that they have there.
    """
    tensors, told = checkpoint.read(path)
    try:
        saved_as, variables = told["optimizer"], list(dict(json.loads(told["variables"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"path must be a checkpoint that an optimizer has saved, received {os.fspath(path)!r},"
            f" which does not name its optimizer and variables ({error})"
        ) from error
    renamed = _renamed(variables, names)
    axes = _axes(list(renamed.values()), transposed)
    own = _state.optimizer_slots(saved_as)
    result: dict[str, Array] = {}
    for name, tensor in tensors.items():
        owner, slash, slot = name.rpartition("/")
        owner = optimizer_name if name in own else renamed.get(owner, owner)
        if slot in _state.ARRAYS and owner in axes:
            tensor = _transposed(tensor, owner, axes[owner])
        result[owner + slash + slot] = tensor
    return result


def _renamed(
    variables: list[str], names: Mapping[str, str] | Callable[[str], str] | None
) -> dict[str, str]:
    if names is None:
        return {name: name for name in variables}
    if isinstance(names, Mapping):
        unknown = sorted(names.keys() - set(variables))
        if unknown:
            raise ValueError(
                f"names must rename variables of the checkpoint, received {unknown}, which it does"
                f" not have; it has {listed(variables)}"
            )
        renamed = {name: names.get(name, name) for name in variables}
    elif callable(names):
        renamed = {name: names(name) for name in variables}
    else:
        raise TypeError(
            f"names must be a mapping or a function from names to names, received {names!r}"
        )
    if not all(isinstance(name, str) for name in renamed.values()):
        raise TypeError(f"names must give names, each a str, received {renamed}")
    if len(set(renamed.values())) != len(renamed):
        raise ValueError(
            f"names must give different names to different variables, received {renamed}"
        )
    return renamed


def _axes(variables: list[str], transposed: Axes | None) -> dict[str, Any]:
    """Return the axes that are asked for, by the variables' names."""
    if transposed is None:
        return {}
    if isinstance(transposed, Mapping):
        unknown = sorted(transposed.keys() - set(variables))
        if unknown:
            raise ValueError(
                f"transposed must have names that variables have here, received {unknown}, under"
                f" which nothing is loaded; there are {listed(variables)}"
            )
        return dict(transposed)
    if callable(transposed):
        asked = {name: transposed(name) for name in variables}
        return {name: axes for name, axes in asked.items() if axes is not None}
    raise TypeError(
        "transposed must be a mapping or a function from names to orders of axes, received"
        f" {transposed!r}; pass for example {{'layer.weight': (1, 0)}}"
    )


def _transposed(array: Array, variable: str, axes: Any) -> Array:
    every = tuple(range(array.ndim))
    given = tuple(axes) if isinstance(axes, Iterable) and not isinstance(axes, str) else None
    if given is None or not _are_integers(given) or sorted(given) != [*every]:
        raise ValueError(
            "transposed must have each axis of a variable's arrays in the file once, as"
            f" numpy.transpose takes them, received {axes!r} for {variable!r}, whose arrays there"
            f" have the axes {every}"
        )
    return array.transpose(given)


def _are_integers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, Integral) and not isinstance(v, bool) for v in values)


class Restoring(NamedTuple):
    """Saved state that has passed all checks, ready to be taken over."""

    arrays: dict[str, Array]
    """The variables' state, by full name; what it lacks starts afresh, from zero."""
    counters: Counters
    hyperparameters: Hyperparameters
    also: dict[str, Array]
    """Further state of the optimizer's own, by the names that were asked for."""


def restoring(
    saved: Mapping[str, Any],
    slots: Mapping[str, Slot],
    wanted: set[str],
    hyperparameters: Hyperparameters,
    *,
    keep_learning_rate: bool,
    also: Sequence[str] = (),
) -> Restoring:
    """Check saved state against an optimizer, and warn of what only one of them has.

    Args:
        saved: arrays by name.
        slots: all state that the optimizer's variables may have.
        wanted: the names of the state that they have.
        hyperparameters: the optimizer's.
        keep_learning_rate: keep the configured learning rate.
        also: further state of the optimizer's own that is wanted.

    Raises:
        ValueError: something is missing, unexpected, of another shape or dtype, or out of range.
    """
    saved, name = dict(saved), hyperparameters.name
    own = [*Counters._fields, *also]
    if keep_learning_rate:
        saved.pop(full(name, "learning_rate"), None)
    elif isinstance(hyperparameters.learning_rate, float):
        own.append("learning_rate")
    known = {**slots, **_state.optimizer_slots(name)}
    matched = _state.match(known, wanted | {full(name, key) for key in own}, saved)
    found = {key: matched.found[full(name, key)] for key in own if full(name, key) in matched.found}
    counters = Counters(**{key: int(found[key]) for key in Counters._fields})
    if _window_is_lost(hyperparameters, matched):
        counters = counters._replace(accumulated_calls=0)
    if "learning_rate" in found:
        hyperparameters = with_learning_rate(hyperparameters, float(found["learning_rate"]))
    _check_counts(matched.found)
    _report(matched)
    return Restoring(
        {key: array for key, array in _usable(matched).items() if key in slots},
        counters,
        hyperparameters,
        {key: found[key] for key in also if key in found},
    )


def _window_is_lost(hyperparameters: Hyperparameters, matched: _state.Matched) -> bool:
    """Return whether the calls of an open window cannot be gone on from."""
    accumulates = _state.ACCUMULATOR in _state.array_slots(hyperparameters)
    return not accumulates or bool(owners(matched.afresh, _state.ACCUMULATOR))


def _usable(matched: _state.Matched) -> dict[str, Array]:
    """Return what was found without what means nothing beside parts that start afresh."""
    # An average that starts afresh has not been taken yet, whatever else is saved.
    useless = {
        full(variable, _state.AVERAGED) for variable in owners(matched.afresh, _state.AVERAGE)
    }
    if owners(matched.afresh, _state.ACCUMULATOR):
        # Without all of its sums a window is begun anew.
        useless |= {
            full(variable, slot)
            for slot in (_state.ACCUMULATOR, _state.IN_WINDOW)
            for variable in owners(matched.found, slot)
        }
    return {key: array for key, array in matched.found.items() if key not in useless}


def _check_counts(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype == np.int64 and array < 0:
            raise ValueError(
                f"{name} must be >= 0, received {array}; the saved state is damaged, and nothing"
                " was loaded"
            )


def _report(matched: _state.Matched) -> None:
    told = [
        f"{what}: {listed(names)}"
        for what, names in (
            ("started afresh, because the saved state lacks it", matched.afresh),
            ("left out, because this optimizer does not use it", matched.ignored),
        )
        if names
    ]
    if told:
        warn("; ".join(told))

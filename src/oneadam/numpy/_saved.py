"""The state of a run as named arrays and strings, and taking it over again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam import _interrupts, _state, checkpoint
from oneadam._hyperparameters import Hyperparameters, with_learning_rate
from oneadam._plan import Counters
from oneadam._warnings import warn
from oneadam.numpy._run import Run

Array = NDArray[Any]


def state(run: Run) -> dict[str, Array]:
    """Return the whole state by name; the large arrays are the run's own, not copies."""
    name = run.hyperparameters.name
    own: dict[str, Array] = {
        f"{name}/{key}": np.array(value, np.int64) for key, value in run.counters._asdict().items()
    }
    if isinstance(run.hyperparameters.learning_rate, float):
        own[f"{name}/learning_rate"] = np.array(run.hyperparameters.learning_rate)
    return run.built().present() | own


class Restoring(NamedTuple):
    """Saved state that has passed all checks, ready to be taken over."""

    arrays: dict[str, Array]
    counters: Counters
    hyperparameters: Hyperparameters
    also: dict[str, Array]


def restoring(
    run: Run, saved: Mapping[str, Any], keep_learning_rate: bool, also: Iterable[str] = ()
) -> Restoring:
    """Check saved state against a run, and warn of what only one of them has.

    Args:
        run: built on the variables that the state is of.
        saved: arrays by name.
        keep_learning_rate: keep the configured learning rate.
        also: further state of the optimizer's own that is wanted.
    """
    run.check_trained()
    model, name = run.built(), run.hyperparameters.name
    saved = dict(saved)
    own = [*Counters._fields, *also]
    if keep_learning_rate:
        saved.pop(f"{name}/learning_rate", None)
    elif isinstance(run.hyperparameters.learning_rate, float):
        own.append("learning_rate")
    slots = model.slots() | _state.optimizer_slots(name)
    wanted = model.wanted() | {f"{name}/{key}" for key in own}
    matched = _state.match(slots, wanted, saved)
    found = {key: matched.found[f"{name}/{key}"] for key in own if f"{name}/{key}" in matched.found}
    counters = _counters(found, accumulates=model.accumulates)
    hyperparameters = run.hyperparameters
    if "learning_rate" in found:
        hyperparameters = with_learning_rate(hyperparameters, float(found["learning_rate"]))
    arrays = matched.found
    if any(name.endswith(f"/{_state.ACCUMULATOR}") for name in matched.afresh):
        # Without all of its sums a window is begun anew.
        counters = counters._replace(accumulated_calls=0)
        window = (f"/{_state.ACCUMULATOR}", f"/{_state.IN_WINDOW}")
        arrays = {key: array for key, array in arrays.items() if not key.endswith(window)}
    # An average that starts afresh has not been taken yet, whatever else is saved.
    untaken = {
        key.removesuffix(_state.AVERAGE) + _state.AVERAGED
        for key in matched.afresh
        if key.endswith(f"/{_state.AVERAGE}")
    }
    arrays = {key: array for key, array in arrays.items() if key not in untaken}
    _check_counts(arrays)
    _report(matched)
    return Restoring(
        arrays,
        counters,
        hyperparameters,
        {key: found[key] for key in also if key in found},
    )


def restore(run: Run, restoring: Restoring) -> None:
    """Take over saved state that has been checked."""
    with _interrupts.held_back():
        run.built().adopt(restoring.arrays)
        run.counters, run.hyperparameters = restoring.counters, restoring.hyperparameters


def _counters(found: Mapping[str, Array], *, accumulates: bool) -> Counters:
    counters = Counters(**{key: int(found[key]) for key in Counters._fields})
    return counters if accumulates else counters._replace(accumulated_calls=0)


def _check_counts(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype == np.int64 and array < 0:
            raise ValueError(
                f"{name} must be >= 0, received {array}; the saved state is damaged, and nothing"
                " was loaded"
            )


def _report(matched: _state.Matched) -> None:
    told = [
        f"{what}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        for what, names in (
            ("started afresh, because the saved state lacks it", matched.afresh),
            ("left out, because this optimizer does not use it", matched.ignored),
        )
        if names
    ]
    if told:
        warn("; ".join(told))


def metadata(run: Run) -> dict[str, str]:
    """Return what a checkpoint says besides the state."""
    variables = {
        name: {"shape": list(array.shape), "dtype": array.dtype.name}
        for name, array in run.built().variables.items()
    }
    told = {"optimizer": run.hyperparameters.name, "variables": json.dumps(variables)}
    # Some functions and schedules cannot be written down; the state is whole without them.
    with suppress(ValueError, TypeError, NotImplementedError):
        told["config"] = json.dumps(run.config())
    return told


def read(
    run: Run,
    path: str | os.PathLike[str],
    names: Mapping[str, str] | Callable[[str], str] | None,
) -> dict[str, Array]:
    """Return the state in a file under the names that it has in this run."""
    tensors, told = checkpoint.read(path)
    try:
        saved_as, variables = told["optimizer"], list(dict(json.loads(told["variables"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"path must be a checkpoint that an optimizer has saved, received {os.fspath(path)!r},"
            f" which does not name its optimizer and variables ({error})"
        ) from error
    renamed = _renamed(variables, names)
    own = _state.optimizer_slots(saved_as)
    result: dict[str, Array] = {}
    for name, tensor in tensors.items():
        owner, slash, slot = name.rpartition("/")
        owner = run.hyperparameters.name if name in own else renamed.get(owner, owner)
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
                f" not have; it has {', '.join(variables[:10])}"
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

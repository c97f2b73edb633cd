"""The variables that an optimizer was built on, with their state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import is_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneadam import _state
from oneadam._dtypes import compute_dtype
from oneadam._engines import Buffers, Options, strided, threads
from oneadam._engines.gradients import Gradients
from oneadam._engines.host import Host
from oneadam._engines.sight import Sight
from oneadam._messages import listed
from oneadam._plan import Scalars
from oneadam.numpy import _variables

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Float64s = NDArray[np.float64]


class Model:
    """Variables, their state and the engine that updates both in place.

    Args:
        structure: the variables as the user gave them.
        slots: which arrays of state every variable has.
        is_excluded: whether the variable of a name is exempt from weight decay.
    """

    def __init__(
        self, structure: Any, slots: Iterable[str], is_excluded: Callable[[str], bool]
    ) -> None:
        self.structure = structure
        self.variables = _variables.named_variables(structure)
        arrays = self.variables.values()
        self.state: dict[str, list[Array]] = {
            slot: [np.zeros(a.shape, compute_dtype(a.dtype)) for a in arrays] for slot in slots
        }
        count = len(self.variables)
        self.updates = np.zeros(count, np.int64)
        self.in_window = np.zeros(count, np.bool_)
        self.averaged = np.zeros(count, np.bool_)
        self.decayed = np.array([not is_excluded(name) for name in self.variables], np.bool_)
        self._prepare()

    def _prepare(self) -> None:
        self.names = list(self.variables)
        arrays = list(self.variables.values())
        self._takes_flat_lists = _variables.takes_flat_lists(self.structure)
        self._rows = {id(array): row for row, array in enumerate(arrays)}
        buffers = Buffers(
            param=arrays,
            grad=None,
            accumulator=self.state.get(_state.ACCUMULATOR),
            momentum=self.state[_state.MOMENTUM],
            velocity=self.state[_state.VELOCITY],
            velocity_max=self.state.get(_state.VELOCITY_HAT),
            average=self.state.get(_state.AVERAGE),
        )
        self._sight = Sight(buffers, self.names)
        self._host = Host(buffers, self._sight, strided, threads.together)

    def __getstate__(self) -> dict[str, Any]:
        rebuilt = (
            "names",
            "_takes_flat_lists",
            "_rows",
            "_sight",
            "_host",
        )  # addresses and identities are this process's
        return {name: value for name, value in vars(self).items() if name not in rebuilt}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # Buffers that came beside a pickle may be read-only, and the state is ours to write.
        for slot, column in self.state.items():
            self.state[slot] = [np.require(array, requirements=["C", "A", "W"]) for array in column]
        self.updates = np.require(self.updates, requirements="W")
        self.in_window = np.require(self.in_window, requirements="W")
        self.averaged = np.require(self.averaged, requirements="W")
        self._prepare()

    @property
    def accumulates(self) -> bool:
        """Whether gradients are accumulated over several calls."""
        return _state.ACCUMULATOR in self.state

    def row(self, variable: Any) -> int:
        """Return the number of a variable, given itself or its name.

        Raises:
            ValueError: the optimizer was not built on it.
        """
        if isinstance(variable, str):
            if variable in self.variables:
                return self.names.index(variable)
            raise ValueError(
                f"variables must be among those that the optimizer was built on, received the name"
                f" {variable!r}; it knows {listed(self.names)}"
            )
        row = self._rows.get(id(variable))
        if row is None:
            shape = getattr(variable, "shape", None)
            raise ValueError(
                "variables must be the very arrays that the optimizer was built on, received"
                f" another {type(variable).__name__} of shape {shape}; build a new optimizer for it"
            )
        return row

    def check_same(self, variables: Any) -> None:
        """Refuse a structure that has other variables than the optimizer was built on."""
        rows = [self.row(variable) for _, variable in _variables.leaves(variables)]
        if sorted(rows) != list(range(len(self.names))):
            raise ValueError(
                f"variables must be the {len(self.names)} that the optimizer was built on, each"
                f" once, received {len(rows)}; make a new optimizer for another set"
            )

    def check_variables(self) -> None:
        """Refuse variables that were replaced in their structure, or changed in place."""
        self.check_structure()
        self._sight.check_variables()

    def check_structure(self) -> None:
        """Refuse variables that were replaced in their structure."""
        known = list(self.variables.values())
        if isinstance(self.structure, list) and self._takes_flat_lists:
            found = self.structure
        else:
            found = [leaf for _, leaf in _variables.leaves(self.structure)]
        if len(found) != len(known) or not all(map(is_, found, known)):
            raise ValueError(
                "the structure that the optimizer was built on must keep its arrays, received one"
                f" with {len(found)} leaves of which"
                f" {sum(map(is_, found, known))} are those of the build; update variables in place"
                " (variable[...] = values), or build a new optimizer"
            )

    def in_order(self, grads: Any, variables: Any) -> list[Any]:
        """Return a gradient or None for each variable.

        Args:
            grads: gradients in the structure of `variables`, or in a list.
            variables: some of the variables; None for all, in the structure of the build.
        """
        if variables is None:
            return self._listed(grads, self.structure, self._takes_flat_lists, len(self.names))
        rows = [self.row(variable) for _, variable in _variables.leaves(variables)]
        if len(set(rows)) != len(rows):
            raise ValueError(
                "variables must each be given once, received one of them twice; add its gradients"
            )
        in_order: list[Any] = [None] * len(self.names)
        takes_flat_lists = _variables.takes_flat_lists(variables)
        given = self._listed(grads, variables, takes_flat_lists, len(rows))
        for row, grad in zip(rows, given, strict=True):
            in_order[row] = grad
        return in_order

    @staticmethod
    def _listed(grads: Any, variables: Any, takes_flat_lists: bool, count: int) -> list[Any]:
        is_flat = takes_flat_lists or len(variables) != count
        if is_flat and isinstance(grads, (list, tuple)) and len(grads) == count:
            return list(grads)
        return _variables.in_structure(grads, variables)

    def look(self, grads: list[Array | None]) -> Gradients:
        """Check the gradients, one for each variable, and find them in memory."""
        return self._host.look(grads, self._look_closer)

    def _look_closer(self, row: int, grad: Any) -> Array | None:
        name = self.names[row]
        return _variables.check_gradient(grad, name, self.variables[name].shape)

    def norms(self, gradients: Gradients, options: Options) -> Float64s:
        """Return the norm of each variable's unscaled gradient, or of its window's sum."""
        return self._host.norms(gradients, options, accumulated=self.accumulates)

    def accumulate(self, gradients: Gradients, options: Options) -> None:
        """Add the gradients to the accumulation window."""
        self._host.accumulate(gradients, options)
        self.in_window |= gradients.present

    def participants(self, gradients: Gradients) -> Bools:
        """Return which variables have had a gradient in the window that this call closes."""
        return gradients.present | self.in_window

    def update(
        self, gradients: Gradients, participants: Bools, scalars: Scalars, options: Options
    ) -> None:
        """Update the participants, and the moving averages of all variables."""
        self._host.update(
            gradients,
            scalars,
            options,
            participants=participants,
            accumulated=self.accumulates,
        )
        self.updates += participants
        self.in_window[:] = False
        if _state.AVERAGE in self.state:
            self.averaged[:] = True

    def averages(self, variables: Any) -> dict[str, Array]:
        """Return the moving averages of variables, or of all, by name, where they have one."""
        if variables is None:
            rows = list(range(len(self.names)))
        elif isinstance(variables, (str, np.ndarray)):
            rows = [self.row(variables)]
        else:
            rows = [self.row(variable) for _, variable in _variables.leaves(variables)]
        averages = self.state.get(_state.AVERAGE, [])
        return {self.names[r]: averages[r] for r in rows if averages and self.averaged[r]}

    def slots(self) -> dict[str, _state.Slot]:
        """Return all state that the variables may have."""
        return {
            name: slot
            for variable, array in self.variables.items()
            for name, slot in _state.variable_slots(
                variable, array.shape, compute_dtype(array.dtype).name
            ).items()
        }

    def present(self) -> dict[str, Array]:
        """Return the state of the variables by name: the arrays themselves, not copies."""
        vectors = self._vectors()
        return {
            _state.full(name, slot): array
            for row, name in enumerate(self.names)
            for slot, array in (
                *((slot, column[row]) for slot, column in self.state.items()),
                *((slot, np.array(vector[row])) for slot, vector in vectors.items()),
            )
        }

    def _vectors(self) -> dict[str, Array]:
        """Return what there is one number of for each variable, by slot."""
        vectors: dict[str, Array] = {_state.UPDATES: self.updates}
        if self.accumulates:
            vectors[_state.IN_WINDOW] = self.in_window
        if _state.AVERAGE in self.state:
            vectors[_state.AVERAGED] = self.averaged
        return vectors

    def wanted(self) -> set[str]:
        """Return the names of the state that the variables have."""
        slots = [*self.state, *self._vectors()]
        return {_state.full(name, slot) for name in self.names for slot in slots}

    def adopt(self, found: Mapping[str, Array]) -> None:
        """Take over saved state that has been matched; what it lacks starts afresh."""
        for row, name in enumerate(self.names):
            for slot, column in self.state.items():
                column[row][...] = found.get(_state.full(name, slot), 0)
            for slot, vector in self._vectors().items():
                vector[row] = found.get(_state.full(name, slot), 0)

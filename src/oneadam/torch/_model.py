"""The parameters that an optimizer trains, with their state and the engines that update them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor

from oneadam import _state
from oneadam._engines import Buffers, Options
from oneadam._engines.gradients import Gradients
from oneadam._engines.host import Host
from oneadam._engines.torch import rows as rows_engine
from oneadam._engines.torch.sight import Sight
from oneadam._hyperparameters import Hyperparameters
from oneadam._plan import Scalars
from oneadam.torch import _parameters, _sharding, _slots
from oneadam.torch._groups import Group

Bools = NDArray[np.bool_]
Float64s = NDArray[np.float64]
State = dict[Tensor, dict[str, Any]]


class Kind(NamedTuple):
    """What an engine needs to be the same for all parameters that it takes at once."""

    amsgrad: bool
    clipvalue: float | None
    maximize: bool

    @classmethod
    def of(cls, group: Group) -> Kind:
        """Return the kind of a group's parameters."""
        return cls(group["amsgrad"], group["clipvalue"], group["maximize"])


class Part(NamedTuple):
    """Parameters of one kind, and their engine."""

    kind: Kind
    rows: NDArray[np.intp]
    host: Host
    sight: Sight

    def options(self, options: Options) -> Options:
        """Return what holds for every element of these parameters in a call."""
        loss_scale = options.loss_scale
        if self.kind.maximize:
            # Exact, because only the sign changes.
            loss_scale = -1.0 if loss_scale is None else -loss_scale
        return options._replace(loss_scale=loss_scale, limit=self.kind.clipvalue)


class Model:
    """Parameters with state. What lies where is planned once, until something is exchanged.

    Parameters that do not require a gradient, and never had one, have no state.

    Args:
        groups: of the optimizer.
        names: of the parameters, in the order of the groups.
        state: of the optimizer; what it lacks is made, what does not fit is converted.
        hyperparameters: of the optimizer, for which arrays of state there are.
        process_group: over which plain parameters are spread, if they are.
    """

    def __init__(
        self,
        groups: list[Group],
        names: Sequence[str],
        state: State,
        hyperparameters: Hyperparameters,
        process_group: Any,
    ) -> None:
        every = [(p, number) for number, group in enumerate(groups) for p in group["params"]]
        named = [(name, *entry) for name, entry in zip(names, every, strict=True)]
        live = [entry for entry in named if _is_live(entry[1], state)]
        self.names = [name for name, _, _ in live]
        self.params = [param for _, param, _ in live]
        self.group_of = np.array([number for _, _, number in live], np.intp)
        for name, param in zip(self.names, self.params, strict=True):
            _parameters.check_parameter(name, param)
        _parameters.check_separate(self.names, map(_sharding.local, self.params))
        self.accumulates = (hyperparameters.gradient_accumulation_steps or 1) > 1
        self.averages = hyperparameters.use_ema
        self.sums = _sharding.Sums(self.params, process_group)
        self._dormant = [p for _, p, _ in named if not _is_live(p, state)]
        self._kinds = [Kind.of(group) for group in groups]
        self._slots = [
            _state.array_slots(_with_amsgrad(hyperparameters, kind)) for kind in self._kinds
        ]
        self.decayed = np.ones(len(self.params), np.bool_)
        self._adopt(state)
        self._remember(groups, state)
        self._find_locals()
        self.parts = list(self._made_parts())

    def _adopt(self, state: State) -> None:
        """Complete the state, and keep the numbers of all parameters side by side."""
        made: list[dict[str, Tensor]] = []
        for param, group in zip(self.params, self.group_of, strict=True):
            own = state.get(param, {})
            made.append(
                {
                    key: _slots.fitted(param, key, own[key])
                    if key in own
                    else _slots.empty(param, key)
                    for key in _slots.keys_of(self._slots[group])
                }
            )
        vectors = {
            key: torch.stack([_number(own, key) for own in made]) for key in _slots.NUMBERS if made
        }
        for row, (param, own) in enumerate(zip(self.params, made, strict=True)):
            own.update({key: vectors[key][row] for key in _slots.NUMBERS if key in own})
            state[param].update(own)
        empty = {key: torch.zeros(0, dtype=dtype) for key, dtype in _slots.NUMBERS.items()}
        vectors = vectors or empty
        self.updates: Float64s = vectors["step"].numpy()
        self.in_window: Bools = vectors["in_window"].numpy()
        self.averaged: Bools = vectors["averaged"].numpy()

    def _remember(self, groups: list[Group], state: State) -> None:
        self._params_of_groups = [list(group["params"]) for group in groups]
        self._owned = list(state.values())
        self._tensors = list(chain.from_iterable(map(dict.values, self._owned)))
        self.state = [state[param] for param in self.params]

    def is_current(self, groups: list[Group], state: State) -> bool:
        """Return whether parameters and state are the very tensors that they were, and lie there.

        Schedulers, checkpoints and users may exchange any of them between two steps.
        """
        return (
            len(groups) == len(self._params_of_groups)
            and all(
                _are_same(group["params"], known)
                for group, known in zip(groups, self._params_of_groups, strict=True)
            )
            and [Kind.of(group) for group in groups] == self._kinds
            and _are_same(list(state.values()), self._owned)
            and _are_same(list(chain.from_iterable(map(dict.values, self._owned))), self._tensors)
            and not any(_is_live(param, state) for param in self._dormant)
            and all(_sharding.local(whole) is local for whole, local in self._spread)
            and all(part.sight.is_current() for part in self.parts)
        )

    def _find_locals(self) -> None:
        """Find the parts of all tensors that this process holds."""
        self.locals = [_sharding.local(param) for param in self.params]
        wholes = chain(self.params, self._tensors)
        self._spread = [(t, _sharding.local(t)) for t in wholes if isinstance(t, DTensor)]
        self._spread_rows = {r for r, p in enumerate(self.params) if isinstance(p, DTensor)}

    def _made_parts(self) -> Iterator[Part]:
        for kind in dict.fromkeys(self._kinds):
            numbers = [number for number, other in enumerate(self._kinds) if other == kind]
            rows = np.flatnonzero(np.isin(self.group_of, numbers))
            if len(rows):
                buffers = self._buffers(rows.tolist(), self._slots[numbers[0]])
                sight = Sight(buffers)
                yield Part(kind, rows, Host(buffers, sight, rows_engine), sight)

    def _buffers(self, rows: list[int], slots: Sequence[str]) -> Buffers:
        def column(slot: str) -> list[Tensor] | None:
            if slot not in slots:
                return None
            return [self._local_state(row, slot) for row in rows]

        return Buffers(
            param=[self.locals[row] for row in rows],
            grad=None,
            accumulator=column(_state.ACCUMULATOR),
            momentum=column(_state.MOMENTUM),
            velocity=column(_state.VELOCITY),
            velocity_max=column(_state.VELOCITY_HAT),
            average=column(_state.AVERAGE),
        )

    def look(self, grads: list[Any]) -> Seen:
        """Check the gradients, one for each parameter, and find them in memory."""
        grads = list(grads)
        for row in self._spread_rows:
            if grads[row] is not None:
                grads[row] = _parameters.local_gradient(
                    self.names[row], self.params[row], self.locals[row], grads[row]
                )
        seen = []
        for part in self.parts:
            rows = part.rows.tolist()
            closer = partial(self._local_gradient, rows)
            seen.append(part.host.look([grads[row] for row in rows], closer))
        present = np.zeros(len(grads), np.bool_)
        for part, gradients in zip(self.parts, seen, strict=True):
            present[part.rows] = gradients.present
        return Seen(seen, present)

    def _local_gradient(self, rows: list[int], place: int, grad: Any) -> Tensor:
        row = rows[place]
        if row in self._spread_rows:
            found: Tensor = grad  # before
            return found
        return _parameters.local_gradient(self.names[row], self.params[row], self.locals[row], grad)

    def norms(self, seen: Seen, options: Options) -> Float64s:
        """Return the norm of each parameter's unscaled gradient here, or of its window's sum."""
        norms = np.zeros(len(self.params))
        for part, gradients in zip(self.parts, seen.gradients, strict=True):
            norms[part.rows] = part.host.norms(
                gradients, part.options(options), accumulated=self.accumulates
            )
        return norms

    def accumulate(self, seen: Seen, options: Options) -> None:
        """Add the gradients to the accumulation window."""
        for part, gradients in zip(self.parts, seen.gradients, strict=True):
            part.host.accumulate(gradients, part.options(options))
        self.in_window |= seen.present

    def participants(self, seen: Seen) -> Bools:
        """Return which parameters have had a gradient in the window that this call closes."""
        return seen.present | self.in_window

    def update(self, seen: Seen, participants: Bools, scalars: Scalars, options: Options) -> None:
        """Update the participants, and the moving averages of all parameters."""
        for part, gradients in zip(self.parts, seen.gradients, strict=True):
            part.host.update(
                gradients,
                _of_rows(scalars, part.rows, len(self.params)),
                part.options(options),
                participants=participants[part.rows],
                accumulated=self.accumulates,
            )
        increment_version(self.params)
        self.updates += participants
        self.in_window[:] = False
        self.averaged[:] = self.averages

    def averages_of(self, rows: Iterable[int]) -> dict[int, Tensor]:
        """Return the averages of the parts here of parameters that have one."""
        return {
            row: self._local_state(row, _state.AVERAGE)
            for row in rows
            if self.averages and self.averaged[row]
        }

    def _local_state(self, row: int, slot: str) -> Tensor:
        return _sharding.local(self.state[row][_slots.KEYS[slot]])


class Seen(NamedTuple):
    """What a call found out about its gradients."""

    gradients: list[Gradients]
    """Of each part of the model."""
    present: Bools
    """Which parameters have one."""


def _of_rows(scalars: Scalars, rows: NDArray[np.intp], count: int) -> Scalars:
    """Return the scalars of some parameters."""
    if len(rows) == count:
        return scalars
    return Scalars(*(c[rows] if np.size(c) == count > 1 else c for c in scalars))


def _with_amsgrad(hyperparameters: Hyperparameters, kind: Kind) -> Hyperparameters:
    return dataclasses.replace(hyperparameters, amsgrad=kind.amsgrad)


def _number(own: dict[str, Tensor], key: str) -> Tensor:
    return own[key] if key in own else torch.zeros((), dtype=_slots.NUMBERS[key])


def _is_live(param: Tensor, state: State) -> bool:
    return param.requires_grad or param.grad is not None or bool(state.get(param))


def _are_same(found: list[Any], known: list[Any]) -> bool:
    return len(found) == len(known) and all(map(is_, found, known))

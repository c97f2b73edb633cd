"""The parameters that an optimizer trains, with their state and the engines that update them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, compress
from operator import is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor

from oneadam import _state
from oneadam._engines import Buffers, Options
from oneadam._engines.cpu.contents import Contents
from oneadam._engines.host import Host
from oneadam._engines.torch import rows as rows_engine
from oneadam._engines.torch import team, tensors
from oneadam._engines.torch.device import Device
from oneadam._engines.torch.sight import Sight
from oneadam._engines.torch.vectors import Vectors
from oneadam._hyperparameters import Hyperparameters
from oneadam._plan import Scalars
from oneadam.torch import _parameters, _sharding, _slots
from oneadam.torch._parts import Kind, Part, Seen
from oneadam.torch._spelling import Group

Bools = NDArray[np.bool_]
State = dict[Tensor, dict[str, Any]]


def _of_rows(scalars: Scalars, rows: NDArray[np.intp], count: int) -> Scalars:
    """Return the scalars of some parameters."""
    if len(rows) == count:
        return scalars
    return Scalars(*(c[rows] if np.ndim(c) and len(c) == count else c for c in scalars))


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
        self.accumulates = (hyperparameters.gradient_accumulation_steps or 1) > 1
        self.averages = hyperparameters.use_ema
        self.sums = _sharding.Sums(self.params, process_group)
        self._dormant = [p for _, p, _ in named if not _is_live(p, state)]
        self._kinds = [Kind.of(group) for group in groups]
        self._slots = [
            _slots.slots_of(hyperparameters, amsgrad=kind.amsgrad) for kind in self._kinds
        ]
        self.decayed = np.ones(len(self.params), np.bool_)
        devices = (_sharding.local(param).device for param in self.params)
        away = [device for device in devices if not tensors.is_host(device)]
        self.xp: Any = Vectors(away[0]) if away else np
        """The namespace of what there is one number of for each parameter."""
        made = self._made_state(state)
        _check_separate(self.names, self.params, made)
        self._adopt(state, made)
        self._remember(groups, state)
        self._find_locals()
        self.parts = list(self._made_parts())

    def _made_state(self, state: State) -> list[dict[str, Tensor]]:
        """Return the state of each parameter as it was, completed and converted."""
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
        return made

    def _adopt(self, state: State, made: list[dict[str, Tensor]]) -> None:
        """Take over state, and keep the numbers of all parameters side by side."""
        vectors = {
            key: torch.stack([_number(own, key) for own in made]).to(self._home(key))
            for key in _slots.NUMBERS
            if made
        }
        for row, (param, own) in enumerate(zip(self.params, made, strict=True)):
            own.update({key: vectors[key][row] for key in _slots.NUMBERS if key in own})
            state.setdefault(param, {}).update(own)
        empty = {
            key: torch.zeros(0, dtype=dtype, device=self._home(key))
            for key, dtype in _slots.NUMBERS.items()
        }
        vectors = vectors or empty
        self.in_window: Bools = vectors["in_window"].numpy()
        is_here = self.xp is np
        self.updates: Any = vectors["step"].numpy() if is_here else vectors["step"]
        self.averaged: Any = vectors["averaged"].numpy() if is_here else vectors["averaged"]

    def _home(self, key: str) -> torch.device:
        """Return where the numbers of all parameters are kept."""
        # Only this device knows whether an update was skipped.
        is_away = isinstance(self.xp, Vectors) and key != "in_window"
        return self.xp.device if is_away else torch.device("cpu")

    def _remember(self, groups: list[Group], state: State) -> None:
        self._all_state, self._lists = state, [group["params"] for group in groups]
        owned = list(state.values())
        self._tensors = list(chain.from_iterable(map(dict.values, owned)))
        self._contents = Contents([state, *owned], self._lists)
        self.state = [state[param] for param in self.params]

    def is_current(self, groups: list[Group], state: State) -> bool:
        """Return whether parameters and state are the very tensors that they were, and lie there.

        Schedulers, checkpoints and users may exchange any of them between two steps.
        """
        return (
            state is self._all_state
            and _are_same([group["params"] for group in groups], self._lists)
            and self._contents.are_same()
            and [Kind.of(group) for group in groups] == self._kinds
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
        kinds = [
            (local.device, self._kinds[group])
            for local, group in zip(self.locals, self.group_of, strict=True)
        ]
        for device, kind in dict.fromkeys(kinds):
            rows = [row for row, other in enumerate(kinds) if other == (device, kind)]
            buffers = self._buffers(rows, self._slots[self.group_of[rows[0]]])
            places = (np.array(rows, np.intp), rows)
            if tensors.is_host(device):
                sight = Sight(buffers)
                yield Part(kind, *places, Host(buffers, sight, rows_engine, team.together), sight)
            else:
                engine = Device(buffers)
                yield Part(kind, *places, engine, engine)

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
            own = grads if len(self.parts) == 1 else [grads[row] for row in part.numbers]
            seen.append(part.engine.look(own, partial(self._local_gradient, part.numbers)))
        if len(seen) == 1:
            return Seen(seen, seen[0].present)
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

    def norms(self, seen: Seen, options: Options) -> Any:
        """Return the norm of each parameter's unscaled gradient here, or of its window's sum."""
        norms = self.xp.asarray(np.zeros(len(self.params)))
        for part, gradients in zip(self.parts, seen.gradients, strict=True):
            found = part.engine.norms(
                gradients, part.options(options), accumulated=self.accumulates
            )
            norms[part.rows] = self.xp.asarray(found)
        return norms

    def accumulate(self, seen: Seen, options: Options) -> None:
        """Add the gradients to the accumulation window."""
        for part, gradients in zip(self.parts, seen.gradients, strict=True):
            part.engine.accumulate(gradients, part.options(options))
        self.in_window |= seen.present

    def participants(self, seen: Seen) -> Bools:
        """Return which parameters have had a gradient in the window that this call closes."""
        return seen.present | self.in_window

    def update(
        self,
        seen: Seen,
        participants: Bools,
        scalars: Scalars,
        options: Options,
        skip: Tensor | None,
    ) -> None:
        """Update the participants, and the moving averages of all parameters.

        Args:
            seen: the gradients.
            participants: which parameters have had one.
            scalars: numbers, or columns of the model's namespace.
            options: what holds for every element.
            skip: bool, 0-d, on the device, where it is left to that whether nothing changes.
        """
        taken = self.xp.asarray(participants)
        is_first = ~self.averaged if self.averages else self.averaged
        if skip is not None:
            taken, is_first = taken & ~skip, is_first & ~skip
        for part, gradients in zip(self.parts, seen.gradients, strict=True):
            part.update(
                gradients,
                _of_rows(scalars, part.rows, len(self.params)),
                part.options(options),
                participants=participants[part.rows],
                accumulated=self.accumulates,
                skip=skip,
            )
        if options.overwrite or participants.all():
            increment_version(self.params)
        else:
            increment_version(list(compress(self.params, participants.tolist())))
        self.updates += taken
        self.averaged |= is_first
        self.in_window[:] = False

    def averages_of(self, rows: Iterable[int]) -> dict[int, Tensor]:
        """Return the averages of the parts here of parameters that have one."""
        return {
            row: self._local_state(row, _state.AVERAGE)
            for row in rows
            if self.averages and self.averaged[row]
        }

    def _local_state(self, row: int, slot: str) -> Tensor:
        return _sharding.local(self.state[row][_slots.KEYS[slot]])


def _number(own: dict[str, Tensor], key: str) -> Tensor:
    if key in own:
        return own[key].cpu()
    return torch.zeros((), dtype=_slots.NUMBERS[key], device="cpu")


def _check_separate(names: list[str], params: list[Tensor], made: list[dict[str, Tensor]]) -> None:
    every = dict(zip(names, params, strict=True))
    for name, own in zip(names, made, strict=True):
        arrays = {key: tensor for key, tensor in own.items() if key not in _slots.NUMBERS}
        every |= {f"{key} of {name}": tensor for key, tensor in arrays.items()}
    _parameters.check_separate(list(every), list(map(_sharding.local, every.values())))


def _is_live(param: Tensor, state: State) -> bool:
    return param.requires_grad or param.grad is not None or bool(state.get(param))


def _are_same(found: list[Any], known: list[Any]) -> bool:
    return len(found) == len(known) and all(map(is_, found, known))

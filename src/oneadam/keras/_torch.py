"""The engine for PyTorch: that of `oneadam.torch`, in place, on tensors of Keras's variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch
from keras.src.backend.common.stateless_scope import in_stateless_scope
from torch import Tensor

from oneadam import _hyperparameters as hyper
from oneadam import _interrupts, _plan, _state
from oneadam._engines import Buffers, Options
from oneadam._engines.torch import rows as rows_engine
from oneadam._gradients import Scaling
from oneadam._hyperparameters import Hyperparameters, Rates
from oneadam._plan import Call, Counters, Settings
from oneadam.keras._run import Run
from oneadam.keras._slots import Last
from oneadam.torch import _slots
from oneadam.torch._compiler import uncompiled
from oneadam.torch._model import Model
from oneadam.torch._update import Update

Variable = Any
_WORD = 31
"""Bits of the lower word of a counter: Keras's integers have 32."""
_MOST = 2**_WORD - 1
_LEARNING_RATE, _GRADIENT_NORM, _CLIP_SCALE = range(len(Last._fields))
Plan = Callable[[Hyperparameters, Counters], Call]
_held = attrgetter("_value")
"""The tensor in a variable."""


class Engine:
    """Takes calls in PyTorch, in place; inside a `StatelessScope` on copies.

    Args:
        run: what to work on.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._tensors: _Tensors | None = None

    @uncompiled
    def take(self, grads: Sequence[Tensor | None], raw: Sequence[Tensor | None]) -> None:
        """Take one call: update the variables, or accumulate."""
        self._act(list(grads), list(raw), _plan.plan_call)

    @uncompiled
    def flush(self) -> None:
        """Close the open accumulation window, if there is one."""
        slots = self._run.slots
        if slots.counts_in(slots.counts.value).accumulated_calls:
            none = [None] * len(self._run.rows)
            self._act(none, [None] * len(self._run.overwritten), _plan.plan_flush)

    def check_rate(self, rate: Any) -> None:
        """Refuse nothing, for nothing is compiled."""

    @torch.no_grad()
    def _act(self, grads: list[Any], raw: list[Any], plan: Plan) -> None:
        run = self._run
        if in_stateless_scope():
            copies = _Copies()
            tensors = _Tensors(run, copies)
            tensors.take(grads, raw, plan)
            for variable in tensors.variables:
                variable.assign(copies.get(variable))
            return
        if self._tensors is None or not self._tensors.are_current():
            self._tensors = _Tensors(run, _InPlace())
        self._tensors.take(grads, raw, plan)


class _InPlace:
    """The tensors that variables hold."""

    def get(self, variable: Variable) -> Tensor:
        tensor: Tensor = variable._value
        return tensor

    def put(self, variable: Variable, tensor: Tensor) -> None:
        variable._value = torch.nn.Parameter(tensor, requires_grad=False)


class _Copies:
    """Copies of what variables hold."""

    def __init__(self) -> None:
        self._made: dict[int, Tensor] = {}

    def get(self, variable: Variable) -> Tensor:
        if id(variable) not in self._made:
            self._made[id(variable)] = variable.value.detach().clone()
        return self._made[id(variable)]

    def put(self, variable: Variable, tensor: Tensor) -> None:
        self._made[id(variable)] = tensor


class _Tensors:
    """The tensors of an optimizer's variables, and the model of `oneadam.torch` made of them.

    Args:
        run: what they are the tensors of.
        memory: where the tensors are found.
    """

    def __init__(self, run: Run, memory: _InPlace | _Copies) -> None:
        self._run, slots, h = run, run.slots, run.hyperparameters
        tensor_of = memory.get
        for slot, column in slots.arrays.items():
            for variable, state in zip(run.rows, column, strict=True):
                # The engine wants state to lie in memory like its parameter.
                own = tensor_of(state)
                fitted = _slots.fitted(tensor_of(variable), _slots.KEYS[slot], own)
                if not _slots.shares_storage(fitted, own):
                    memory.put(state, fitted)
        self._columns = [list(run.rows), *slots.arrays.values()]
        self._found = [list(map(tensor_of, column)) for column in self._columns]
        self._params, *states = self._found
        self._arrays = dict(zip(slots.arrays, states, strict=True))
        self._counts = slots.counts_in(_for_host(tensor_of(slots.counts)))
        self._last = _for_host(tensor_of(slots.last))
        self._calls = _for_host(tensor_of(run.calls))
        self._updates = _for_host(tensor_of(slots.updates))
        self._rate = _for_host(tensor_of(run.learning_rate))
        self._scale = None if run.loss_scale is None else _for_host(tensor_of(run.loss_scale))
        self._overwritten: list[tuple[Any, ...]] = [
            tuple(None if variable is None else tensor_of(variable) for variable in pair)
            for pair in run.overwritten
        ]
        pairs = [variable for pair in run.overwritten for variable in pair if variable is not None]
        numbers = [run.calls, slots.updates, slots.counts, slots.last]
        self.variables = [*chain.from_iterable(self._columns), *numbers, *pairs]
        self._constraints = [getattr(variable, "constraint", None) for variable in run.rows]
        # Between the update and the average of it stands the constraint.
        self._averages_later = h.use_ema and any(self._constraints)
        self._model = self._made_model()

    def _made_model(self) -> Model:
        run = self._run
        h = dataclasses.replace(
            run.hyperparameters, use_ema=run.hyperparameters.use_ema and not self._averages_later
        )
        group = {"params": self._params, "amsgrad": h.amsgrad, "clipvalue": h.clipvalue,
                 "maximize": False}  # fmt: skip
        state = {
            param: {_slots.KEYS[slot]: column[row] for slot, column in self._arrays.items()}
            for row, param in enumerate(self._params)
        }
        self._groups, self._state = [group], state
        model = Model(self._groups, run.names, state, h, None)
        model.decayed = np.array(run.decayed, np.bool_)
        return model

    def are_current(self) -> bool:
        """Return whether all variables still have these tensors, and these lie where they lay."""
        clipvalue = self._run.hyperparameters.clipvalue
        if self._groups[0]["clipvalue"] != clipvalue:
            return False
        return all(
            all(map(is_, map(_held, column), found))
            for column, found in zip(self._columns, self._found, strict=True)
        ) and self._model.is_current(self._groups, self._state)

    def take(self, grads: list[Any], raw: list[Any], plan: Plan) -> None:
        """Take a call, or skip it."""
        h, model = self._run.hyperparameters, self._model
        counters = self._counters()
        rates = hyper.now(self._as_it_is(), counters.calls)
        call = plan(h, counters)
        scale = h.loss_scale_factor if self._scale is None else float(self._scale)
        on_nonfinite = "skip" if self._run.skips else h.on_nonfinite
        options = Options(scale, None, h.weight_decay is not None, call.overwrite)
        if self._averages_later:
            options = options._replace(overwrite=False)
        with _interrupts.held_back():
            seen = model.look(grads)
            self._tell_model()
            update = Update(model, seen, [h], [rates], call, options)
            norms = None
            if on_nonfinite != "propagate" or update.clips:
                norms = update.norms(names=on_nonfinite == "raise")
            if update.is_skipped(norms, on_nonfinite, None) or (
                on_nonfinite == "skip"
                and not all(bool(torch.isfinite(grad).all()) for grad in raw if grad is not None)
            ):
                self._count(counters._replace(skipped_calls=counters.skipped_calls + 1))
                return
            if call.updates:
                scaling = update.take(norms, None)
                self._constrain(seen.present, rates, call)
                self._note(scaling)
            else:
                model.accumulate(seen, options)
            self._ask_model()
            if h.use_ema and call.updates:
                self._counts.averaged[...] = True
            self._overwrite(raw, closes=call.updates)
            self._count(call.after)
            self._last[_LEARNING_RATE] = rates.learning_rate

    def _counters(self) -> Counters:
        counts = self._counts
        calls, updates, skipped_calls = counts.overflows.tolist()
        return Counters(
            calls=(calls << _WORD) + int(self._calls),
            updates=(updates << _WORD) + int(self._updates),
            accumulated_calls=int(counts.accumulated_calls),
            skipped_calls=(skipped_calls << _WORD) + int(counts.skipped_calls),
        )

    def _count(self, counters: Counters) -> None:
        own = self._counts
        words = (self._calls, self._updates, own.skipped_calls)
        counts = (counters.calls, counters.updates, counters.skipped_calls)
        for place, (word, count) in enumerate(zip(words, counts, strict=True)):
            word[...] = count & _MOST
            own.overflows[place] = count >> _WORD
        own.accumulated_calls[...] = counters.accumulated_calls

    def _as_it_is(self) -> Hyperparameters:
        """Return the arguments with the learning rate that the variable has now."""
        h = self._run.hyperparameters
        if callable(h.learning_rate):
            return h
        rate = float(self._rate)
        if rate == h.learning_rate:
            return h
        # What was given is the same, only not rounded to the variable's dtype.
        given = torch.tensor(h.learning_rate, dtype=torch.as_tensor(self._rate).dtype)
        return h if given.item() == rate else hyper.with_learning_rate(h, rate)

    def _tell_model(self) -> None:
        """Have the model know what the variables say."""
        counts, model = self._counts, self._model
        model.updates[:] = model.xp.asarray(_on_host(counts.row_updates))
        model.in_window[:] = _on_host(counts.in_window)[: len(self._params)]
        model.averaged[:] = bool(counts.averaged)
        self._participants = model.in_window.copy()

    def _ask_model(self) -> None:
        """Have the variables say what the model knows."""
        counts, model = self._counts, self._model
        counts.in_window[: len(self._params)] = _like(counts.in_window, model.in_window)
        updates = np.minimum(_on_host(model.updates), _MOST)
        counts.row_updates[...] = _like(counts.row_updates, updates)

    def _note(self, scaling: Scaling) -> None:
        if scaling.gradient_norm is not None:
            self._last[_GRADIENT_NORM] = float(scaling.gradient_norm)
        if scaling.clip_scale is not None:
            self._last[_CLIP_SCALE] = float(scaling.clip_scale)

    def _constrain(self, present: Any, rates: Rates, call: Call) -> None:
        """Put new values through their constraints, and take averages of what comes out."""
        if not any(self._constraints):
            return
        for row, (param, constraint) in enumerate(
            zip(self._params, self._constraints, strict=True)
        ):
            if constraint is not None and (present[row] or self._participants[row]):
                param.copy_(constraint(param))
        if not self._averages_later:
            return
        h = self._run.hyperparameters
        s = _plan.scalars(
            Settings.of(h, rates),
            steps=np.ones(1),
            decayed=np.ones(1, np.bool_),
            averaged=np.array([bool(self._counts.averaged)]),
            grad_scales=np.ones(1),
        )
        s = type(s)(*(float(np.ravel(number)[0]) for number in s))
        for param, average, constraint in zip(
            self._params, self._arrays[_state.AVERAGE], self._constraints, strict=True
        ):
            buffers = Buffers(param, None, None, None, None, None, average)
            rows_engine.average(buffers, s, Options(overwrite=call.overwrite))
            if call.overwrite and constraint is not None:
                param.copy_(constraint(param))

    def _overwrite(self, raw: list[Any], *, closes: bool) -> None:
        window = self._counts.in_window
        for place, ((value, accumulator), grad) in enumerate(
            zip(self._overwritten, raw, strict=True), start=len(self._params)
        ):
            if grad is not None and accumulator is not None:
                torch.maximum(accumulator, grad.to(accumulator.dtype), out=accumulator)
                grad = accumulator
            given = grad is not None or bool(window[place])
            if closes and given:
                value.copy_(accumulator if grad is None else grad)
            if accumulator is not None:
                window[place] = given and not closes
                if closes:
                    accumulator.zero_()


def _for_host(tensor: Tensor) -> Any:
    """Return an array that shares a tensor's memory, or the tensor where the host has none of it.

    Both are read by `int` and `float` and written by index; the host takes a tenth of the time
    for numbers in an array.
    """
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _on_host(numbers: Any) -> Any:
    return numbers.cpu().numpy() if isinstance(numbers, Tensor) else numbers


def _like(own: Any, numbers: Any) -> Any:
    """Return an array as what it can be assigned to an array or tensor."""
    return torch.as_tensor(numbers) if isinstance(own, Tensor) else numbers

"""The engine for JAX: the transformation of `oneadam.jax` on the values of Keras's variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from oneadam import _state
from oneadam._exclusions import Exclusions
from oneadam._hyperparameters import Hyperparameters
from oneadam.jax import _numbers, _rates
from oneadam.jax._adam import Adam, counted, emptied_if
from oneadam.jax._arguments import Arguments
from oneadam.jax._state import Absences, AdamState, Rates
from oneadam.keras import _rows
from oneadam.keras._run import NUMBERS, Run, named
from oneadam.keras._slots import Counts, Last

Tensor = Any
Variable = Any
Values = dict[str, Any]
"""A tree of variables, or of their values."""

_WORD = np.uint32(2**31)
_MOST = np.uint32(2**31 - 1)


class Engine:
    """Takes calls in JAX, compiled, also where nothing around it is.

    Args:
        run: what to work on.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        slots = run.slots
        self._variables: Values = {
            "rows": list(run.rows),
            "arrays": {slot: list(column) for slot, column in slots.arrays.items()},
            "overwritten": [tuple(pair) for pair in run.overwritten],
            "calls": run.calls,
            "learning_rate": run.learning_rate,
            "numbers": run.numbers,
            "loss_scale": run.loss_scale,
            "updates": slots.updates,
            "counts": slots.counts,
            "last": slots.last,
        }
        self._taken = jax.jit(self._take)
        self._closed = jax.jit(self._flush)

    def take(self, grads: Sequence[Tensor | None], raw: Sequence[Tensor | None]) -> None:
        """Take one call: update the variables, or accumulate."""
        self._adopt(self._taken(list(grads), list(raw), self._values()))

    def flush(self) -> None:
        """Close the open accumulation window, if there is one."""
        self._adopt(self._closed(self._values()))

    def check_rate(self, rate: Any) -> None:
        """Refuse nothing, for numbers of another length have steps compiled anew."""

    def _values(self) -> Values:
        return {
            name: jax.tree.map(self._value_of_row if name == "rows" else _rows.own, variables)
            for name, variables in self._variables.items()
        }

    def _value_of_row(self, variable: Variable) -> Any:
        """Return the value of a variable, or zeros for a frozen one whose value `fit` has."""
        if _rows.is_at_hand(variable):
            return variable.value
        if self._run.hyperparameters.use_ema:
            raise ValueError(
                "use_ema must be False where fit freezes variables of a built optimizer, for JAX's"
                f" fit does not hand over {variable.path}, which is to be averaged too; make"
                " another optimizer for the variables that are not frozen"
            )
        return jnp.zeros(variable.shape, variable.dtype)

    def _adopt(self, values: Values) -> None:
        jax.tree.map(_set, self._variables, values)

    def _take(self, grads: list[Any], raw: list[Any], values: Values) -> Values:
        adam, state, rows = self._adam(values), self._state(values), values["rows"]
        if adam.window > 1 and rows and not self._run.skips:
            return self._accumulate(grads, raw, values)
        if self._run.skips and rows:
            grads = _poisoned(grads, raw)
        if rows:
            rows, after = adam.step(grads, state, rows)
        else:
            calls = _numbers.counted(state.calls, True)
            after = state._replace(calls=calls, updates=_numbers.counted(state.updates, True))
        return values | self._after(values, rows, state, after, raw)

    def _accumulate(self, grads: list[Any], raw: list[Any], values: Values) -> Values:
        """Take a call of a window, where none is skipped.

        Numbers and counters are taken apart in the branches only: by itself, each that a branch is
        handed costs as much time as adding a small gradient.
        """
        adam, state, rows = self._adam(values), self._state(values), values["rows"]
        sums = adam.summed(grads, state, rows)
        present = jnp.asarray([grad is not None for grad in grads])
        rates = _rates.now(adam.own, state.calls, state.rates)._asdict()
        asked = {name: rate for name, rate in rates.items() if callable(adam.own.value(name))}
        # The sums do not pass through the branches: the compiler would copy them.
        packed = values | {"arrays": values["arrays"] | {_state.ACCUMULATOR: None}}

        def taken(is_full: bool) -> Values:
            adam, before = self._adam(packed), self._state(packed)
            calls = _numbers.counted(before.calls, True)
            state = before._replace(calls=calls, rates=before.rates._replace(**asked))
            new, state = rows, counted(state, present)
            if is_full:
                new, state = adam.closed(state._replace(gradient_accumulator=sums), rows)
            return self._after(packed, new, before, state, raw)

        fill = self._counts(values).accumulated_calls + 1
        after: Values = values | jax.lax.cond(
            fill >= adam.window, lambda: taken(is_full=True), lambda: taken(is_full=False)
        )
        sums = emptied_if(self._counts(after).accumulated_calls == 0, sums)
        return after | {"arrays": after["arrays"] | {_state.ACCUMULATOR: sums}}

    def _flush(self, values: Values) -> Values:
        adam, state = self._adam(values), self._state(values)
        rows, after = adam.flush(state, values["rows"])
        raw = [None] * len(values["overwritten"])
        return values | self._after(values, rows, state, after, raw)

    def _adam(self, values: Values) -> Adam:
        run, numbers = self._run, named(list(_real(values["numbers"])))
        h = self._hyperparameters()
        given = {name: numbers[name] for name in NUMBERS if getattr(h, name) is not None}
        if run.loss_scale is not None:
            given["loss_scale_factor"] = _real(values["loss_scale"])
        spared = [str(row) for row, decays in enumerate(run.decayed) if not decays]
        constraints = {
            row: variable.constraint
            for row, variable in enumerate(run.rows)
            if getattr(variable, "constraint", None) is not None
        }
        exclusions = Exclusions().extended(names=spared)
        return _Quiet(Arguments(h, given, None), exclusions, constraints)

    def _hyperparameters(self) -> Hyperparameters:
        """Return the arguments, with those that a dynamic loss scale needs."""
        h = self._run.hyperparameters
        if self._run.loss_scale is None:
            return h
        return dataclasses.replace(h, loss_scale_factor=1.0, on_nonfinite="skip")

    def _state(self, values: Values) -> AdamState:
        numbers = named(list(_real(values["numbers"])))
        rate = values["learning_rate"]
        rates = Rates(
            _real(rate),
            numbers["beta_1"],
            numbers["beta_2"],
        )
        h = self._run.hyperparameters
        clips = h.clipnorm is not None or h.global_clipnorm is not None
        counts, last = self._counts(values), Last(*_real(values["last"]))
        row_updates, overflows = counts.row_updates, counts.overflows
        return AdamState(
            calls=_words(values["calls"], overflows[0]),
            updates=_words(values["updates"], overflows[1]),
            skipped_calls=_words(counts.skipped_calls, overflows[2]),
            accumulated_calls=counts.accumulated_calls,
            averaged=counts.averaged != 0,
            rates=rates,
            gradient_norm=last.gradient_norm if clips or self._run.skips else None,
            clip_scale=last.clip_scale if clips else None,
            absences=Absences(
                _words(row_updates, jnp.zeros_like(row_updates)),
                counts.in_window[: len(values["rows"])] != 0,
            ),
            **{slot: values["arrays"].get(slot) for slot in _state.ARRAYS},
        )

    def _counts(self, values: Values) -> Counts:
        return self._run.slots.counts_in(values["counts"])

    def _after(
        self, values: Values, rows: list[Any], before: AdamState, state: AdamState, raw: list[Any]
    ) -> Values:
        """Return what has another value after a call that has led from one state to another."""
        counters = [state.calls, state.updates, state.skipped_calls]
        absences = state.absences
        assert absences is not None
        is_update = state.updates[0] != before.updates[0]
        is_taken = is_update | (state.calls[0] != before.calls[0])
        last, first = Last(*values["last"]), len(rows)
        overwritten, pending = [], []
        for (value, accumulator), grad, was_given in zip(
            values["overwritten"], raw, self._counts(values).in_window[first:] != 0, strict=True
        ):
            total, given = accumulator, was_given
            if grad is not None:
                grad = grad.astype(value.dtype)
                total = grad if accumulator is None else jnp.maximum(accumulator, grad)
                given = jnp.asarray(True)
            new = value if total is None else jnp.where(is_update & given, total, value)
            kept = None
            if accumulator is not None:
                kept = jnp.where(is_update, 0, jnp.where(is_taken, total, accumulator))
                kept = kept.astype(accumulator.dtype)
            overwritten.append((new.astype(value.dtype), kept))
            pending.append(jnp.where(is_update, False, jnp.where(is_taken, given, was_given)))
        window = [absences.in_window]
        if pending:
            window.append(jnp.stack(pending))
        return {
            "rows": rows,
            "arrays": {slot: getattr(state, slot) for slot in values["arrays"]},
            "overwritten": overwritten,
            "calls": _low(state.calls),
            "updates": _low(state.updates),
            "counts": Counts(
                _low(state.skipped_calls),
                state.accumulated_calls,
                state.averaged,
                overflows=jnp.stack([_high(counter) for counter in counters]),
                row_updates=_capped(absences.updates),
                in_window=jnp.concatenate(window),
            ).joined(),
            "last": jnp.stack(
                Last(
                    jnp.where(is_taken, state.rates.learning_rate, last.learning_rate),
                    last.gradient_norm if state.gradient_norm is None else state.gradient_norm,
                    last.clip_scale if state.clip_scale is None else state.clip_scale,
                )
            ).astype(values["last"].dtype),
        }


def _set(variable: Variable, value: Any) -> None:
    layout = getattr(variable, "_layout", None)
    if layout is not None:
        # In a step that somebody else compiles XLA would choose how it lies.
        value = keras.distribution.distribute_tensor(value, layout)
    variable.assign(value)


class _Quiet(Adam):
    """The transformation where gradients were looked at already."""

    def check_present(self, names: Sequence[str], given: list[Any]) -> None:
        """Leave absent gradients to the optimizer, which knows the names of its variables."""


def _poisoned(grads: list[Any], raw: list[Any]) -> list[Any]:
    """Return gradients of which one is NaN if one that becomes a value is not finite."""
    flags = [jnp.isfinite(grad).all() for grad in raw if grad is not None]
    places = [place for place, grad in enumerate(grads) if grad is not None]
    if not flags or not places:
        return grads
    poison = jnp.where(jnp.stack(flags).all(), 0.0, jnp.nan)
    first, new = places[0], list(grads)
    new[first] = grads[first] + poison.astype(grads[first].dtype)
    return new


def _real(value: Any) -> Any:
    return value.astype(_numbers.real())


def _words(low: Any, high: Any) -> Any:
    """Return a counter of JAX's door, of words of 32 bits, from words of 31."""
    low, high = low.astype(np.uint32), high.astype(np.uint32)
    return jnp.stack([low | (high << 31), high >> 1])


def _low(counter: Any) -> Any:
    """Return the lower word of 31 bits."""
    return (counter[0] & _MOST).astype(np.int32)


def _high(counter: Any) -> Any:
    """Return the higher word of 31 bits."""
    return ((counter[1] << 1) | (counter[0] >> 31)).astype(np.int32)


def _capped(counter: Any) -> Any:
    """Return a row of counters that stay at the largest number of 31 bits."""
    # There no beta that float32 knows has a power left.
    return jnp.where((counter[1] > 0) | (counter[0] >= _WORD), _MOST, counter[0]).astype(np.int32)

"""The transformation: parameters and gradients in, updates out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from oneadam import _configuration, _messages
from oneadam import _hyperparameters as hyper
from oneadam._engines import Buffers, arrays
from oneadam._exclusions import Exclusions
from oneadam._warnings import warn
from oneadam.jax import _numbers, _rates, _trees, _update
from oneadam.jax._arguments import Arguments
from oneadam.jax._eager import compiled_from_python
from oneadam.jax._state import Absences, AdamState
from oneadam.jax._update import Measured

Array = Any
Tree = Any
Leaves = list[Any]

TREES = {
    "momentum": "momentum",
    "velocity": "velocity",
    "velocity_max": "velocity_hat",
    "average": "average",
    "accumulator": "gradient_accumulator",
}
"""The trees of the state, by the fields of the buffers."""


class _Call(NamedTuple):
    """A call under way."""

    rows: list[Buffers]
    """Where calls are accumulated: without gradients, which the accumulators have taken."""
    state: AdamState
    """As it is so far."""
    norms: Measured | None
    """Where they are known already."""


class Adam:
    """What `oneadam.jax.adam` is made of; `init` and `update` are its functions.

    Args:
        own: the arguments.
        exclusions: from weight decay.
        constraints: what new values of some parameters are put through, by their numbers.
    """

    def __init__(
        self,
        own: Arguments,
        exclusions: Exclusions,
        constraints: Mapping[int, Callable[[Array], Array]] = MappingProxyType({}),
    ) -> None:
        self.own = own
        self.exclusions = exclusions
        self._constraints = constraints
        self.window = own.checked.gradient_accumulation_steps or 1
        self._warned_of: set[tuple[str, ...]] = set()
        # With arrays as arguments it is made anew for every call (optax.inject_hyperparams).
        is_kept = not own.arrays
        self._update = compiled_from_python(partial(self._taken, _difference), is_kept)
        self._step = compiled_from_python(partial(self._taken, _value), is_kept)
        self._flush = compiled_from_python(self._flushed, is_kept)

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """Return the pair of functions that optax knows."""
        return optax.GradientTransformationExtraArgs(self.init, self.update)

    def config(self) -> dict[str, Any]:
        """Return the configuration, which JSON takes."""
        return _configuration.to_config(self.own.checked, self.exclusions)

    def init(self, params: Tree) -> AdamState:
        """Return the state at the beginning."""
        h = self.own.checked
        _trees.check_parameters(params)
        for name, leaf in _trees.named(params).items():
            dtype = arrays.compute_dtype(_trees.as_array(leaf), jnp)
            hyper.check_compute_dtype(h, dtype, name)
        used = self._optional()

        def tree(name: str) -> Tree:
            return jax.tree.map(_trees.zeros, params) if used.get(name, True) else None

        numbers = AdamState(
            calls=_numbers.counter(),
            updates=_numbers.counter(),
            skipped_calls=_numbers.counter(),
            accumulated_calls=jnp.zeros((), np.int32),
            averaged=jnp.zeros((), np.bool_),
            rates=_rates.first(self.own),
            gradient_norm=_numbers.number(0.0) if used["gradient_norm"] else None,
            clip_scale=_numbers.number(1.0) if used["clip_scale"] else None,
            absences=None,
            momentum=None,
            velocity=None,
            velocity_hat=None,
            average=None,
            gradient_accumulator=None,
        )
        placed: AdamState = _trees.beside(numbers, params)
        return placed._replace(**{name: tree(name) for name in TREES.values()})

    def _optional(self) -> dict[str, bool]:
        """Return which of the optional parts of the state there are."""
        h = self.own.checked
        clips = any(self.own.value(name) is not None for name in ("clipnorm", "global_clipnorm"))
        return {
            "gradient_norm": clips or h.on_nonfinite == "skip",
            "clip_scale": clips,
            "velocity_hat": h.amsgrad,
            "average": h.use_ema,
            "gradient_accumulator": self.window > 1,
        }

    def check_state(self, state: Any) -> None:
        """Refuse a state of another kind, configuration or precision."""
        if not isinstance(state, AdamState):
            raise TypeError(
                f"state must be an AdamState, received {type(state).__name__}; make it with"
                " init(params), or restore it with jax.eval_shape(init, params) as the target"
            )
        if state.rates.learning_rate.dtype != _numbers.real() or state.calls.dtype != np.uint32:
            raise ValueError(
                f"state must have numbers of {_numbers.real()} and counters of uint32, received"
                f" {state.rates.learning_rate.dtype} and {state.calls.dtype}; make it with"
                " init(params) under the same jax_enable_x64, or cast it back"
            )
        others = [
            f"{'without' if is_used else 'with'} {name}"
            for name, is_used in self._optional().items()
            if is_used == (getattr(state, name) is None)
        ]
        if others:
            raise ValueError(
                "state must be that of this transformation, received one"
                f" {' and '.join(others)}; make it with init(params), or take another one's over"
                " with state_dict and load_state_dict"
            )

    def update(
        self, grads: Tree, state: AdamState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, AdamState]:
        """Return what is to be added to the parameters, and the next state."""
        result: tuple[Tree, AdamState] = self._update(grads, state, params)
        return result

    def step(self, grads: Tree, state: AdamState, params: Tree) -> tuple[Tree, AdamState]:
        """Return the next parameters, exactly, and the next state."""
        result: tuple[Tree, AdamState] = self._step(grads, state, params)
        return result

    def flush(self, state: AdamState, params: Tree) -> tuple[Tree, AdamState]:
        """Return parameters and state after the open accumulation window, if any, is closed."""
        result: tuple[Tree, AdamState] = self._flush(state, params)
        return result

    def _flushed(self, state: AdamState, params: Tree) -> tuple[Tree, AdamState]:
        leaves, given = _trees.checked(jax.tree.map(lambda _: None, params), params)
        if self.window == 1 or not leaves:
            return params, state
        self.check_state(state)
        is_open = state.accumulated_calls > 0
        rates = _rates.now(self.own, state.calls, state.rates)
        state = state._replace(rates=_where(is_open, rates, state.rates))
        call = _Call(_rows(params, given, state), state, None)
        after, state = self._updated_if(is_open, call, 0, _value)
        return _trees.rebuilt(params, after), state

    def _taken(
        self,
        result: Callable[[Array, Array], Array],
        grads: Tree,
        state: AdamState,
        params: Tree | None,
    ) -> tuple[Tree, AdamState]:
        leaves, given = _trees.checked(grads, params)
        if not leaves:
            return params, state
        self.check_state(state)
        self.check_present(_trees.names(params), given)
        rates = _rates.now(self.own, state.calls, state.rates)
        before = _counting_absences(state._replace(rates=rates), given)
        call, is_done = _Call(_rows(params, given, state), before, None), None
        if self.own.checked.on_nonfinite == "skip":
            norms = _update.measured(self.own, call.rows)
            assert norms is not None
            call, is_done = call._replace(norms=norms), norms.is_finite
        condition = is_done
        if self.window > 1:
            call = self._accumulated(call, is_done)
            is_full = call.state.accumulated_calls >= self.window
            condition = is_full if is_done is None else is_full & is_done
        # A window loaded from a run with more steps closes here with the mean over its calls.
        after, new = self._updated_if(condition, call, self.window, result)
        new = new._replace(
            calls=_numbers.counted(state.calls, True if is_done is None else is_done)
        )
        if is_done is not None:
            new = new._replace(skipped_calls=_numbers.counted(state.skipped_calls, ~is_done))
        return _trees.rebuilt(params, after), new

    def summed(self, grads: Tree, state: AdamState, params: Tree) -> Leaves:
        """Return the sums of the open accumulation window with gradients of one more call."""
        _, given = _trees.checked(grads, params)
        return [_update.accumulated(row, self.own) for row in _rows(params, given, state)]

    def closed(self, state: AdamState, params: Tree) -> tuple[Leaves, AdamState]:
        """Return parameters and state, but for the sums, after the window is full."""
        _, given = _trees.checked(jax.tree.map(lambda _: None, params), params)
        call = _Call(_rows(params, given, state), state, None)
        return self._updated(call, jnp.maximum(state.accumulated_calls, self.window), _value)

    def check_present(self, names: Sequence[str], given: Leaves) -> None:
        """Refuse a call without any gradient, and warn of parameters that have none."""
        missing = tuple(n for n, grad in zip(names, given, strict=True) if grad is None)
        if len(missing) == len(given):
            raise ValueError(_messages.no_gradient())
        if missing and missing not in self._warned_of:
            warn(_messages.missing_gradients(missing))
            self._warned_of.add(missing)

    def _accumulated(self, call: _Call, is_done: Array | None) -> _Call:
        """Return the call after its gradients were added to those of the window before it."""
        rows, state = call.rows, call.state
        after = [
            row._replace(grad=None, accumulator=_update.accumulated(row, self.own)) for row in rows
        ]
        new = counted(_with_trees(state, after), _present(rows))
        if is_done is not None:
            new = _where(is_done, new, state)
            accumulators = jax.tree.leaves(new.gradient_accumulator)
            after = [row._replace(accumulator=total)
                     for row, total in zip(after, accumulators, strict=True)]  # fmt: skip
        return call._replace(rows=after, state=new)

    def _updated_if(
        self,
        condition: Array | None,
        call: _Call,
        least: int,
        result: Callable[[Array, Array], Array],
    ) -> tuple[Leaves, AdamState]:
        """Return the results and the state after an update, if there is to be one.

        Args:
            condition: bool; None: there is.
            call: what it is made of.
            least: the number of calls that the mean is taken over, if there were not more.
            result: what is returned for a parameter, from its values before and after.
        """
        rows, state, _ = call
        if condition is None:
            return self._updated(call, 1, result)
        divisor = jnp.maximum(state.accumulated_calls, least)
        # Accumulators do not pass through here: the compiler would copy them, update or not.
        sums = state.gradient_accumulator
        state = state._replace(gradient_accumulator=None)
        results, state = jax.lax.cond(
            condition,
            lambda: self._updated(call, divisor, result),
            lambda: ([result(row.param, row.param) for row in rows], state),
        )
        sums = emptied_if(state.accumulated_calls == 0, sums)
        return results, state._replace(gradient_accumulator=sums)

    def _updated(
        self, call: _Call, divisor: Any, result: Callable[[Array, Array], Array]
    ) -> tuple[Leaves, AdamState]:
        """Return the results and the state after an update with the mean over so many calls."""
        own, h = self.own, self.own.checked
        rows, state, norms = call
        scaling = _update.scaling(own, norms or _update.measured(own, rows), divisor)
        updates = _numbers.counted(state.updates, True)
        absences, takes_part = state.absences, None
        if absences is not None:
            takes_part = absences.in_window if self.window > 1 else _present(rows)
            counters = _numbers.counted(absences.updates, takes_part)
            absences = Absences(counters, jnp.zeros_like(absences.in_window))
        s = _update.scalars(
            own, state.rates, updates if absences is None else absences.updates, state.averaged
        )
        every = h.ema_overwrite_frequency if h.use_ema else None
        overwrites = None if every is None else _numbers.is_multiple(updates, every)
        decayed = [not self.exclusions.covers(name) for name in _trees.names(state.momentum)]
        factors = iter(scaling.factors)
        after = []
        for number, row in enumerate(rows):
            is_scaled = row.grad is not None or row.accumulator is not None
            own_factors = scaling.factors[0]
            if is_scaled and len(scaling.factors) > 1:
                own_factors = next(factors)
            dtype = arrays.compute_dtype(row.param, jnp)
            scalars = _update.of_parameter(own, s, number, own_factors, decayed[number], dtype)
            takes = None if takes_part is None else takes_part[number]
            constraint = self._constraints.get(number)
            after.append(_update.updated(own, row, scalars, takes, overwrites, constraint))
        state = _with_trees(state._replace(gradient_accumulator=None), after)._replace(
            updates=updates,
            accumulated_calls=jnp.zeros_like(state.accumulated_calls),
            averaged=jnp.full_like(state.averaged, h.use_ema),
            absences=absences,
            gradient_norm=scaling.gradient_norm,
            clip_scale=scaling.clip_scale,
        )
        results = [result(row.param, new.param) for row, new in zip(rows, after, strict=True)]
        return results, state


def _difference(old: Array, new: Array) -> Array:
    return _trees.zeros_beside(old) if new is old else new - old


def _value(old: Array, new: Array) -> Array:
    return new


def _where(condition: Array, after: Tree, before: Tree) -> Tree:
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), after, before)


def emptied_if(is_closed: Array, sums: Tree) -> Tree:
    """Return the sums of a window as they are, or zeros; None if there are none."""
    if sums is None:
        return None
    # What is asked again is known, but lets the zeros be written in place.
    return jax.lax.cond(
        is_closed,
        lambda: jax.tree.map(lambda each: jnp.where(is_closed, 0, each), sums),
        lambda: sums,
    )


def counted(state: AdamState, present: Array) -> AdamState:
    """Return the state with one more call in the open window, the sums as they are.

    Args:
        state: before that call.
        present: bool, which parameters it has given gradients.
    """
    absences = state.absences
    if absences is not None:
        absences = absences._replace(in_window=absences.in_window | present)
    return state._replace(accumulated_calls=state.accumulated_calls + 1, absences=absences)


def _counting_absences(state: AdamState, given: Leaves) -> AdamState:
    """Return the state, with counters for each parameter if they are needed from now on."""
    return state if all(grad is not None for grad in given) else with_absences(state)


def with_absences(state: AdamState) -> AdamState:
    """Return the state with counters for each parameter, which all have taken part until then."""
    if state.absences is not None:
        return state
    count = len(jax.tree.leaves(state.momentum))
    updates = jnp.broadcast_to(state.updates[:, None], (2, count))
    in_window = jnp.broadcast_to(state.accumulated_calls > 0, (count,))
    return state._replace(absences=Absences(updates, in_window))


def _present(rows: Sequence[Buffers]) -> Array:
    return jnp.asarray([row.grad is not None for row in rows])


def _rows(params: Tree, given: Leaves, state: AdamState) -> list[Buffers]:
    """Return what each parameter has, from trees that must have the same paths and shapes."""
    leaves = [_trees.as_array(leaf) for leaf in jax.tree.leaves(params)]
    columns: dict[str, Leaves] = {"param": leaves, "grad": given}
    for field, name in TREES.items():
        tree = getattr(state, name)
        if tree is not None:
            _trees.check_alike(name, tree, params)
        columns[field] = [None] * len(leaves) if tree is None else jax.tree.leaves(tree)
    return [
        Buffers(**dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]


def _with_trees(state: AdamState, rows: Sequence[Buffers]) -> AdamState:
    trees = {name: getattr(state, name) for name in TREES.values()}
    return state._replace(
        **{
            name: _trees.rebuilt(trees[name], [getattr(row, field) for row in rows])
            for field, name in TREES.items()
            if trees[name] is not None
        }
    )

"""The engine for TensorFlow: the rule in operations on tensors, which XLA fuses if it is asked to.

In a strategy with several replicas, gradients are summed over them once, and everything else
is done where all replicas meet: each update runs on the device of the variable's copy.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeVar

import tensorflow as tf

from oneadam import _gradients, _plan, _state
from oneadam._engines import Buffers, Options, arrays
from oneadam._hyperparameters import Rates
from oneadam._plan import Scalars, Settings
from oneadam.keras import _rows, _tensorflow_norms, _tensorflow_rates
from oneadam.keras import _tensorflow_names as xp
from oneadam.keras._run import BETAS, Run, named
from oneadam.keras._slots import Counts, Last
from oneadam.keras._tensorflow_replicas import Everywhere, Here, largest, summed

Tensor = Any
Variable = Any
_Method = TypeVar("_Method", bound=Callable[..., None])

# AutoGraph would translate each function that is called, and there is nothing in them for it.
_as_it_is: Callable[[_Method], _Method] = tf.autograph.experimental.do_not_convert


class Engine:
    """Takes calls in TensorFlow, eagerly or in a graph.

    Args:
        run: what to work on.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._traced: list[tuple[weakref.ref[Any], Any]] = []
        """Graphs that have steps, and the learning rates that these were traced with."""

    @_as_it_is
    def take(self, grads: Sequence[Tensor | None], raw: Sequence[Tensor | None]) -> None:
        """Take one call: update the variables, or accumulate."""
        self._note_graph()
        variables = [*self._run.rows, *(pair.variable for pair in self._run.overwritten)]
        tensors, first = [*grads, *raw], len(grads)
        given = list(map(_fitting, tensors, variables))
        late = [new for new, tensor in zip(given, tensors, strict=True) if new is not tensor]
        # Where one turns out not to fit, nothing may have been written.
        with tf.control_dependencies(late):
            self._where_replicas_meet(self._taken, given[:first], given[first:])

    @_as_it_is
    def flush(self) -> None:
        """Close the open accumulation window, if there is one."""
        self._note_graph()
        none: list[Tensor | None] = [None] * len(self._run.rows)
        raw: list[Tensor | None] = [None] * len(self._run.overwritten)
        self._where_replicas_meet(self._flushed, none, raw)

    def _note_graph(self) -> None:
        if not tf.executing_eagerly():
            graph = weakref.ref(tf.compat.v1.get_default_graph())
            self._traced.append((graph, self._run.hyperparameters.learning_rate))

    def check_rate(self, rate: Any) -> None:
        """Refuse a learning rate of another kind that compiled steps could not take up.

        Raises:
            ValueError: the rate is a schedule or a function, and steps are compiled with another.
        """
        if not callable(rate) or not self._is_traced_otherwise(rate):
            return
        gc.collect()  # what nobody can call any more is found only then
        if self._is_traced_otherwise(rate):
            raise ValueError(
                "learning_rate must not become another schedule or function while TensorFlow has"
                f" steps that are compiled without it, received {rate!r}; have them compiled anew"
                " first (model.compile(optimizer=model.optimizer, ...), or another tf.function),"
                " or assign a number"
            )

    def _is_traced_otherwise(self, rate: Any) -> bool:
        self._traced = [traced for traced in self._traced if traced[0]() is not None]
        return any(traced_with is not rate for _, traced_with in self._traced)

    def _where_replicas_meet(
        self,
        act: Callable[[_Call], None],
        grads: list[Tensor | None],
        raw: list[Tensor | None],
    ) -> None:
        context = tf.distribute.get_replica_context()
        if context is None or not tf.distribute.has_strategy():
            act(_Call(self._run, Here(), grads, raw))
            return
        sums = summed(context, grads)
        most = [None if tensor is None else largest(context, tensor) for tensor in raw]

        def met(strategy: Any, grads: Any, raw: Any) -> None:
            act(_Call(self._run, Everywhere(strategy), grads, raw))

        context.merge_call(met, args=(sums, most))

    def _taken(self, call: _Call) -> None:
        run = call.run
        window = run.hyperparameters.gradient_accumulation_steps or 1
        call.ask()

        def proceed() -> None:
            if window == 1:
                call.update(1)
            else:
                self._accumulated(call, window)
            call.write(run.calls, call.read(run.calls) + 1)

        # A function that raises must do so before anything is written.
        with tf.control_dependencies(tf.nest.flatten(call.answers)):
            if run.skips:
                _if(
                    call.is_finite(),
                    proceed,
                    lambda: call.count(skipped_calls=call.counts.skipped_calls + 1),
                )
            else:
                proceed()

    def _accumulated(self, call: _Call, window: int) -> None:
        call.add()

        def close() -> None:
            # A window loaded from a run with more steps closes with the mean over its calls.
            full = call.without_gradients()
            full.update(tf.maximum(full.fill, window))

        _if(call.fill >= window, close, lambda: call.without_gradients().leave_open())
        call.empty_if_closed()

    def _flushed(self, call: _Call) -> None:
        call.ask()
        fill = call.counts.accumulated_calls
        _if(fill > 0, lambda: call.update(fill), lambda: None)
        call.empty_if_closed()


class _Call:
    """One call: what it is given, and what it may do."""

    def __init__(
        self,
        run: Run,
        place: Here | Everywhere,
        grads: Sequence[Tensor | None],
        raw: Sequence[Tensor | None],
    ) -> None:
        self.run, self._place, self._grads, self._raw = run, place, grads, raw
        self._present = [grad is not None for grad in (*grads, *raw)]
        self.counts = self._counts_now()
        self._numbers = named(tf.unstack(self.read(run.numbers)))
        self._scale = None if run.loss_scale is None else self.read(run.loss_scale)
        if run.hyperparameters.loss_scale_factor is not None:
            self._scale = self._numbers["loss_scale_factor"]
        self.answers: dict[str, Tensor] = {}
        """Of functions and schedules, by argument."""
        self._norms: Tensor = None
        self._total: Tensor = None

    def without_gradients(self) -> _Call:
        """Return the call after its gradients were added to their window, to be made in a branch.

        There numbers and counters are read anew: by itself, each that a branch is handed costs XLA
        as much time as adding a small gradient.
        """
        call = _Call(self.run, self._place, [None] * len(self._grads), self._raw)
        call._present, call.answers = self._present, self.answers
        call._norms, call._total = self._norms, self._total
        return call

    def _counts_now(self) -> Counts:
        return self.run.slots.counts_in(self.read(self.run.slots.counts))

    @property
    def fill(self) -> Tensor:
        """The calls of the open window, with this one."""
        return self.counts.accumulated_calls + 1

    def read(self, variable: Variable) -> Tensor:
        """Return the value of a variable."""
        return tf.convert_to_tensor(self._place.local(_rows.own(variable)))

    def write(self, variable: Variable, value: Tensor) -> None:
        """Set a variable, all of its copies."""
        self._place.update(
            _rows.own(variable), lambda copy: copy.assign(tf.cast(value, copy.dtype))
        )

    def count(self, **changes: Tensor) -> None:
        """Set some of the counts."""
        self.write(self.run.slots.counts, self.counts._replace(**changes).joined())

    def note(self, rates: Rates, **changes: Tensor) -> None:
        """Keep what is known of this call."""
        last = self.run.slots.last
        known = Last(*tf.unstack(self.read(last)))
        known = known._replace(learning_rate=rates.learning_rate, **changes)
        self.write(last, tf.stack([tf.cast(number, last.dtype) for number in known]))

    def ask(self) -> None:
        """Ask functions and schedules, once in a call."""
        h, assigned = self.run.hyperparameters, self._assigned_rate()
        self.answers = _tensorflow_rates.asked(h, assigned)
        if h.takes_calls:
            rate = _tensorflow_rates.scheduled(h, self.read(self.run.calls))
            rate = tf.where(assigned >= 0, assigned, tf.cast(rate, tf.float64))
            self.answers["learning_rate"] = rate

    def _assigned_rate(self) -> Tensor:
        return tf.cast(self.read(self.run.learning_rate), tf.float64)

    def rates(self) -> Rates:
        """Return the rates of this call, in float64; of betas that are numbers, the weights."""
        found: dict[str, Any] = {name: self._numbers[name] for name in BETAS}
        found["learning_rate"] = self._assigned_rate()
        return Rates(**(found | self.answers))

    def is_finite(self) -> Tensor:
        """Return whether all gradients are finite, and those that become values."""
        given = [self._place.local(grad) for grad in self._raw if grad is not None]
        flags = [tf.reduce_all(tf.math.is_finite(grad)) for grad in given]
        return tf.reduce_all(tf.stack([tf.math.is_finite(self.total_norm()), *flags]))

    def total_norm(self) -> Tensor:
        """Return the norm over all gradients, or over the sums of their window, in float64."""
        if self._total is None:
            clips_each = self.run.hyperparameters.clipnorm is not None
            parts = [self._each_norm()] if clips_each else list(chain.from_iterable(self._sums()))
            self._total = _tensorflow_norms.norm(parts)
        return self._total

    def _each_norm(self) -> Tensor:
        if self._norms is None:
            norms = [_tensorflow_norms.norm(sums) for sums in self._sums()]
            self._norms = tf.stack(norms) if norms else tf.zeros((0,), tf.float64)
        return self._norms

    def _sums(self) -> list[list[Tensor]]:
        """Return the sum of the window with this call's gradient for each row that has either."""
        accumulators = self.run.slots.column(_state.ACCUMULATOR)
        found: list[list[Tensor]] = [[] for _ in accumulators]
        for row, (grad, accumulator) in enumerate(zip(self._grads, accumulators, strict=True)):
            if grad is None and accumulator is None:
                continue
            buffers = Buffers(
                self._place.local(_rows.own(self.run.rows[row])),
                None if grad is None else self._place.local(grad),
                None if accumulator is None else self.read(accumulator),
                *[None] * 4,
            )
            found[row].append(arrays.accumulated(buffers, self._options(row), xp))
        return found

    def _options(self, row: int) -> Options:
        h = self.run.hyperparameters
        dtype = _rows.compute_dtype(self.run.rows[row])

        return Options(
            None if self._scale is None else tf.cast(self._scale, dtype),
            None if h.clipvalue is None else tf.cast(self._numbers["clipvalue"], dtype),
            decays=h.weight_decay is not None and self.run.decayed[row],
        )

    def add(self) -> None:
        """Add the gradients to their window."""
        accumulators = self.run.slots.column(_state.ACCUMULATOR)
        for row, grad in enumerate(self._grads):
            if grad is None:
                continue
            scale = self._options(row).loss_scale

            def add(copy: Variable, grad: Tensor, scale: Tensor | None = scale) -> None:
                grad = tf.cast(grad, copy.dtype)
                copy.assign_add(grad if scale is None else grad / scale)

            self._place.update(_rows.own(accumulators[row]), add, grad)

    def leave_open(self) -> None:
        """Count a call whose gradients were added to a window that is not full."""
        for (_, accumulator), grad in zip(self.run.overwritten, self._raw, strict=True):
            if grad is not None and accumulator is not None:
                self._place.update(_rows.own(accumulator), _keep_larger, grad)
        self.count(in_window=self._participants(), accumulated_calls=self.fill)
        self.note(self.rates())

    def empty_if_closed(self) -> None:
        """Empty the window if no call is in it."""
        is_closed = self._counts_now().accumulated_calls == 0

        def empty() -> None:
            for accumulator in self.run.slots.column(_state.ACCUMULATOR):
                if accumulator is not None:
                    self._place.update(_rows.own(accumulator), _emptied_if, is_closed)

        _if(is_closed, empty, lambda: None)

    def _participants(self) -> Tensor:
        """Return which rows have had a gradient in the window."""
        return tf.constant(self._present, tf.bool) | (self.counts.in_window > 0)

    def update(self, divisor: Any) -> None:
        """Update the variables with the mean over so many calls, whose sums stay as they are."""
        run, slots = self.run, self.run.slots
        participants = self._participants()
        row_updates = self.counts.row_updates
        row_updates += tf.cast(participants[: len(run.rows)], row_updates.dtype)
        updates = self.read(slots.updates) + 1
        scalars = self._scalars(self.rates(), divisor, row_updates)
        h = run.hyperparameters
        every = h.ema_overwrite_frequency if h.use_ema else None
        overwrites = None if every is None else updates % every == 0
        for row in range(len(run.rows)):
            self._update_row(row, scalars, participants, overwrites)
        first = len(run.rows)
        for place, ((variable, accumulator), grad) in enumerate(
            zip(run.overwritten, self._raw, strict=True), start=first
        ):
            if grad is not None or accumulator is not None:
                given = participants[place]
                self._place.update(
                    _rows.own(variable), _overwrite, _rows.own(accumulator), grad, given
                )
        self.write(slots.updates, updates)
        self.count(
            accumulated_calls=tf.zeros_like(self.counts.accumulated_calls),
            averaged=tf.constant(h.use_ema),
            row_updates=row_updates,
            in_window=tf.zeros_like(participants),
        )

    def _scalars(
        self, rates: Rates, divisor: Any, row_updates: Tensor
    ) -> dict[str, list[Sequence[Tensor]]]:
        """Return the scalars of an update by compute dtype: for each, one for each row."""
        h, numbers = self.run.hyperparameters, self._numbers
        divisor = tf.cast(divisor, tf.float64)
        factors: Tensor = 1.0 / divisor
        limits = [name for name in ("clipnorm", "global_clipnorm") if getattr(h, name) is not None]
        noted = {}
        if limits or self.run.skips:
            total = self.total_norm()
            noted["gradient_norm"] = total / divisor
        if limits:
            norms = self._each_norm() if limits[0] == "clipnorm" else total[None]
            scaling = _gradients.clipping(numbers[limits[0]], norms, total, divisor, xp)
            factors = scaling.factors
            noted["clip_scale"] = scaling.clip_scale
        self.note(rates, **noted)
        settings = Settings(
            (rates.learning_rate, rates.beta_1, rates.beta_2),
            numbers["epsilon"],
            numbers["weight_decay"],
            h.epsilon_hat,
            numbers["ema_momentum"],
        )
        found = _plan.scalars(
            settings,
            # A row that sits its first updates out has no t yet, and its scalars no use.
            steps=tf.cast(tf.maximum(row_updates, 1), tf.float64),
            decayed=True,
            averaged=self.counts.averaged > 0,
            grad_scales=factors,
            xp=xp,
        )
        count = len(self.run.rows)
        dtypes = {_rows.compute_dtype(row) for row in self.run.rows}
        return {dtype: [_of_each(column, dtype, count) for column in found] for dtype in dtypes}

    def _update_row(
        self,
        row: int,
        scalars: dict[str, list[Sequence[Tensor]]],
        participants: Tensor,
        overwrites: Tensor | None,
    ) -> None:
        run, slots = self.run, self.run.slots
        variable = run.rows[row]
        s = Scalars(*(column[row] for column in scalars[_rows.compute_dtype(variable)]))
        options, constraint = self._options(row), getattr(variable, "constraint", None)
        columns = [
            _rows.own(slots.column(slot)[row])
            for slot in (_state.ACCUMULATOR, _state.MOMENTUM, _state.VELOCITY,
                         _state.VELOCITY_HAT, _state.AVERAGE)
        ]  # fmt: skip
        if not self._present[row] and columns[0] is None and columns[-1] is None:
            return
        takes_part = None if self._present[row] else participants[row]

        def constrained(param: Tensor) -> Tensor:
            return param if constraint is None else tf.cast(constraint(param), param.dtype)

        def update(param: Variable, grad: Tensor | None, *columns: Variable | None) -> None:
            copies = Buffers(param, None, *columns)
            before = Buffers(*(None if c is None else tf.convert_to_tensor(c) for c in copies))
            after = before._replace(average=None)
            if grad is not None or before.accumulator is not None:
                total = arrays.accumulated(after._replace(grad=grad), options, xp)
                # Of two factors in a row TensorFlow would take the product, which may be subnormal.
                power = s.grad_scale_power
                scaled = tf.where(power == 1.0, total, total * power)
                after = arrays.update(
                    after._replace(grad=scaled, accumulator=None),
                    s._replace(grad_scale_power=1.0),
                    options._replace(loss_scale=None),
                    xp,
                )
                after = after._replace(param=constrained(after.param))
            if takes_part is not None:
                after = Buffers(
                    *(
                        a if a is None or b is None else tf.where(takes_part, a, b)
                        for a, b in zip(after, before, strict=True)
                    )
                )
            if before.average is not None:
                after = arrays.average(after._replace(average=before.average), s, options, xp)
            if overwrites is not None:
                average = constrained(tf.cast(after.average, after.param.dtype))
                after = after._replace(param=tf.where(overwrites, average, after.param))
            for copy, value in zip(copies, after._replace(accumulator=None), strict=True):
                if value is not None:
                    copy.assign(value)

        self._place.update(_rows.own(variable), update, self._grads[row], *columns)


def _fitting(grad: Tensor | None, variable: Variable) -> Tensor | None:
    """Return a gradient, checked when the step runs if its shape is known only then."""
    if grad is None or grad.shape.is_fully_defined():
        return grad
    return tf.ensure_shape(grad, variable.shape)


def _if(condition: Tensor, act: Callable[[], None], other: Callable[[], None]) -> None:
    """Do one of two things, known only when the step runs."""

    def done(act: Callable[[], None]) -> Callable[[], Tensor]:
        def branch() -> Tensor:
            act()
            return tf.constant(True)

        return branch

    tf.cond(condition, done(act), done(other))


def _of_each(column: Any, dtype: str, count: int) -> Sequence[Tensor]:
    """Return a number for each row from a column, or from one for all."""
    cast = tf.cast(column, dtype)
    if cast.shape.rank and cast.shape[0] == count and count > 1:
        return list(tf.unstack(cast))
    return [tf.reshape(cast, ())] * count


def _emptied_if(accumulator: Variable, is_closed: Tensor) -> None:
    # What is asked again is known, but lets XLA write the zeros in place.
    sums = tf.convert_to_tensor(accumulator)
    accumulator.assign(tf.where(is_closed, tf.zeros_like(sums), sums))


def _keep_larger(accumulator: Variable, grad: Tensor) -> None:
    accumulator.assign(tf.maximum(accumulator, tf.cast(grad, accumulator.dtype)))


def _overwrite(
    variable: Variable, accumulator: Variable | None, grad: Tensor | None, given: Tensor
) -> None:
    value = None if grad is None else tf.cast(grad, variable.dtype)
    if accumulator is not None:
        largest = tf.convert_to_tensor(accumulator)
        value = largest if value is None else tf.maximum(largest, value)
        accumulator.assign(tf.zeros_like(largest))
    variable.assign(tf.where(given, value, variable))

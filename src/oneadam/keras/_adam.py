"""The optimizer for Keras."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from operator import is_
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from oneadam import (
    _arguments,
    _configuration,
    _exclusions,
    _interrupts,
    _messages,
    _state,
    checkpoint,
)
from oneadam._exclusions import Exclusions
from oneadam._hyperparameters import Hyperparameters
from oneadam._messages import listed
from oneadam._plan import Counters
from oneadam._saved_state import Axes
from oneadam._warnings import warn
from oneadam.keras import _averages, _exemptions, _files, _rows, _run, _saved, _slots
from oneadam.keras._run import Engine, Overwritten, Run
from oneadam.keras._slots import Last
from oneadam.schedules import LearningRateSchedule

Variable = Any
Tensor = Any
Number = Any

_CHANGEABLE = (*_run.NUMBERS, *_run.BETAS)
"""Arguments that may be assigned other numbers at any time, and that compiled code then sees."""
_FIXED = ("amsgrad", "use_ema", "ema_overwrite_frequency", "gradient_accumulation_steps",
          "epsilon_hat", "on_nonfinite")  # fmt: skip


@keras.saving.register_keras_serializable(package="oneadam")
class Adam(keras.optimizers.Optimizer):
    """Adam as the documentation of `keras.optimizers.Adam` describes it, for every backend.

    It takes the place of `keras.optimizers.Adam` and `AdamW`. float32 and float64 variables are
    computed in their own dtype, float16 and bfloat16 in float32, in which their state is kept.
    What a call does, step by step, is in `docs/definition.md`.

    Args:
        learning_rate: number >= 0, a schedule of Keras or of `oneadam.schedules`, a function of
            the number of finished calls, or a function without arguments, called once every call.
        beta_1: number in [0, 1), or a function without arguments; of the first moment.
        beta_2: number in [0, 1), or a function without arguments; of the second moment.
        epsilon: number > 0, added to the root of the second moment.
        amsgrad: bool, divide by the largest second moment so far.
        weight_decay: None or number >= 0; decoupled, times the learning rate.
        clipnorm: None or number > 0, the largest norm of each variable's gradient.
        clipvalue: None or number > 0, the largest magnitude of a gradient's element.
        global_clipnorm: None or number > 0, the largest norm of all gradients together.
        use_ema: bool, keep an exponential moving average of the variables.
        ema_momentum: number in [0, 1], the weight of the average so far.
        ema_overwrite_frequency: None or int >= 1; every so many updates the variables become
            their averages.
        loss_scale_factor: None or number > 0, what `scale_loss` multiplies the loss by and
            what the gradients are divided by.
        gradient_accumulation_steps: None or int >= 1, the number of calls whose mean gradient
            makes one update.
        name: None or non-empty str; None makes one up, as Keras does.
        epsilon_hat: bool; False corrects epsilon for the bias, as PyTorch and optax do.
        on_nonfinite: "propagate", "skip" or (PyTorch only) "raise": what an inf or NaN does.

    Raises:
        TypeError, ValueError: an argument is of another kind or outside its range.

    Source: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.

    Example:
        >>> import keras
        >>> from oneadam.keras import Adam
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer=Adam(0.1, global_clipnorm=1.0), loss="mse")
    """

    built: bool
    _own: _Own
    _learning_rate: Any
    _trainable_variables_indices: dict[Any, int]

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: Number = 1e-7,
        amsgrad: bool = False,
        weight_decay: Number | None = None,
        clipnorm: Number | None = None,
        clipvalue: Number | None = None,
        global_clipnorm: Number | None = None,
        use_ema: bool = False,
        ema_momentum: Number = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: Number | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        *,
        epsilon_hat: bool = True,
        on_nonfinite: str = "propagate",
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__", "name")}
        given |= {
            name: float(_rows.fetched(value))
            for name, value in given.items()
            if isinstance(value, keras.Variable)
        }
        h = Hyperparameters(**given, name="adam" if name is None else name)
        if h.on_nonfinite == "raise" and _rows.backend_name() != "torch":
            raise ValueError(
                "on_nonfinite must be 'propagate' or 'skip' on the backend"
                f" {_rows.backend_name()!r}, whose compiled steps cannot raise, received 'raise';"
                " use 'skip', and look at metrics()['skipped_calls']"
            )
        object.__setattr__(self, "_own", _Own(h))
        rate = h.learning_rate
        # A variable that Keras made of a number would have to be thrown away again.
        super().__init__(learning_rate=rate if callable(rate) else lambda: rate, name=name)
        self._own.hyperparameters = dataclasses.replace(h, name=self.name)
        self._own.is_made = True
        if isinstance(rate, float):
            self._learning_rate = self._rate_variable(rate)

    def _rate_variable(self, rate: float) -> Variable:
        """Make a variable in the dtype that the scalars of an update are computed in."""
        with keras.name_scope(self.name, caller=self):
            return keras.Variable(
                rate,
                dtype=_number_dtype(),
                trainable=False,
                name="learning_rate",
                aggregation="only_first_replica",
            )

    # Arguments that may be assigned.

    def _argument(self, name: str) -> Any:
        return getattr(self._own.hyperparameters, name)

    def _assign(self, name: str, value: Any) -> None:
        own = self._own
        if not own.is_made:
            return  # Keras's own way to keep what it is made with
        _rows.check_at_hand(self._iterations)
        before = getattr(own.hyperparameters, name)
        changed = dataclasses.replace(own.hyperparameters, **{name: value})
        after = getattr(changed, name)
        if self.built and (name in _FIXED or _kind(before) != _kind(after)):
            if before == after:
                return
            raise ValueError(
                f"{name} must stay {_said(before)} once the optimizer is built, for its state and"
                f" its compiled steps depend on that, received {after!r}; make another optimizer"
            )
        if own.run is not None:
            _rows.check_trained(changed, own.run.rows)
            own.numbers.assign(_run.numbers_of(changed, own.numbers.shape[0]))
            own.run.hyperparameters = changed
        own.hyperparameters = changed

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the next call: a variable, or what a schedule or function says.

        Assign a number, schedule or function; it takes effect at the next call.
        """
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        _rows.check_at_hand(self._iterations)
        if isinstance(value, keras.Variable) or ops.is_tensor(value):
            is_known = not _rows.is_traced(value)
            value = _rows.fetched(value) if is_known else _rows.own(value)
            if isinstance(self._learning_rate, keras.Variable):
                if is_known:
                    _arguments.number("learning_rate", value, _arguments.LEARNING_RATE)
                self._learning_rate.assign(value)  # which also a step may do
                return
        own = self._own
        changed = dataclasses.replace(own.hyperparameters, learning_rate=value)
        rate = changed.learning_rate
        if own.run is None:
            self._keep_rate(rate)
        else:
            self._keep_rate_in_steps(rate)
            own.run.hyperparameters = changed
        own.hyperparameters = changed

    def _keep_rate(self, rate: Any) -> None:
        """Keep a learning rate where there is no state yet."""
        before = self._learning_rate
        if isinstance(rate, float) and isinstance(before, keras.Variable):
            before.assign(rate)
            return
        self._learning_rate = self._rate_variable(rate) if isinstance(rate, float) else rate
        if isinstance(before, keras.Variable):
            self._untrack_variable(before)

    def _keep_rate_in_steps(self, rate: Any) -> None:
        """Keep a learning rate where steps may be compiled, and have these take it up."""
        own = self._own
        assert own.engine is not None
        if _kind(rate) != _kind(own.hyperparameters.learning_rate):
            own.engine.check_rate(rate)
            if _rows.backend_name() == "jax":
                self._have_steps_compiled_anew()
        own.rate.assign(rate if isinstance(rate, float) else _run.NO_RATE)
        self._learning_rate = own.rate if isinstance(rate, float) else rate

    def _have_steps_compiled_anew(self) -> None:
        """Exchange the numbers for a longer vector, which steps compiled by JAX do not fit."""
        own = self._own
        before, own.numbers = own.numbers, self._numbers(own.numbers.shape[0] + 1)
        place = next(n for n, variable in enumerate(self._variables) if variable is before)
        self._variables.insert(place, self._variables.pop())
        self._untrack_variable(before)
        self._start()

    def _get_current_learning_rate(self) -> Any:
        rate = self._learning_rate
        if isinstance(rate, keras.Variable) or not callable(rate):
            return rate
        if not self._own.hyperparameters.takes_calls:
            return rate()
        return rate(_rows.step(self._iterations.value))

    # Building.

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the state for variables; the first call of `apply` does it where it is not done.

        Args:
            variables: of Keras or TensorFlow, of a real floating dtype.

        Raises:
            TypeError, ValueError: a variable cannot be trained.
        """
        if self.built:
            return
        variables = list(variables)
        own = self._own
        if len({self._var_key(variable) for variable in variables}) != len(variables):
            raise ValueError(
                "variables must be given once each, received one of them twice; pass"
                " model.trainable_variables"
            )
        trained = [variable for variable in variables if not _rows.is_overwritten(variable)]
        _rows.check_trained(own.hyperparameters, trained)
        names = _rows.names_of(variables)
        _state.check_distinct(self.name, dict.fromkeys(names))
        paths = dict(zip(names, map(_rows.name_of, variables), strict=True))
        own.exclusions = _exemptions.resolved(own.exclusions, own.exempted, paths)
        own.variables = variables
        own.slots = _slots.made(
            own.hyperparameters,
            trained,
            len(variables) - len(trained),
            _number_dtype(),
            self._variable,
            self._variable_beside,
        )
        own.numbers = self._numbers()
        own.rate = self._learning_rate
        if not isinstance(own.rate, keras.Variable):
            # For a number that may be assigned when steps are compiled.
            own.rate = self._variable((), _number_dtype(), "learning_rate", _run.NO_RATE)
        own.accumulators = {
            self._var_key(variable): self._variable_beside(
                variable, _rows.dtype_of(variable), _state.ACCUMULATOR
            )
            for variable in variables
            if _rows.is_overwritten(variable) and self._accumulates()
        }
        own.keys = [self._var_key(variable) for variable in variables]
        self._trainable_variables_indices = {key: place for place, key in enumerate(own.keys)}
        object.__setattr__(self, "_trainable_variables", variables)
        self.built = True
        self._start()
        self._adopt_pending()

    def _adopt_pending(self) -> None:
        """Take over what was loaded before there were variables; what does not fit stays."""
        if self._own.pending is not None:
            with _outside_of_graphs():
                _files.adopt(self, self._own.pending)
            self._own.pending = None

    def _accumulates(self) -> bool:
        return (self._own.hyperparameters.gradient_accumulation_steps or 1) > 1

    def _start(self) -> None:
        """Put together what an engine works on, and get one."""
        own, key = self._own, self._var_key
        names = dict(zip(map(key, own.variables), _rows.names_of(own.variables), strict=True))
        excluded = {key(variable) for variable in own.excluded}
        rows = [variable for variable in own.variables if not _rows.is_overwritten(variable)]
        overwritten = [variable for variable in own.variables if _rows.is_overwritten(variable)]
        own.keys_of_parts = (list(map(key, rows)), list(map(key, overwritten)))
        own.exclusions = own.exclusions.extended(
            names=[names[key(variable)] for variable in own.excluded if key(variable) in names]
        )
        own.run = Run(
            hyperparameters=own.hyperparameters,
            rows=rows,
            names=[names[key(variable)] for variable in rows],
            decayed=[
                key(row) not in excluded and not own.exclusions.covers(names[key(row)])
                for row in rows
            ],
            overwritten=[
                Overwritten(variable, own.accumulators.get(key(variable)))
                for variable in overwritten
            ],
            slots=own.slots,
            calls=self._iterations,
            learning_rate=own.rate,
            numbers=own.numbers,
            loss_scale=own.loss_scale,
        )
        backend = import_module(f"oneadam.keras._{_rows.backend_name()}")
        own.engine = backend.Engine(own.run)

    def _numbers(self, length: int | None = None) -> Variable:
        numbers = _run.numbers_of(self._own.hyperparameters, length)
        return self._variable(numbers.shape, _number_dtype(), "numbers", numbers)

    def _variable(
        self, shape: tuple[int, ...], dtype: str, name: str, value: Any = None
    ) -> Variable:
        """Make a variable with its value, which a graph that is being traced could not set."""
        variable: Variable = self.add_variable(
            shape=shape,
            initializer="zeros" if value is None else keras.initializers.Constant(value),
            dtype=dtype,
            name=name,
            aggregation="only_first_replica",
        )
        return variable

    def _variable_beside(self, other: Variable, dtype: str, slot: str) -> Variable:
        """Make a variable of another one's shape, where and how that lies."""
        strategy = getattr(self, "_distribution_strategy", None)
        name = f"{_rows.name_of(other).replace('/', '_').replace(':', '_')}_{slot}"
        layout = getattr(other, "_layout", None)
        with (
            nullcontext()
            if strategy is None
            else strategy.extended.colocate_vars_with(_rows.own(other))
        ):
            variable: Variable = self.add_variable(
                shape=tuple(other.shape), dtype=dtype, name=name, layout=layout
            )
        self._own.short_names[id(variable)] = f"{_rows.name_of(other).rpartition('/')[2]}_{slot}"
        return variable

    # Calls.

    def _check_free(self) -> None:
        """Refuse to go on where the variables do not hold what is trained."""
        _averages.check_not_held(self)
        _rows.check_at_hand(self._iterations)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Take one call: update the variables with the gradients, or accumulate these.

        Args:
            grads: one for each variable, or None; of the variable's shape and any real floating
                dtype.
            trainable_variables: the variables that the gradients are of; optional once built.

        Raises:
            TypeError, ValueError: something does not fit; nothing has changed.
        """
        grads = list(grads)
        if not grads:
            return
        self._check_free()
        if trainable_variables is None:
            if not self.built:
                raise ValueError(
                    "When passing `grads` without `variables`, the optimizer must already be built"
                    " on a list of variables. Call `optimizer.build(trainable_variables)` first."
                )
            variables = self._own.variables
        else:
            variables = list(trainable_variables)
            if not self.built:
                with keras.name_scope(self.name, caller=self):
                    self.build(variables)
        keys = self._keys_of(variables)
        if len(grads) != len(variables):
            raise ValueError(
                f"grads must have one entry for each of the {len(variables)} variables, received"
                f" {len(grads)}; put None where there is no gradient"
            )
        self._adopt_pending()
        own = self._own
        given = self._checked(grads, variables, keys)
        if len(given) < len(grads):
            self._warn_of_missing(grads, variables)
        assert own.engine is not None
        with keras.name_scope(self.name, caller=self):
            own.engine.take(*([given.get(key) for key in part] for part in own.keys_of_parts))

    def _keys_of(self, variables: list[Variable]) -> list[Any]:
        """Return the keys of variables, having refused what cannot be updated."""
        own = self._own
        if len(variables) == len(own.variables) and all(map(is_, variables, own.variables)):
            return own.keys
        self._check_variables_are_known(variables)
        keys = [self._var_key(variable) for variable in variables]
        if len(set(keys)) != len(keys):
            raise ValueError(
                "trainable_variables must have each variable once, received one of them twice;"
                " add its gradients up"
            )
        return keys

    def _checked(
        self, grads: list[Any], variables: list[Variable], keys: list[Any]
    ) -> dict[Any, Tensor]:
        """Return the gradients that there are, checked, by the keys of their variables."""
        found, fitting = {}, self._own.fitting
        for key, variable, grad in zip(keys, variables, grads, strict=True):
            if grad is None:
                continue
            kind = (grad.__class__, getattr(grad, "dtype", None), getattr(grad, "shape", None))
            if fitting.get(key) == kind:
                found[key] = grad
                continue
            found[key] = _rows.checked_gradient(variable, grad)
            if found[key] is grad:
                fitting[key] = kind
        if not found:
            raise ValueError(
                "No gradients provided for any variable: grads must have a gradient for at least"
                " one, received None for every one; check that the loss depends on the variables"
            )
        return found

    def _warn_of_missing(self, grads: list[Any], variables: list[Variable]) -> None:
        """Warn of variables without a gradient, once of the same ones."""
        missing = tuple(
            _rows.name_of(variable)
            for grad, variable in zip(grads, variables, strict=True)
            if grad is None
        )
        if missing not in self._own.warned_of:
            self._own.warned_of.add(missing)
            warn(
                f"Gradients do not exist for variables {listed(missing)} in this call, which"
                " leaves them as they are; if that is not meant, check that the loss depends on"
                " them"
            )

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return variables after a call, and change none; see Keras's `Optimizer`.

        Where some of the variables are frozen, values and gradients may be those of the others.
        """
        some = [variable for variable in self._own.variables if variable.trainable]
        if len(trainable_variables) != len(some) or len(some) == len(self._own.variables):
            result: tuple[list[Tensor], list[Tensor]] = super().stateless_apply(
                optimizer_variables, grads, trainable_variables
            )
            return result
        return stateless(self, some, optimizer_variables, grads, trainable_variables)

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times `loss_scale_factor`, to take the gradients of."""
        factor = self._argument("loss_scale_factor")
        if factor is None or not self.built:
            return loss if factor is None else loss * factor
        # Compiled code sees what is assigned later only in the variable.
        place = _run.NUMBERS.index("loss_scale_factor")
        return ops.multiply(loss, ops.cast(self._own.numbers.value[place], loss.dtype))

    def flush(self) -> None:
        """Close an incomplete accumulation window with the mean over the calls that it has.

        It counts as an update, not as a call. Where no window is open nothing happens.
        """
        self._check_free()
        if self._own.engine is not None and self._accumulates():
            self._own.engine.flush()

    @property
    def iterations(self) -> Variable:
        """The number of finished updates, a variable."""
        return self._own.slots.updates if self.built else self._iterations

    @property
    def calls(self) -> int:
        """The number of finished calls."""
        return self._counters().calls

    @property
    def updates(self) -> int:
        """The number of finished updates."""
        return self._counters().updates

    def _counters(self) -> Counters:
        return Counters() if self._own.run is None else _saved.counters(self._own.run)

    @property
    def skipped_calls(self) -> int:
        """The number of calls that an inf or NaN has made it skip."""
        return self._counters().skipped_calls

    def scale_by(self, loss_scale: Variable) -> None:
        """Divide gradients by what a variable holds, and skip calls with an inf or NaN."""
        self._own.loss_scale = loss_scale
        self._start()

    def metrics(self) -> dict[str, float]:
        """Return plain numbers to log.

        Returns:
            `learning_rate` of the last call, `calls`, `updates`, `skipped_calls`; of the last
            update, where its clipping needed them, `gradient_norm` (over all variables, before
            clipping) and `clip_scale` (the smallest factor).
        """
        own, h, counters = self._own, self._own.hyperparameters, self._counters()
        found: dict[str, Any] = {"calls": counters.calls, "updates": counters.updates}
        if own.run is not None:
            last = Last(*_rows.fetched(own.slots.last))
            found["learning_rate"] = last.learning_rate
            found["skipped_calls"] = counters.skipped_calls
            clips = h.clipnorm is not None or h.global_clipnorm is not None
            if clips or own.run.skips:
                found["gradient_norm"] = last.gradient_norm
            if clips:
                found["clip_scale"] = last.clip_scale
        return {name: float(value) for name, value in found.items()}

    # What Keras and its users find by these names.

    @property
    def _model_variables_moving_average(self) -> list[Variable | None]:
        return self._of_all(_state.AVERAGE)

    @property
    def _accumulated_gradients(self) -> list[Variable | None]:
        found = self._of_all(_state.ACCUMULATOR)
        own = self._own.accumulators
        keys = map(self._var_key, self._own.variables)
        return [own.get(key, one) for key, one in zip(keys, found, strict=True)]

    @property
    def _momentums(self) -> list[Variable | None]:
        return self._of_all(_state.MOMENTUM)

    @property
    def _velocities(self) -> list[Variable | None]:
        return self._of_all(_state.VELOCITY)

    @property
    def _velocity_hats(self) -> list[Variable | None]:
        return self._of_all(_state.VELOCITY_HAT)

    def _of_all(self, slot: str) -> list[Variable | None]:
        """Return what each variable has of a slot, also those that Adam does not train."""
        column = iter(self._own.slots.column(slot))
        return [
            None if _rows.is_overwritten(variable) else next(column)
            for variable in self._own.variables
        ]

    # Weight decay, averages.

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[Any] | None = None
    ) -> None:
        """Exempt variables from weight decay; to be called before the optimizer is built.

        Args:
            var_list: variables, or their exact names; the build raises where a name is of none.
            var_names: parts of names (paths such as `dense/bias`), or compiled regular
                expressions that names are searched for.

        Raises:
            ValueError: the optimizer is built already, or an entry would exclude everything.
            TypeError: an entry is of another kind.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` can only be configured before the optimizer is"
                " built, received a call after it; call it right after making the optimizer"
            )
        given = _exclusions.entries("var_list", () if var_list is None else var_list)
        for entry in given:
            if not isinstance(entry, (str, keras.Variable)) and not hasattr(entry, "shape"):
                raise TypeError(
                    _messages.excluded_no_variable(entry, "[layer.bias, 'dense/kernel']")
                )
        names = [entry for entry in given if isinstance(entry, str)]
        self._own.exclusions = self._own.exclusions.extended(
            names=names, var_names=() if var_names is None else var_names
        )
        self._own.exempted |= set(names)
        self._own.excluded += [entry for entry in given if not isinstance(entry, str)]

    def finalize_variable_values(self, var_list: Iterable[Variable]) -> None:
        """Set variables to their moving averages, matched by identity.

        Without averages, or before the first update, nothing changes.

        Args:
            var_list: variables of the optimizer.
        """
        variables = list(var_list)
        if not self._own.hyperparameters.use_ema or not self.built:
            return
        self._check_variables_are_known(variables)
        _averages.check_not_held(self)
        _averages.finalize(self, variables)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the variables hold their moving averages inside a `with` block, to evaluate.

        At its end they are what they were before, to the last bit. It keeps a copy of them.
        Without averages, or before the first update, nothing changes.

        Raises:
            RuntimeError: the block is inside another one, or a step was taken in it.
        """
        with _averages.averaged(self):
            yield

    # State.

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the whole state by name: `<variable>/momentum`, `<name>/calls`, ..."""
        return _saved.state(self._built(), self._as_it_is())

    def load_state_dict(
        self, state: Mapping[str, Any], *, keep_learning_rate: bool = False
    ) -> None:
        """Take over the state of another optimizer of any door, by name.

        Optional parts that only one side has (averages, an accumulation window, the learning
        rate) are started afresh or left out, with a warning that names them.

        Args:
            state: what `state_dict` of any door returned.
            keep_learning_rate: bool, keep the configured learning rate, not the saved one.

        Raises:
            ValueError: something is missing, unexpected, or of another shape or dtype; nothing
                has changed.
        """
        self.adopt(state, keep_learning_rate)

    def adopt(
        self,
        state: Mapping[str, Any],
        keep_learning_rate: bool,
        also: Sequence[str] = (),
        check: Callable[[Mapping[str, Any]], Any] = dict,
    ) -> Any:
        """Take over the state of another optimizer, for what wraps this one.

        Args:
            state: arrays by name.
            keep_learning_rate: keep the configured learning rate.
            also: further state of the optimizer's own that is wanted.
            check: what that is put through before anything changes.

        Returns:
            What `check` returned.
        """
        self._check_free()
        run = self._built()
        restoring = _saved.restoring(run, self._as_it_is(), state, keep_learning_rate, also)
        checked = check(restoring.also)
        rate = restoring.hyperparameters.learning_rate
        with _interrupts.held_back():
            _saved.restore(run, restoring)
            if isinstance(rate, float):
                self.learning_rate = rate
        return checked

    def save_own_variables(self, store: Any) -> None:
        """Write the state into a file of Keras, by place and name."""
        own = self._own
        kept = _files.kept(self) if self.built and own.pending is None else own.pending or {}
        for name, value in kept.items():
            store[name] = _rows.fetched(value) if isinstance(value, keras.Variable) else value

    def load_own_variables(self, store: Any) -> None:
        """Take over the state from a file of Keras that this class or Keras's Adam has written.

        Raises:
            ValueError: it is of other variables; nothing has changed.
        """
        self._check_free()
        values = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118
        if len(values) <= len(_files.first(self)):
            if self.built and self.calls:
                warn("the file has no state of the optimizer, which goes on with what it has")
        elif self.built:
            _files.adopt(self, values)
        else:
            self._own.pending = values

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the variables of `variables`, in their order; or what Keras's Adam has of them.

        Raises:
            ValueError: the optimizer is not built, or a shape differs; nothing has changed.
        """
        if not self.built:
            raise ValueError(
                "You are calling `set_weights()` on an optimizer that has not yet been built."
                " Please call `optimizer.build(trainable_variables)` before."
            )
        self._check_free()
        values = [_rows.fetched(weight) for weight in weights]
        if len(values) == len(_files.of_keras(self)) != len(self.variables):
            _files.adopt_keras(self, values)
            return
        if len(values) != len(self.variables):
            raise ValueError(
                f"weights must have {len(self.variables)} entries as `variables` has, or"
                f" {len(_files.of_keras(self))} as those of Keras's Adam, received {len(values)}"
            )
        _files.adopt_list(self, self.variables, values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state and the configuration to one safetensors file, atomically.

        Args:
            path: where to. A crash leaves the old file or the new one.

        Raises:
            OSError: the file cannot be written; the old one is untouched.
        """
        checkpoint.write(path, self.state_dict(), self.told())

    def told(self) -> dict[str, str]:
        """Return what a portable checkpoint says besides the state."""
        return _saved.metadata(self._built(), self._as_it_is(), self._own.exclusions)

    def load(
        self,
        path: str | os.PathLike[str],
        names: Mapping[str, str] | Callable[[str], str] | None = None,
        *,
        keep_learning_rate: bool = False,
        transposed: Axes | None = None,
    ) -> None:
        """Take over the state that `save` of any door has written; see `load_state_dict`.

        Args:
            path: the file.
            names: the name here for a variable's name in the file, as a mapping (others stay)
                or a function.
            keep_learning_rate: bool, keep the configured learning rate, not the saved one.
            transposed: the order in which a variable, by its name here, takes the axes of its
                arrays in the file, as `numpy.transpose` takes it; a mapping (others stay) or a
                function (None stays). A kernel of Keras becomes a weight of PyTorch, and back,
                by (1, 0).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, foreign or newer, or does not fit; nothing has
                changed.
        """
        saved = _saved.read(path, self.name, names, transposed)
        self.load_state_dict(saved, keep_learning_rate=keep_learning_rate)

    def _built(self) -> Run:
        if self._own.run is None:
            raise RuntimeError(
                "the optimizer must be built before this, received no variables yet; call"
                " build(model.trainable_variables)"
            )
        return self._own.run

    def _as_it_is(self) -> Hyperparameters:
        """Return the arguments with the learning rate that is in use."""
        h = self._own.hyperparameters
        if not isinstance(self._learning_rate, keras.Variable):
            return h
        return dataclasses.replace(h, learning_rate=self._rate_as_given())

    # Configuration.

    def get_config(self) -> dict[str, Any]:
        """Return what makes an equal optimizer through `from_config`, ready for JSON.

        Raises:
            ValueError: an argument is a function that cannot be written down.
        """
        h = dataclasses.replace(self._own.hyperparameters, learning_rate=0.0)
        rate = self._learning_rate
        if isinstance(rate, keras.Variable):
            written: Any = self._rate_as_given()
        elif isinstance(rate, LearningRateSchedule):
            written = None
            h = dataclasses.replace(h, learning_rate=rate)
        elif getattr(rate, "__name__", "") == "<lambda>":
            raise ValueError(
                "learning_rate must be a number, a schedule or a registered function to be written"
                f" into a configuration, received {rate!r}; register a named function with"
                " keras.saving.register_keras_serializable"
            )
        else:
            written = keras.saving.serialize_keras_object(rate)
        exclusions = self._own.exclusions
        if not self.built:
            exclusions = exclusions.extended(names=map(_rows.name_of, self._own.excluded))
        config = _configuration.to_config(h, exclusions)
        return config if written is None else config | {"learning_rate": written}

    def _rate_as_given(self) -> float:
        """Return the learning rate as it was given, where the variable has only rounded it."""
        found = _rows.fetched(self._learning_rate)
        given = self._argument("learning_rate")
        if isinstance(given, float) and np.asarray(given, found.dtype) == found:
            return given
        return float(found)

    @classmethod
    def from_keras(cls, optimizer: Any) -> Adam:
        """Return an optimizer that goes on where a `keras.optimizers.Adam` or `AdamW` is.

        It has its arguments, its exemptions from weight decay and, where it is built, its state.

        Args:
            optimizer: of Keras, which is left as it is.

        Raises:
            TypeError: it is of another class.
        """
        if not isinstance(optimizer, keras.optimizers.Adam):
            raise TypeError(
                "optimizer must be a keras.optimizers.Adam or AdamW, received"
                f" {type(optimizer).__name__}"
            )
        rate = optimizer._learning_rate
        by_function = callable(rate) and not isinstance(rate, keras.Variable)
        config = optimizer.get_config()
        new = cls.from_config({**config, "learning_rate": 0.0} if by_function else config)
        if by_function:
            new.learning_rate = rate
        names = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
        if not optimizer.built and any(getattr(optimizer, name, None) for name in names):
            raise ValueError(
                "optimizer must be built, for only then it tells which variables it exempts from"
                " weight decay, received one that is not; build it, or take its get_config()"
            )
        variables = optimizer._trainable_variables
        new.exclude_from_weight_decay([v for v in variables if not optimizer._use_weight_decay(v)])
        if optimizer.built:
            new.build(optimizer._trainable_variables)
            _files.adopt_keras(new, [_rows.fetched(variable) for variable in optimizer.variables])
        return new

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Adam:
        """Return an optimizer with the configuration of another, of any door or of Keras.

        Args:
            config: what `get_config` of this class or of `keras.optimizers.Adam` returned; it
                is left as it is.
            custom_objects: classes and functions by name.

        Raises:
            TypeError, ValueError: the configuration has unknown keys or values out of range.
        """
        rest = dict(config) if isinstance(config, Mapping) else config
        rate = rest.get("learning_rate") if isinstance(rest, dict) else None
        if isinstance(rate, Mapping) and _is_of_keras(rate):
            rest["learning_rate"] = keras.saving.deserialize_keras_object(
                rate, custom_objects=custom_objects
            )
        name = rest.pop("name", None) if isinstance(rest, dict) else None
        h, exclusions = _configuration.from_config(rest, custom_objects)
        arguments = {
            field.name: getattr(h, field.name)
            for field in dataclasses.fields(h)
            if field.init and field.name != "name"
        }
        optimizer = cls(**arguments, name=name)
        optimizer._own.exclusions = exclusions
        return optimizer


def stateless(
    optimizer: Any,
    some: Sequence[Variable],
    optimizer_variables: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    trainable_variables: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return values after a call on some of an optimizer's variables, and change none."""
    mine = optimizer.variables
    mapping = [*zip(some, trainable_variables, strict=True),
               *zip(mine, optimizer_variables, strict=True)]  # fmt: skip
    with keras.StatelessScope(state_mapping=mapping) as scope:
        optimizer.apply(grads, some)
    found = [list(map(scope.get_current_value, part)) for part in (some, mine)]
    return found[0], found[1]


class _Own:
    """What an optimizer knows besides Keras's own, out of reach of Keras's tracking."""

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.is_made = False
        self.exclusions = Exclusions()
        self.exempted: set[str] = set()
        """Exact names that were given here, not by a configuration."""
        self.excluded: list[Variable] = []
        """Exempt from weight decay; their names are known once the optimizer is built."""
        self.variables: list[Variable] = []
        self.keys: list[Any] = []
        """Of the variables."""
        self.keys_of_parts: tuple[list[Any], ...] = ()
        """Of those that Adam trains, and of those that are overwritten."""
        self.fitting: dict[Any, Any] = {}
        """What gradients that fit their variables were last, by the keys of these."""
        self.slots: Any = None
        self.short_names: dict[int, str] = {}
        """Of the variables beside others, without the paths of these."""
        self.numbers: Variable = None
        self.rate: Variable = None
        """The learning rate, or `NO_RATE`."""
        self.accumulators: dict[Any, Variable] = {}
        """Of variables that are overwritten, by their keys."""
        self.run: Run | None = None
        self.engine: Engine | None = None
        self.loss_scale: Variable = None
        """What a dynamic loss scale divides gradients by."""
        self.warned_of: set[tuple[str, ...]] = set()
        self.holds_averages = False
        """Whether the variables are their averages, for a block."""
        self.pending: dict[str, Any] | None = None
        """What was loaded before there were variables to load it into."""


def _outside_of_graphs() -> Any:
    """Return a context in which TensorFlow does things now that would be put into a graph."""
    if _rows.backend_name() != "tensorflow":
        return nullcontext()
    return import_module("tensorflow").init_scope()


def _is_of_keras(written: Mapping[str, Any]) -> bool:
    """Return whether it is Keras that knows what was written down."""
    module, name = str(written.get("module")), written.get("registered_name")
    is_registered = name and keras.saving.get_registered_object(name) is not None
    return module.partition(".")[0] in ("keras", "builtins") or bool(is_registered)


def _kind(value: Any) -> Any:
    """Return what compiled code depends on of an argument: a number may become another one."""
    return float if isinstance(value, float) else value


def _said(value: Any) -> str:
    return "a number" if isinstance(value, float) else repr(value)


def _number_dtype() -> str:
    """Return the dtype of numbers that compiled code reads: float64 where the backend has it."""
    name = _rows.backend_name()
    if name == "jax":
        return str(import_module("oneadam.jax._numbers").real())
    return "float64"


def _property(name: str) -> property:
    def read(self: Adam) -> Any:
        return self._argument(name)

    def assign(self: Adam, value: Any) -> None:
        self._assign(name, value)

    return property(read, assign)


for _name in (*_CHANGEABLE, *_FIXED):
    setattr(Adam, _name, _property(_name))

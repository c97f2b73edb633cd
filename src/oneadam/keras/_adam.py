"""The optimizer for Keras."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops
from numpy.typing import NDArray

from oneadam import _exclusions, _interrupts, _messages, _state, checkpoint
from oneadam._hyperparameters import Hyperparameters
from oneadam._plan import Counters
from oneadam._saved_state import Axes
from oneadam.keras import (
    _averages,
    _building,
    _config,
    _files,
    _gradients,
    _learning_rate,
    _rows,
    _run,
    _saved,
    _stateless,
)
from oneadam.keras._own import Own
from oneadam.keras._run import Run
from oneadam.keras._slots import Last

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
    _own: Own
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
        object.__setattr__(self, "_own", Own(h))
        rate = h.learning_rate
        # A variable that Keras made of a number would have to be thrown away again.
        super().__init__(learning_rate=rate if callable(rate) else lambda: rate, name=name)
        self._own.hyperparameters = dataclasses.replace(h, name=self.name)
        self._own.is_made = True
        if isinstance(rate, float):
            self._learning_rate = _learning_rate.variable(self, rate)

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
        if self.built and (name in _FIXED or _run.kind(before) != _run.kind(after)):
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
        _learning_rate.assign(self, value)

    def _get_current_learning_rate(self) -> Any:
        return _learning_rate.now(self)

    # Building.

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the state for variables; the first call of `apply` does it where it is not done.

        Args:
            variables: of Keras or TensorFlow, of a real floating dtype.

        Raises:
            TypeError, ValueError: a variable cannot be trained.
        """
        if not self.built:
            _building.build(self, variables)
            _files.adopt_pending(self)

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
        keys = _gradients.keys_of(self, variables)
        if len(grads) != len(variables):
            raise ValueError(
                f"grads must have one entry for each of the {len(variables)} variables, received"
                f" {len(grads)}; put None where there is no gradient"
            )
        own = self._own
        given = _gradients.checked(self, grads, variables, keys)
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(variables)
        _files.adopt_pending(self)
        if len(given) < len(grads):
            _gradients.warn_of_missing(self, grads, variables)
        assert own.engine is not None
        with keras.name_scope(self.name, caller=self):
            own.engine.take(*([given.get(key) for key in part] for part in own.keys_of_parts))

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return variables after a call, and change none; see Keras's `Optimizer`.

        Where some of the variables are frozen, values and gradients may be those of the others.
        """
        return _stateless.apply(
            self, self._own.variables, optimizer_variables, grads, trainable_variables
        )

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
        if self._own.engine is not None and self._own.accumulates:
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

    def _scale_by(self, loss_scale: Variable) -> None:
        """Divide gradients by what a variable holds, and skip calls with an inf or NaN."""
        self._own.loss_scale = loss_scale
        _building.start(self)

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
        return _saved.state(self._built(), _learning_rate.in_use(self))

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
        self._adopt(state, keep_learning_rate)

    def _adopt(
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
        own, run = self._own, self._built()
        restoring = _saved.restoring(
            run, _learning_rate.in_use(self), state, keep_learning_rate, also
        )
        checked = check(restoring.also)
        rate = restoring.hyperparameters.learning_rate
        with _interrupts.held_back():
            _saved.restore(run, restoring)
            if isinstance(rate, float):
                self.learning_rate = rate
            own.pending = None
        return checked

    def save_own_variables(self, store: Any) -> None:
        """Write the state into a file of Keras, by place and name."""
        _files.save(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Take over the state from a file of Keras that this class or Keras's Adam has written.

        Raises:
            ValueError: it is of other variables; nothing has changed.
        """
        self._check_free()
        _files.load(self, store)

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
        _files.adopt_weights(self, [_rows.fetched(weight) for weight in weights])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state and the configuration to one safetensors file, atomically.

        Args:
            path: where to. A crash leaves the old file or the new one.

        Raises:
            OSError: the file cannot be written; the old one is untouched.
        """
        checkpoint.write(path, self.state_dict(), self._told())

    def _told(self) -> dict[str, str]:
        """Return what a portable checkpoint says besides the state."""
        return _saved.metadata(self._built(), _learning_rate.in_use(self), self._own.exclusions)

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

    # Configuration.

    def get_config(self) -> dict[str, Any]:
        """Return what makes an equal optimizer through `from_config`, ready for JSON.

        Raises:
            ValueError: an argument is a function that cannot be written down.
        """
        return _config.written(self)

    @classmethod
    def from_keras(cls, optimizer: Any) -> Adam:
        """Return an optimizer that goes on where a `keras.optimizers.Adam` or `AdamW` is.

        It has its arguments, its exemptions from weight decay and, where it is built, its state.

        Args:
            optimizer: of Keras, which is left as it is.

        Raises:
            TypeError: it is of another class.
        """
        return _config.taken_over(cls, optimizer)

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
        return _config.made(cls, config, custom_objects)


def _said(value: Any) -> str:
    return "a number" if isinstance(value, float) else repr(value)


def _property(name: str) -> property:
    def read(self: Adam) -> Any:
        return self._argument(name)

    def assign(self: Adam, value: Any) -> None:
        self._assign(name, value)

    return property(read, assign)


for _name in (*_CHANGEABLE, *_FIXED):
    setattr(Adam, _name, _property(_name))

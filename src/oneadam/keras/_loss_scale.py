"""The dynamic loss scale for Keras."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from oneadam import _interrupts, _loss_scale, checkpoint
from oneadam._loss_scale import LossScale
from oneadam._messages import listed
from oneadam._saved_state import Axes
from oneadam._state import full
from oneadam._warnings import warn
from oneadam.keras import _rows, _saved, _stateless
from oneadam.keras._adam import Adam

Variable = Any
Tensor = Any

_MOST = 2**31 - 1
"""Where counters stay."""
_SAVED_AS = {
    "dynamic_scale": "loss_scale",
    "step_counter": "loss_scale_finite_calls",
    "skipped_in_a_row": "loss_scale_skipped_in_a_row",
}
"""The names of portable checkpoints, by those in files of Keras."""


@keras.saving.register_keras_serializable(package="oneadam")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Scales the loss so that float16 gradients do not vanish, and skips calls with inf or NaN.

    Such a call halves the scale and changes nothing else, in particular not an open accumulation
    window; after `dynamic_growth_steps` finite ones in a row the scale doubles. It stays between
    `minimum_scale` and 2**127.

    Args:
        inner_optimizer: an `oneadam.keras.Adam` with `loss_scale_factor=None`.
        initial_scale: number from `minimum_scale` to 2**127.
        dynamic_growth_steps: int >= 1.
        name: None or non-empty str; None makes one up, as Keras does.
        minimum_scale: number from 2**-126 to 2**127.
        options: only what Keras's wrapper takes for the sake of old code, such as `dynamic=True`.

    Raises:
        TypeError, ValueError: an argument is of another kind or outside its range.

    Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.

    Example:
        >>> from oneadam.keras import Adam, LossScaleOptimizer
        >>> optimizer = LossScaleOptimizer(Adam(1e-3), initial_scale=2.0**12)
        >>> float(optimizer.scale_loss(0.5))
        2048.0
    """

    built: bool
    inner_optimizer: Adam

    def __init__(
        self,
        inner_optimizer: Adam,
        initial_scale: Any = 2.0**15,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
        *,
        minimum_scale: Any = 1.0,
        **options: Any,
    ) -> None:
        if not isinstance(inner_optimizer, Adam):
            raise TypeError(
                "inner_optimizer must be an oneadam.keras.Adam, received"
                f" {type(inner_optimizer).__name__}; for others there is"
                " keras.optimizers.LossScaleOptimizer"
            )
        _loss_scale.check_inner(inner_optimizer.loss_scale_factor)
        settings = _loss_scale.settings(initial_scale, dynamic_growth_steps, minimum_scale)
        super().__init__(
            inner_optimizer,
            settings.initial_scale,
            settings.dynamic_growth_steps,
            name=name,
            **options,
        )
        self.minimum_scale = settings.minimum_scale
        self._pending: Mapping[str, Any] = {}
        """What was loaded before there were variables to load it into."""

    @property
    def _settings(self) -> _loss_scale.Settings:
        return _loss_scale.Settings(
            self.initial_scale, self.dynamic_growth_steps, self.minimum_scale
        )

    def build(self, var_list: Sequence[Variable]) -> None:
        """Make the state; see `Adam.build`."""
        if self.built:
            return
        _loss_scale.check_inner(self.inner_optimizer.loss_scale_factor)
        self.inner_optimizer.build(var_list)

        def number(name: str, value: Any, dtype: str) -> Variable:
            return self.add_variable(
                shape=(),
                initializer=keras.initializers.Constant(value),
                dtype=dtype,
                name=name,
                aggregation="only_first_replica",
            )

        self.step_counter = number("step_counter", 0, "int32")
        self.dynamic_scale = number("dynamic_scale", self.initial_scale, "float32")
        self.skipped_in_a_row = number("skipped_in_a_row", 0, "int32")
        self.inner_optimizer._scale_by(self.dynamic_scale)
        object.__setattr__(self, "_trainable_variables", list(var_list))
        self._trainable_variables_indices = dict(self.inner_optimizer._trainable_variables_indices)
        self.built = True
        if self._pending:
            with _rows.outside_of_graphs():
                self.load_own_variables(self._pending)

    def _build_around(self) -> None:
        """Build what is not built around an inner optimizer that is."""
        if not self.built:
            self.inner_optimizer._built()
            self.build(self.inner_optimizer._own.variables)

    def save_own_variables(self, store: Any) -> None:
        """Write the scale and its counters into a file of Keras, beside the inner optimizer."""
        own = self._own_variables() if self.built else self._pending
        for name, value in own.items():
            store[name] = _rows.fetched(value) if isinstance(value, keras.Variable) else value

    def load_own_variables(self, store: Any) -> None:
        """Take over the scale and its counters from a file of Keras.

        Raises:
            ValueError: they are none; nothing has changed.
        """
        values = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118
        if values:
            self._check(values)
        if not self.built:
            self._pending = values
        elif values:
            with _interrupts.held_back():
                for name, variable in self._own_variables().items():
                    variable.assign(values[name])
                self._pending = {}

    def _check(self, values: Mapping[str, Any]) -> None:
        """Refuse values that are not those of a scale and its counters."""
        if values.keys() != _SAVED_AS.keys() or any(map(np.ndim, values.values())):
            found = [f"{name} of shape {np.shape(value)}" for name, value in values.items()]
            raise ValueError(
                f"the saved state of the loss scale must be numbers, {', '.join(_SAVED_AS)},"
                f" received {listed(found)}; load what an oneadam.keras.LossScaleOptimizer has"
                " saved"
            )
        saved = {_SAVED_AS[name]: value for name, value in values.items()}
        _loss_scale.restored(saved, self._settings)

    def _own_variables(self) -> dict[str, Variable]:
        return {
            "dynamic_scale": self.dynamic_scale,
            "step_counter": self.step_counter,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Take one call with gradients of the scaled loss; see `Adam.apply`."""
        grads, inner = list(grads), self.inner_optimizer
        if not grads:
            return
        if not self.built:
            variables = trainable_variables or inner._own.variables
            if not variables:
                inner.apply(grads)  # which says so
            with keras.name_scope(self.name, caller=self):
                self.build(list(variables))
        skipped = self._skipped_calls()
        inner.apply(grads, trainable_variables)
        finite = ops.equal(skipped, self._skipped_calls())
        count = ops.minimum(self.step_counter, _MOST - 1) + 1
        grows = ops.logical_and(finite, count >= min(self.dynamic_growth_steps, _MOST))
        larger = ops.minimum(self.dynamic_scale * 2.0, _loss_scale.MAXIMUM_SCALE)
        smaller = ops.maximum(self.dynamic_scale * 0.5, self.minimum_scale)
        kept = ops.where(finite, self.dynamic_scale + 0.0, smaller)
        row = ops.minimum(self.skipped_in_a_row, _MOST - 1) + 1
        self.dynamic_scale.assign(ops.where(grows, larger, kept))
        self.step_counter.assign(ops.where(ops.logical_and(finite, ~grows), count, 0))
        self.skipped_in_a_row.assign(ops.where(finite, 0, row))

    def _skipped_calls(self) -> Tensor:
        slots = self.inner_optimizer._own.slots
        return slots.counts_in(slots.counts.value).skipped_calls + 0

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return variables after a call, and change none; see Keras's `Optimizer`."""
        return _stateless.apply(
            self,
            self.inner_optimizer._own.variables,
            optimizer_variables,
            grads,
            trainable_variables,
        )

    def flush(self) -> None:
        """Close an incomplete accumulation window; see `Adam.flush`."""
        self.inner_optimizer.flush()

    def averaged(self) -> AbstractContextManager[None]:
        """Let the variables hold their averages in a `with` block; see `Adam.averaged`."""
        return self.inner_optimizer.averaged()

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the variables of `variables`, in their order, the inner optimizer's among them.

        Raises:
            RuntimeError: the inner optimizer is not built.
            ValueError: there are more or fewer, or a shape differs; nothing has changed.
        """
        self._build_around()
        own, every = self._variables, self.variables
        if len(weights) != len(every):
            raise ValueError(
                f"weights must have {len(every)} entries as `variables` has, received"
                f" {len(weights)}; pass those of an oneadam.keras.LossScaleOptimizer"
            )
        values = [_rows.fetched(weight) for weight in weights[: len(own)]]
        if any(value.shape for value in values):
            raise ValueError(
                f"the first {len(own)} weights must be numbers, received"
                f" {[value.shape for value in values]} as their shapes; pass the `variables` of"
                " an oneadam.keras.LossScaleOptimizer"
            )
        places = {id(variable): place for place, variable in enumerate(own)}
        self._check({n: values[places[id(v)]] for n, v in self._own_variables().items()})
        with _interrupts.held_back():
            self.inner_optimizer.set_weights(weights[len(own) :])
            for variable, value in zip(own, values, strict=True):
                variable.assign(value)

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[Any] | None = None
    ) -> None:
        """Exempt variables from weight decay; see `Adam.exclude_from_weight_decay`."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    @property
    def calls(self) -> int:
        """The number of finished calls, skipped ones not included."""
        return self.inner_optimizer.calls

    @property
    def updates(self) -> int:
        """The number of finished updates."""
        return self.inner_optimizer.updates

    def metrics(self) -> dict[str, float]:
        """Return plain numbers to log, the scale among them; see `Adam.metrics`.

        It warns where 50 calls in a row or more were skipped.
        """
        state = self._state()
        if state.skipped_in_a_row >= _loss_scale.SKIPS_BEFORE_WARNING:
            warn(_loss_scale.too_many_skips(state.skipped_in_a_row, state.scale))
        return self.inner_optimizer.metrics() | {"loss_scale": state.scale}

    def _state(self) -> LossScale:
        if not self.built:
            return LossScale(self.initial_scale)
        variables = (self.dynamic_scale, self.step_counter, self.skipped_in_a_row)
        scale, finite_calls, skipped = (_rows.fetched(variable) for variable in variables)
        return LossScale(float(scale), int(finite_calls), int(skipped))

    def get_config(self) -> dict[str, Any]:
        """Return what makes an equal optimizer through `from_config`, ready for JSON."""
        return {**super().get_config(), "minimum_scale": self.minimum_scale}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> LossScaleOptimizer:
        """Return an optimizer with the configuration of another; see `Adam.from_config`."""
        name = config.get("name")
        rest = {key: value for key, value in config.items() if key != "name"}
        inner = rest.get("inner_optimizer")
        if isinstance(inner, Mapping) and inner.get("registered_name"):
            made = keras.saving.deserialize_keras_object(inner, custom_objects=custom_objects)
            if isinstance(made, Adam):
                return cls(**{**rest, "inner_optimizer": made, "name": name})
        written, settings = _loss_scale.from_config(rest)
        return cls(Adam.from_config(written, custom_objects), name=name, **settings)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the whole state, the scale included; see `Adam.state_dict`."""
        return self.inner_optimizer.state_dict() | self._own_state()

    def _own_state(self) -> dict[str, NDArray[Any]]:
        saved = _loss_scale.saved(self._state())
        name = self.inner_optimizer.name
        return {full(name, key): np.array(value) for key, value in saved.items()}

    def load_state_dict(
        self, state: Mapping[str, Any], *, keep_learning_rate: bool = False
    ) -> None:
        """Take over the state of another optimizer; see `Adam.load_state_dict`."""
        self._build_around()
        with _interrupts.held_back():
            also = self.inner_optimizer._adopt(
                state, keep_learning_rate, also=_loss_scale.SAVED,
                check=lambda also: _loss_scale.restored(also, self._settings),
            )  # fmt: skip
            self.dynamic_scale.assign(also.scale)
            self.step_counter.assign(also.finite_calls)
            self.skipped_in_a_row.assign(also.skipped_in_a_row)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state and the configuration to one file, atomically; see `Adam.save`."""
        checkpoint.write(path, self.state_dict(), self.inner_optimizer._told())

    def load(
        self,
        path: str | os.PathLike[str],
        names: Mapping[str, str] | Callable[[str], str] | None = None,
        *,
        keep_learning_rate: bool = False,
        transposed: Axes | None = None,
    ) -> None:
        """Take over the state in a file; see `Adam.load`."""
        saved = _saved.read(path, self.inner_optimizer.name, names, transposed)
        self.load_state_dict(saved, keep_learning_rate=keep_learning_rate)

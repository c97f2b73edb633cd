"""The dynamic loss scale around an optimizer for NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneadam import _interrupts, _loss_scale, _messages, checkpoint
from oneadam._loss_scale import LossScale
from oneadam._saved_state import Axes
from oneadam._state import full
from oneadam._warnings import warn
from oneadam.numpy import _saved
from oneadam.numpy._adam import Adam

Array = NDArray[Any]


class LossScaleOptimizer:
    """An optimizer whose loss is scaled so that narrow gradients neither vanish nor overflow.

    A call with an inf or NaN in a gradient halves the scale and changes nothing else; enough
    finite calls in a row double it. The scale stays between `minimum_scale` and 2**127.

    Args:
        inner_optimizer: `Adam` without a `loss_scale_factor`.
        initial_scale: number from `minimum_scale` to 2**127.
        dynamic_growth_steps: int >= 1, the finite calls after which the scale doubles.
        minimum_scale: number from 2**-126 to 2**127, below which the scale is not halved.

    Raises:
        TypeError, ValueError: an argument is of another kind or outside its range.

    Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.

    Example:
        >>> import numpy as np
        >>> from oneadam.numpy import Adam, LossScaleOptimizer
        >>> weights = [np.ones(3, np.float16)]
        >>> optimizer = LossScaleOptimizer(Adam(learning_rate=0.01))
        >>> optimizer.apply([np.full(3, np.inf, np.float16)], weights)
        >>> optimizer.scale, optimizer.metrics()["skipped_calls"]
        (16384.0, 1)
    """

    __slots__ = ("__weakref__", "_inner", "_settings", "_state")

    def __init__(
        self,
        inner_optimizer: Adam,
        initial_scale: Any = 2.0**15,
        dynamic_growth_steps: int = 2000,
        *,
        minimum_scale: Any = 1.0,
    ) -> None:
        if not isinstance(inner_optimizer, Adam):
            raise TypeError(_messages.not_an_adam("oneadam.numpy", inner_optimizer))
        _loss_scale.check_inner(inner_optimizer._run.hyperparameters.loss_scale_factor)
        self._settings = _loss_scale.settings(initial_scale, dynamic_growth_steps, minimum_scale)
        self._inner = inner_optimizer
        self._state = LossScale(self._settings.initial_scale)

    @property
    def inner_optimizer(self) -> Adam:
        """The optimizer that gets the unscaled gradients."""
        return self._inner

    @property
    def scale(self) -> float:
        """What `scale_loss` multiplies by now."""
        return self._state.scale

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times the scale, to take the gradients of."""
        return loss * self._state.scale

    def apply(self, grads: Any, variables: Any = None) -> None:
        """Take one call with gradients of the scaled loss; see `Adam.apply`.

        A call with an inf or NaN is skipped, whatever the inner optimizer's `on_nonfinite` says;
        50 of them in a row warn.
        """
        run = self._inner._run
        settings = self._settings
        with _interrupts.held_back():
            before = run.counters
            run.take(grads, variables, self._state.scale, "skip")
            if run.counters.calls > before.calls:
                self._state = _loss_scale.after_finite(self._state, settings.dynamic_growth_steps)
            elif run.counters.skipped_calls > before.skipped_calls:
                self._state = _loss_scale.after_nonfinite(self._state, settings.minimum_scale)
                warning = _loss_scale.warning(self._state)
                if warning:
                    warn(warning)

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> None:
        """Take one call, given pairs of a gradient and its variable; see `apply`."""
        pairs = list(grads_and_vars)
        self.apply([grad for grad, _ in pairs], [variable for _, variable in pairs])

    def build(self, variables: Any) -> None:
        """Make the inner optimizer's state; see `Adam.build`."""
        self._inner.build(variables)

    def flush(self) -> None:
        """Close an incomplete accumulation window; see `Adam.flush`."""
        self._inner.flush()

    def finalize_variable_values(self, variables: Any = None) -> None:
        """Set variables to their moving averages; see `Adam.finalize_variable_values`."""
        self._inner.finalize_variable_values(variables)

    def averaged(self) -> AbstractContextManager[None]:
        """Let the variables hold their averages in a `with` block; see `Adam.averaged`."""
        return self._inner.averaged()

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[Any] | None = None
    ) -> None:
        """Exempt variables from weight decay; see `Adam.exclude_from_weight_decay`."""
        self._inner.exclude_from_weight_decay(var_list, var_names)

    @property
    def variables(self) -> dict[str, Array]:
        """The variables by name."""
        return self._inner.variables

    @property
    def calls(self) -> int:
        """The number of finished calls, skipped ones not included."""
        return self._inner.calls

    @property
    def updates(self) -> int:
        """The number of finished updates."""
        return self._inner.updates

    @property
    def iterations(self) -> int:
        """The number of finished updates, under Keras's name."""
        return self._inner.iterations

    @property
    def learning_rate(self) -> float:
        """The inner optimizer's learning rate; assignable."""
        return self._inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._inner.learning_rate = value

    def metrics(self) -> dict[str, float]:
        """Return plain numbers to log, the scale among them; see `Adam.metrics`."""
        return self._inner._run.metrics(self._state.scale)

    def get_config(self) -> dict[str, Any]:
        """Return what makes an equal optimizer through `from_config`, ready for JSON."""
        return _loss_scale.to_config(self._inner.get_config(), self._settings)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> LossScaleOptimizer:
        """Return an optimizer with the configuration of another; see `Adam.from_config`."""
        inner, settings = _loss_scale.from_config(config)
        return cls(Adam.from_config(inner, custom_objects), **settings)

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of the whole state, the scale included; see `Adam.state_dict`."""
        return self._inner.state_dict() | self._own_state()

    def _own_state(self) -> dict[str, Array]:
        name = self._inner._run.hyperparameters.name
        saved = _loss_scale.saved(self._state)
        return {full(name, key): np.array(value) for key, value in saved.items()}

    def load_state_dict(
        self, state: Mapping[str, Any], *, keep_learning_rate: bool = False
    ) -> None:
        """Take over the state of another optimizer; see `Adam.load_state_dict`."""
        run = self._inner._run
        restoring = _saved.restoring(run, state, keep_learning_rate, also=_loss_scale.SAVED)
        loss_scale = _loss_scale.restored(restoring.also, self._settings)
        with _interrupts.held_back():
            _saved.restore(run, restoring)
            self._state = loss_scale

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state and the configuration to one file, atomically; see `Adam.save`."""
        run = self._inner._run
        tensors = _saved.state(run) | self._own_state()
        checkpoint.write(path, tensors, _saved.metadata(run))

    def load(
        self,
        path: str | os.PathLike[str],
        names: Mapping[str, str] | Callable[[str], str] | None = None,
        *,
        keep_learning_rate: bool = False,
        transposed: Axes | None = None,
    ) -> None:
        """Take over the state in a file; see `Adam.load`."""
        self.load_state_dict(
            _saved.read(self._inner._run, path, names, transposed),
            keep_learning_rate=keep_learning_rate,
        )

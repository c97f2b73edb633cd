"""The dynamic loss scale around an optimizer for PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oneadam import _interrupts, _loss_scale, _messages
from oneadam._loss_scale import LossScale
from oneadam._saved_state import Axes
from oneadam._state import full
from oneadam._warnings import warn
from oneadam.torch import _native, _saved
from oneadam.torch._adam import Adam
from oneadam.torch._compiler import uncompiled

Array = NDArray[Any]


class LossScaleOptimizer(torch.optim.Optimizer):
    """An optimizer whose loss is scaled so that narrow gradients neither vanish nor overflow.

    A call with an inf or NaN in a gradient halves the scale and changes nothing else; enough
    finite calls in a row double it. The scale stays between `minimum_scale` and 2**127. It needs
    no `torch.amp.GradScaler`. Groups and state are those of the optimizer inside; every group
    has also the scale, where checkpoints find it.

    Args:
        inner_optimizer: `Adam` without a `loss_scale_factor`.
        initial_scale: number from `minimum_scale` to 2**127.
        dynamic_growth_steps: int >= 1, the finite calls after which the scale doubles.
        minimum_scale: number from 2**-126 to 2**127, below which the scale is not halved.

    Raises:
        TypeError, ValueError: an argument is of another kind or outside its range.

    Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.

    Example:
        >>> import torch
        >>> from oneadam.torch import Adam, LossScaleOptimizer
        >>> weights = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = LossScaleOptimizer(Adam([weights], lr=0.01))
        >>> optimizer.scale_loss(weights.sum() * float("inf")).backward()
        >>> optimizer.step()
        >>> optimizer.scale, optimizer.metrics()["skipped_calls"]
        (16384.0, 1)
    """

    _step_supports_amp_scaling = True
    """So that a `torch.amp.GradScaler` is noticed, and refused."""

    def __init__(
        self,
        inner_optimizer: Adam,
        initial_scale: Any = 2.0**15,
        dynamic_growth_steps: int = 2000,
        *,
        minimum_scale: Any = 1.0,
    ) -> None:
        if not isinstance(inner_optimizer, Adam):
            raise TypeError(_messages.not_an_adam("oneadam.torch", inner_optimizer))
        _loss_scale.check_inner(inner_optimizer._run.hyperparameters.loss_scale_factor)
        self._settings = _loss_scale.settings(initial_scale, dynamic_growth_steps, minimum_scale)
        self._inner = inner_optimizer
        # Its constructor would make groups and state of its own; this makes the hooks only.
        super().__setstate__({})
        self._scale = LossScale(self._settings.initial_scale)

    @property
    def inner_optimizer(self) -> Adam:
        """The optimizer that gets the unscaled gradients."""
        return self._inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the inner optimizer."""
        return self._inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._inner.param_groups = groups

    @property
    def state(self) -> Any:
        """The state of the inner optimizer."""
        return self._inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self._inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the inner optimizer."""
        return self._inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._inner.defaults = defaults

    @property
    def _scale(self) -> LossScale:
        return self._of_group(self.param_groups[0])

    @_scale.setter
    def _scale(self, state: LossScale) -> None:
        for group in self.param_groups:
            group.update(_loss_scale.saved(state))

    def _of_group(self, group: dict[str, Any]) -> LossScale:
        """Return the scale that stands in a group; what it lacks starts afresh."""
        found = {name: group[name] for name in _loss_scale.SAVED if name in group}
        return _loss_scale.restored(found, self._settings)

    @property
    def scale(self) -> float:
        """What `scale_loss` multiplies by now."""
        return self._scale.scale

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times the scale, to take the gradients of."""
        return loss * self.scale

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own; see `Adam.add_param_group`."""
        scale = self._scale
        self._inner.add_param_group(param_group)
        self._scale = scale

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one call with gradients of the scaled loss; see `Adam.step`.

        A call with an inf or NaN is skipped, whatever the inner optimizer's `on_nonfinite` says;
        50 of them in a row warn.

        Args:
            closure: evaluates the model again and returns the loss; optional.

        Returns:
            What the closure returned.
        """
        if vars(self).pop("found_inf", None) is not None:
            vars(self).pop("grad_scale", None)
            raise ValueError(
                "a GradScaler must not scale the loss of a LossScaleOptimizer, which does so"
                " itself, received a step of both; leave one of them out"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        run, state = self._inner._run, self._scale
        with _interrupts.held_back():
            before = run.counters
            run.take(state.scale, "skip")
            if run.counters.calls > before.calls:
                steps = self._settings.dynamic_growth_steps
                self._scale = _loss_scale.after_finite(state, steps)
            elif run.counters.skipped_calls > before.skipped_calls:
                after = _loss_scale.after_nonfinite(state, self._settings.minimum_scale)
                self._scale = after
                message = _loss_scale.warning(after)
                if message is not None:
                    warn(message)
        return loss

    def flush(self) -> None:
        """Close an incomplete accumulation window; see `Adam.flush`."""
        self._inner.flush()

    def finalize_variable_values(self, variables: Any = None) -> None:
        """Set parameters to their moving averages; see `Adam.finalize_variable_values`."""
        self._inner.finalize_variable_values(variables)

    def averaged(self) -> AbstractContextManager[None]:
        """Let the parameters hold their averages in a `with` block; see `Adam.averaged`."""
        return self._inner.averaged()

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[Any] | None = None
    ) -> None:
        """Exempt parameters from weight decay; see `Adam.exclude_from_weight_decay`."""
        self._inner.exclude_from_weight_decay(var_list, var_names)

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
        return self._inner._run.metrics(self.scale)

    def get_config(self) -> dict[str, Any]:
        """Return what makes an equal optimizer through `from_config`, ready for JSON."""
        return _loss_scale.to_config(self._inner.get_config(), self._settings)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        params: Any,
        custom_objects: Mapping[str, Any] | None = None,
        *,
        process_group: Any = None,
    ) -> LossScaleOptimizer:
        """Return an optimizer with the configuration of another; see `Adam.from_config`."""
        inner, rest = _loss_scale.from_config(config)
        made = Adam.from_config(inner, params, custom_objects, process_group=process_group)
        return cls(made, **rest)

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the groups, with the scale in these; see `Adam.state_dict`."""
        self._inner._run.check_settled()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of another optimizer; see `Adam.load_state_dict`."""
        _native.load(self, self._inner._run, state_dict, self._of_group)
        self._scale = self._scale  # what the saved groups lack starts afresh

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state and the configuration to one file, atomically; see `Adam.save`."""
        name = self._inner._run.hyperparameters.name
        own = {full(name, key): np.array(v) for key, v in _loss_scale.saved(self._scale).items()}
        _saved.write(self._inner._run, path, own)

    def load(
        self,
        path: str | os.PathLike[str],
        names: Mapping[str, str] | Callable[[str], str] | None = None,
        *,
        keep_learning_rate: bool = False,
        transposed: Axes | None = None,
    ) -> None:
        """Take over the state in a file; see `Adam.load`."""
        run = self._inner._run
        saved = _saved.read(run, path, names, transposed)
        restoring = _saved.restoring(run, saved, keep_learning_rate, also=_loss_scale.SAVED)
        scale = _loss_scale.restored(restoring.also, self._settings)
        with _interrupts.held_back():
            _saved.restore(run, restoring)
            self._scale = scale

    def __getstate__(self) -> dict[str, Any]:
        return {"_inner": self._inner, "_settings": self._settings}

"""A run of the optimizer: what it is configured to do, how far it has come, and on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneadam import (
    _configuration,
    _exclusions,
    _gradients,
    _interrupts,
    _messages,
    _metrics,
    _plan,
    _state,
)
from oneadam import _hyperparameters as hyper
from oneadam._dtypes import compute_dtype
from oneadam._engines import Options
from oneadam._engines.gradients import Gradients
from oneadam._exclusions import Exclusions
from oneadam._gradients import Scaling
from oneadam._hyperparameters import Hyperparameters, Rates
from oneadam._plan import Call, Counters, Settings
from oneadam._warnings import warn
from oneadam.numpy import _variables
from oneadam.numpy._model import Model

Array = NDArray[Any]
Float64s = NDArray[np.float64]


class Run:
    """What the doors `Adam` and `LossScaleOptimizer` drive: plan, then act."""

    def __init__(
        self, hyperparameters: Hyperparameters, exclusions: Exclusions | None = None
    ) -> None:
        self.hyperparameters = hyperparameters
        self.counters = Counters()
        self.model: Model | None = None
        self.exclusions = exclusions or Exclusions()
        self._excluded_arrays: list[Array] = []
        self._rates: Rates | None = None
        self._scaling: Scaling | None = None
        self._warned_of: set[tuple[int, ...]] = set()
        self._holds_averages = False

    def built(self) -> Model:
        """Return the variables and their state.

        Raises:
            RuntimeError: there are none yet.
        """
        if self.model is None:
            raise RuntimeError(
                "the optimizer must be built before this, received no variables yet; call"
                " build(variables) or apply(grads, variables)"
            )
        return self.model

    def build(self, variables: Any) -> None:
        """Make the state for variables, or check that it was made for just them."""
        if self.model is not None:
            self.model.check_same(variables)
            return
        named = _variables.named_variables(variables)
        for name, array in named.items():
            dtype = compute_dtype(array.dtype)
            hyper.check_compute_dtype(self.hyperparameters, dtype, name)
        _state.check_distinct(self.hyperparameters.name, named)
        exclusions = self.exclusions.extended(
            names=[_variables.name_of(array, named) for array in self._excluded_arrays]
        )
        unknown = sorted(set(exclusions.names) - named.keys())
        if unknown:
            raise ValueError(_messages.excluded_unknown(unknown))
        slots = _state.array_slots(self.hyperparameters)
        self.model = Model(variables, slots, exclusions.covers)
        self.exclusions, self._excluded_arrays = exclusions, []

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None, var_names: Iterable[Any] | None
    ) -> None:
        """Exempt variables from weight decay, while there are none yet."""
        if self.model is not None:
            raise RuntimeError(_messages.excluded_too_late("build"))
        listed = _exclusions.entries("var_list", () if var_list is None else var_list)
        names = [variable for variable in listed if isinstance(variable, str)]
        arrays = [variable for variable in listed if not isinstance(variable, str)]
        for variable in arrays:
            if not isinstance(variable, np.ndarray):
                example = "[model['bias'], 'norm/scale']"
                raise TypeError(_messages.excluded_no_variable(variable, example))
        self.exclusions = self.exclusions.extended(
            names=names, var_names=() if var_names is None else var_names
        )
        self._excluded_arrays.extend(arrays)

    def take(self, grads: Any, variables: Any, loss_scale: float | None, on_nonfinite: str) -> None:
        """Take one call, or skip it; the counters tell."""
        if isinstance(grads, Iterator):
            grads = list(grads)
        if isinstance(grads, (Mapping, list, tuple)) and not grads:
            return
        if variables is not None and self.model is None:
            with self._built_for_good():
                self.build(variables)
                self.take(grads, variables, loss_scale, on_nonfinite)
            return
        self.check_trained()
        model = self.built()
        arrays = _variables.as_arrays(model.in_order(grads, variables), model.names)
        if not arrays:
            return
        self._check_present(arrays)
        self._act(arrays, _plan.plan_call, loss_scale, on_nonfinite)

    def flush(self) -> None:
        """Close an incomplete accumulation window, if there is one."""
        if not self.counters.accumulated_calls:
            return
        self.check_trained()
        none: list[Array | None] = [None] * len(self.built().names)
        self._act(none, _plan.plan_flush, None, self.hyperparameters.on_nonfinite)

    def _check_present(self, arrays: list[Array | None]) -> None:
        """Refuse a call without any gradient, and warn of variables that have none."""
        missing = tuple(row for row, array in enumerate(arrays) if array is None)
        if not missing or missing in self._warned_of:
            return
        if len(missing) == len(arrays):
            raise ValueError(_messages.no_gradient())
        warn(_messages.missing_gradients([self.built().names[row] for row in missing]))
        self._warned_of.add(missing)

    def _act(
        self,
        arrays: list[Array | None],
        plan: Callable[[Hyperparameters, Counters], Call],
        loss_scale: float | None,
        on_nonfinite: str,
    ) -> None:
        h, model = self.hyperparameters, self.built()
        rates = hyper.now(h, self.counters.calls)
        call = plan(h, self.counters)
        model.check_structure()
        # From here on no foreign code runs, so that the arrays stay where they are found.
        with _interrupts.held_back():
            gradients = model.look(arrays)
            options = Options(loss_scale, h.clipvalue, bool(h.weight_decay), call.overwrite)
            checks = on_nonfinite != "propagate"
            norms = None
            if checks or (call.updates and _gradients.needs_norms(h)):
                norms = model.norms(gradients, options)
                if checks and not np.isfinite(norms).all():
                    self._meet_nonfinite(norms, on_nonfinite)
                    return
            if call.updates:
                self._update(gradients, call, rates, options, norms)
            else:
                model.accumulate(gradients, options)
            self.counters, self._rates = call.after, rates

    def _meet_nonfinite(self, norms: Float64s, on_nonfinite: str) -> None:
        if on_nonfinite == "raise":
            names = [self.built().names[row] for row in np.flatnonzero(~np.isfinite(norms))]
            raise FloatingPointError(_messages.nonfinite_gradients(names))
        skipped = self.counters.skipped_calls + 1
        self.counters = self.counters._replace(skipped_calls=skipped)

    def _update(
        self,
        gradients: Gradients,
        call: Call,
        rates: Rates,
        options: Options,
        norms: Float64s | None,
    ) -> None:
        model = self.built()
        participants = model.participants(gradients)
        scaling = self._scaled(norms, call.divisor)
        scalars = _plan.scalars(
            Settings.of(self.hyperparameters, rates),
            steps=_plan.steps(model.updates, participants),
            decayed=model.decayed,
            averaged=model.averaged,
            grad_scales=scaling.factors,
        )
        model.update(gradients, participants, scalars, options)
        self._scaling = scaling

    def _scaled(self, norms: Float64s | None, divisor: int) -> Scaling:
        """Return how the window's sums are averaged and clipped by norm."""
        h = self.hyperparameters
        total = None if norms is None else _gradients.total_norm(norms)
        if norms is None or not _gradients.needs_norms(h):
            return _gradients.averaging(divisor, total)
        if h.global_clipnorm is None:
            return _gradients.clipping(h.clipnorm, norms, total, divisor)
        return _gradients.clipping(h.global_clipnorm, np.array([total]), total, divisor)

    @contextmanager
    def _built_for_good(self) -> Iterator[None]:
        """Let a build inside the block be undone where the block fails."""
        before = self.exclusions, list(self._excluded_arrays)
        try:
            yield
        except BaseException:
            self.model = None
            self.exclusions, self._excluded_arrays = before
            raise

    def __getstate__(self) -> dict[str, Any]:
        self.check_trained()
        return vars(self)

    def check_trained(self) -> None:
        """Refuse to go on while the variables hold their averages."""
        if self._holds_averages:
            raise RuntimeError(_messages.averages_held())

    def finalize(self, variables: Any) -> None:
        """Set variables, or all, to their moving averages where they have one."""
        self.check_trained()
        model = self.built()
        model.check_variables()
        with _interrupts.held_back():
            for name, average in model.averages(variables).items():
                model.variables[name][...] = average

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the variables hold their moving averages for a block."""
        self.check_trained()
        model = self.built()
        model.check_variables()
        averages = model.averages(None)
        trained = {name: model.variables[name].copy() for name in averages}
        try:
            self._holds_averages = True
            for name, average in averages.items():
                model.variables[name][...] = average
            yield
        finally:
            with _interrupts.held_back():
                for name, values in trained.items():
                    model.variables[name][...] = values
                self._holds_averages = False

    def metrics(self, loss_scale: float | None) -> dict[str, float]:
        """Return what is known anyway as plain numbers."""
        return _metrics.metrics(self.counters, self._rates, self._scaling, loss_scale)

    def config(self) -> dict[str, Any]:
        """Return the configuration, ready for JSON."""
        if self._excluded_arrays:
            raise ValueError(_messages.excluded_unnamed())
        return _configuration.to_config(self.hyperparameters, self.exclusions)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None
    ) -> Run:
        """Return a run with the configuration of another, of any door or of Keras."""
        return cls(*_configuration.from_config(config, custom_objects))

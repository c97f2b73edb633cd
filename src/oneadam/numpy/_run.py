"""A run of the optimizer: what it is configured to do, how far it has come, and on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneadam import _exclusions, _gradients, _interrupts, _plan, _state
from oneadam import _hyperparameters as hyper
from oneadam._dtypes import compute_dtype
from oneadam._engines import Options
from oneadam._engines.sight import Gradients
from oneadam._exclusions import Exclusions
from oneadam._hyperparameters import Hyperparameters, Rates
from oneadam._plan import Call, Counters
from oneadam._warnings import warn
from oneadam.numpy import _variables
from oneadam.numpy._model import Model

Array = NDArray[Any]
Float64s = NDArray[np.float64]

_NAMED_IN_A_MESSAGE = 10


class Run:
    """What the doors `Adam` and `LossScaleOptimizer` drive: plan, then act."""

    def __init__(
        self, hyperparameters: Hyperparameters, exclusions: Exclusions | None = None
    ) -> None:
        self.hyperparameters = hyperparameters
        self.counters = Counters()
        self.model: Model | None = None
        self._exclusions = exclusions or Exclusions()
        self._excluded_arrays: list[Array] = []
        self._rates: Rates | None = None
        self._scaling: _gradients.Scaling | None = None
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
        exclusions = self._exclusions.extended(
            names=[_variables.name_of(array, named) for array in self._excluded_arrays]
        )
        unknown = sorted(set(exclusions.names) - named.keys())
        if unknown:
            raise ValueError(
                "var_list of exclude_from_weight_decay must hold variables of the optimizer,"
                f" received the names {unknown}, which are none; parts of names go into var_names"
            )
        slots = _state.array_slots(self.hyperparameters)
        self.model = Model(variables, slots, exclusions.covers)
        self._exclusions, self._excluded_arrays = exclusions, []

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None, var_names: Iterable[Any] | None
    ) -> None:
        """Exempt variables from weight decay, while there are none yet."""
        if self.model is not None:
            raise RuntimeError(
                "exclude_from_weight_decay must be called before build, received a call after it;"
                " call it right after making the optimizer"
            )
        listed = _exclusions.entries("var_list", () if var_list is None else var_list)
        names = [variable for variable in listed if isinstance(variable, str)]
        arrays = [variable for variable in listed if not isinstance(variable, str)]
        for variable in arrays:
            if not isinstance(variable, np.ndarray):
                raise TypeError(
                    "var_list must hold variables or their names, received"
                    f" {type(variable).__name__}; pass for example [model['bias'], 'norm/scale']"
                )
        self._exclusions = self._exclusions.extended(
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
            raise ValueError(
                "grads must have a gradient for at least one variable, received None for every"
                " one; check that the loss depends on the variables"
            )
        names = [self.built().names[row] for row in missing]
        warn(f"no gradient in this call, which leaves them as they are, for: {_listed(names)}")
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
            raise FloatingPointError(
                f"gradients must be finite, received an inf or NaN for {_listed(names)}; nothing"
                " has changed. Look for the cause, or pass over such calls with"
                ' on_nonfinite="skip"'
            )
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
        scaling = _gradients.scaling(self.hyperparameters, norms, call.divisor, len(model.names))
        scalars = _plan.scalars(
            self.hyperparameters,
            rates,
            # A variable that sits its first updates out has no t yet, and its scalars no use.
            steps=np.maximum(model.updates + participants, 1),
            decayed=model.decayed,
            averaged=model.averaged,
            grad_scales=scaling.factors,
        )
        model.update(gradients, participants, scalars, options)
        self._scaling = scaling

    @contextmanager
    def _built_for_good(self) -> Iterator[None]:
        """Let a build inside the block be undone where the block fails."""
        before = self._exclusions, list(self._excluded_arrays)
        try:
            yield
        except BaseException:
            self.model = None
            self._exclusions, self._excluded_arrays = before
            raise

    def __getstate__(self) -> dict[str, Any]:
        self.check_trained()
        return vars(self)

    def check_trained(self) -> None:
        """Refuse to go on while the variables hold their averages."""
        if self._holds_averages:
            raise RuntimeError(
                "inside averaged() the optimizer must be left alone, received a call of it there;"
                " the variables hold their averages only for the block"
            )

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
        counters, rates, scaling = self.counters, self._rates, self._scaling
        known = {
            "learning_rate": None if rates is None else rates.learning_rate,
            "gradient_norm": None if scaling is None else scaling.gradient_norm,
            "clip_scale": None if scaling is None else scaling.clip_scale,
            "loss_scale": loss_scale,
        }
        return {
            "calls": counters.calls,
            "updates": counters.updates,
            "skipped_calls": counters.skipped_calls,
            **{name: value for name, value in known.items() if value is not None},
        }

    def config(self) -> dict[str, Any]:
        """Return the configuration, ready for JSON."""
        if self._excluded_arrays:
            raise ValueError(
                "the configuration must name the variables that exclude_from_weight_decay was"
                " given as arrays, received a call before they have names; build the optimizer"
                " first"
            )
        config = hyper.to_config(self.hyperparameters)
        if self._exclusions != Exclusions():
            config["exclude_from_weight_decay"] = self._exclusions.to_config()
        return config

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None
    ) -> Run:
        """Return a run with the configuration of another, of any door or of Keras."""
        if not isinstance(config, Mapping):
            raise TypeError(
                f"config must be a dict, received {config!r} ({type(config).__name__}); pass what"
                " get_config() returned"
            )
        arguments = dict(config)
        excluded = arguments.pop("exclude_from_weight_decay", None)
        exclusions = Exclusions() if excluded is None else Exclusions.from_config(excluded)
        return cls(hyper.from_config(arguments, custom_objects), exclusions)


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMED_IN_A_MESSAGE else ""
    return ", ".join(names[:_NAMED_IN_A_MESSAGE]) + more

"""A run of the optimizer: what it is configured to do, how far it has come, and on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneadam import _exclusions, _interrupts, _messages, _plan
from oneadam._engines import Options
from oneadam._exclusions import Exclusions
from oneadam._gradients import Scaling
from oneadam._hyperparameters import Hyperparameters, Rates, check_compute_dtype
from oneadam._messages import listed
from oneadam._metrics import metrics
from oneadam._plan import Call, Counters
from oneadam._warnings import warn
from oneadam.torch import _parameters, _sharding, _slots
from oneadam.torch._groups import Groups
from oneadam.torch._model import Model
from oneadam.torch._spelling import Group
from oneadam.torch._update import Update

Float64s = NDArray[np.float64]


class Run:
    """What `Adam` and `LossScaleOptimizer` drive: plan, then act.

    Args:
        optimizer: which has the groups of parameters and the state.
        hyperparameters: of all parameters, where a group has none of its own.
        exclusions: from weight decay.
        process_group: over which plain parameters are spread, if they are.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        hyperparameters: Hyperparameters,
        exclusions: Exclusions,
        process_group: Any,
    ) -> None:
        self._optimizer = optimizer
        self.groups = Groups(hyperparameters)
        self.exclusions = exclusions
        self._process_group = process_group
        self._model: Model | None = None
        self._rates: Rates | None = None
        self._scaling: Scaling | None = None
        self._warned_of: set[tuple[str, ...]] = set()
        self.holds_averages = False
        self.is_made = False
        """Whether the groups that the optimizer is made with are there."""
        self._skipped_there: Any = 0

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The optimizer's, where a group has none of its own."""
        return self.groups.base

    @property
    def param_groups(self) -> list[Group]:
        """The optimizer's groups."""
        return self._optimizer.param_groups

    @property
    def counters(self) -> Counters:
        """How far the optimizer has come."""
        if isinstance(self._skipped_there, Tensor):
            # What a device has skipped meanwhile was counted here like any call.
            skipped, self._skipped_there = int(self._skipped_there), 0
            calls, updates, accumulated, before = self._counted
            self._counted = Counters(
                calls - skipped, updates - skipped, accumulated, before + skipped
            )
        return self._counted

    @counters.setter
    def counters(self, counters: Counters) -> None:
        self._counted, self._skipped_there = counters, 0

    def check_settled(self) -> None:
        """Have the counters of the groups tell what is so now, and the parameters be trained."""
        self.check_trained()
        self.counters = self.counters

    @property
    def _counted(self) -> Counters:
        """The counters, which stand in every group, where checkpoints find them."""
        return Counters(*(self.param_groups[0].get(name, 0) for name in Counters._fields))

    @_counted.setter
    def _counted(self, counters: Counters) -> None:
        for group in self.param_groups:
            group.update(counters._asdict())

    def names(self) -> list[str]:
        """Return the names of all parameters; their numbers where they have none."""
        given = [name for group in self.param_groups for name in group.get("param_names", ())]
        return given or [str(number) for number, _ in enumerate(self.parameters())]

    def parameters(self) -> list[Tensor]:
        """Return all parameters in the order of the groups."""
        return list(chain.from_iterable(group["params"] for group in self.param_groups))

    def check_group(self, group: Group) -> None:
        """Refuse a new group, the last one, of which something does not fit."""
        self.groups.enter(group)
        names, params = self.names(), group["params"]
        if len(set(names)) != len(names):
            raise ValueError(
                f"parameters must have different names, received {listed(names)}; rename one of"
                " those that are alike"
            )
        new = names[len(names) - len(params) :]
        for name, param in zip(new, params, strict=True):
            _parameters.check_parameter(name, param)
            computed = "float64" if param.dtype == torch.float64 else "float32"
            check_compute_dtype(self.groups.of(group), computed, name)
        if self.is_made:
            self.check_separate()

    def check_separate(self) -> None:
        """Refuse parameters that share memory."""
        _parameters.check_separate(self.names(), list(map(_sharding.local, self.parameters())))

    def adopt_exclusions(self, exclusions: Exclusions) -> None:
        """Exempt from weight decay what a configuration says."""
        unknown = sorted(set(exclusions.names) - set(self.names()))
        if unknown:
            raise ValueError(_messages.excluded_unknown(unknown))
        self.exclusions = exclusions

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None, var_names: Iterable[Any] | None
    ) -> None:
        """Exempt parameters from weight decay, before the first step."""
        if any(self._optimizer.state.values()):
            raise RuntimeError(_messages.excluded_too_late("the first step"))
        listed_there = _exclusions.entries("var_list", () if var_list is None else var_list)
        names = self.names()
        exact = [self.row(entry) for entry in listed_there]
        self.exclusions = self.exclusions.extended(
            names=[names[row] for row in exact],
            var_names=() if var_names is None else var_names,
        )
        self._model = None

    def row(self, variable: Any) -> int:
        """Return the number of a parameter, given itself or its name."""
        if isinstance(variable, str):
            if variable in self.names():
                return self.names().index(variable)
            raise ValueError(
                f"parameters must be among the optimizer's, received the name {variable!r}; it"
                f" knows {listed(self.names())}"
            )
        for row, param in enumerate(self.parameters()):
            if param is variable:
                return row
        if not isinstance(variable, Tensor):
            raise TypeError(_messages.excluded_no_variable(variable, "[model.bias, 'norm.weight']"))
        raise ValueError(
            "parameters must be the very tensors that the optimizer was given, received another"
            f" {type(variable).__name__} of shape {tuple(variable.shape)}; pass that, or a name"
        )

    def model(self) -> Model:
        """Return the parameters with their state, found anew where something was exchanged."""
        groups, state = self.param_groups, self._optimizer.state
        if self._model is None or not self._model.is_current(groups, state):
            with torch.inference_mode(False), torch.no_grad():
                model = Model(
                    groups, self.names(), state, self.hyperparameters, self._process_group
                )
            excluded = [self.exclusions.covers(name) for name in model.names]
            model.decayed = ~np.array(excluded, np.bool_)
            self._model = model
        return self._model

    def take(self, loss_scale: Any, on_nonfinite: str, found_inf: Tensor | None = None) -> None:
        """Take one call, or skip it; the counters tell.

        Args:
            loss_scale: what the gradients are divided by.
            on_nonfinite: what an inf or NaN does.
            found_inf: 0-d, not zero where a scaler has found one here; None where none has looked.
        """
        self.check_trained()
        if self._process_group is None and not any(group["params"] for group in self.param_groups):
            return
        if self._is_made_for_loading():
            self.model()
            return
        rates = self._asked_rates()
        model = self.model()
        grads = [param.grad for param in model.params]
        self._check_present(model, grads)
        self._act(model, grads, rates, _plan.plan_call, loss_scale, on_nonfinite, found_inf)

    @torch.no_grad()
    def flush(self) -> None:
        """Close an incomplete accumulation window, if there is one."""
        if not self._counted.accumulated_calls:
            return
        self.check_trained()
        rates, on_nonfinite = self._asked_rates(), self.hyperparameters.on_nonfinite
        model = self.model()
        none = [None] * len(model.params)
        self._act(model, none, rates, _plan.plan_flush, None, on_nonfinite, None)

    def _asked_rates(self) -> list[Rates]:
        """Return the rates of all groups for the next call.

        Callables are asked before anything is looked at, because they may change it.
        """
        knows = self._counts_on_the_host()
        calls = (self.counters if knows else self._counted).calls
        return self.groups.now(self.param_groups, calls)

    def _is_made_for_loading(self) -> bool:
        """Return whether this is how torch.distributed.checkpoint has state made to load into.

        It sets all learning rates and all gradients to zero and takes a step, which is not to
        count.
        """
        # A process may have no parameters, and never any state, where a group spreads them.
        if self._process_group is not None or self._optimizer.state:
            return False
        if not all(map(self.groups.was_set_to_zero, self.param_groups)):
            return False
        params = self.parameters()
        grads = [param.grad for param in params if param.grad is not None]
        nonzero = not grads or any(bool(_sharding.local(grad).any()) for grad in grads)
        return not _sharding.Sums(params, None).any(nonzero)

    def _check_present(self, model: Model, grads: list[Any]) -> None:
        """Refuse a call without any gradient, and warn of trained parameters that have none."""
        missing = [row for row, grad in enumerate(grads) if grad is None]
        if grads and not missing:
            return
        if len(missing) == len(grads) and self._process_group is None:
            raise ValueError(_messages.no_gradient())
        names = tuple(model.names[row] for row in missing if model.params[row].requires_grad)
        if names and names not in self._warned_of:
            warn(_messages.missing_gradients(names))
            self._warned_of.add(names)

    def _act(
        self,
        model: Model,
        grads: list[Any],
        rates: list[Rates],
        plan: Callable[[Hyperparameters, Counters], Call],
        loss_scale: Any,
        on_nonfinite: str,
        found_inf: Any,
    ) -> None:
        h, counters = self.hyperparameters, self._counted
        groups = [self.groups.of(group) for group in self.param_groups]
        call = plan(h, counters)
        options = Options(loss_scale, None, any(g.weight_decay for g in groups), call.overwrite)
        # From here on no foreign code runs, so that the tensors stay where they are found.
        with _interrupts.held_back():
            seen = model.look(grads)
            update = Update(model, seen, groups, rates, call, options)
            norms = None
            if on_nonfinite != "propagate" or update.clips:
                norms = update.norms(names=on_nonfinite == "raise")
            skip = update.is_skipped(norms, on_nonfinite, found_inf)
            if isinstance(skip, Tensor) and (not call.updates or self._counts_on_the_host()):
                skip = bool(skip)
            if skip is True:
                self._counted = counters._replace(skipped_calls=counters.skipped_calls + 1)
                return
            left_to_device = skip if isinstance(skip, Tensor) else None
            if call.updates:
                self._scaling = update.take(norms, left_to_device)
            else:
                model.accumulate(seen, options)
            self._counted, self._rates = call.after, rates[0]
            self.groups.write(self.param_groups, rates)
            if left_to_device is not None:
                self._skipped_there += left_to_device

    def _counts_on_the_host(self) -> bool:
        """Return whether something else than the device depends on how many calls there were."""
        h = self.hyperparameters
        rates = (self.groups.of(group) for group in self.param_groups)
        return (
            (h.gradient_accumulation_steps or 1) > 1
            or h.ema_overwrite_frequency is not None
            or any(callable(rate.learning_rate) for rate in rates)
        )

    def check_trained(self) -> None:
        """Refuse to go on while the parameters hold their averages."""
        if self.holds_averages:
            raise RuntimeError(_messages.averages_held())

    def keys(self, group: Group) -> tuple[str, ...]:
        """Return the keys of the state of a group's parameters."""
        return _slots.keys_of(_slots.slots_of(self.hyperparameters, amsgrad=group["amsgrad"]))

    def replace(self, state: Any, groups: list[Group] | None = None) -> None:
        """Put state, and groups if they are given, in the place of the optimizer's."""
        self._model = None
        self._optimizer.state = state
        if groups is not None:
            self._optimizer.param_groups = groups
            self.groups.forget_others(groups)

    def check_whole(self) -> None:
        """Refuse where each process has only some of the parameters, and none of the others."""
        if self._process_group is not None:
            raise RuntimeError(
                "a portable checkpoint must have the state of all parameters, received a call"
                " where process_group spreads them; save the consolidated state_dict() of"
                " ZeroRedundancyOptimizer"
            )

    def learning_rate(self) -> float:
        """Return the learning rate of the first group for the next call."""
        return self.groups.learning_rate(self.param_groups[0], self.counters.calls)

    def metrics(self, loss_scale: float | None) -> dict[str, float]:
        """Return what is known anyway as plain numbers."""
        return metrics(self.counters, self._rates, self._scaling, loss_scale)

    def __getstate__(self) -> dict[str, Any]:
        self.check_settled()
        return vars(self) | {"_model": None}

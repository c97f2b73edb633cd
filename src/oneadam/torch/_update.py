"""One call, once it is planned: norms, whether it is skipped, scalars, and the update itself."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oneadam import _gradients, _messages, _plan
from oneadam._engines import Options
from oneadam._gradients import Scaling
from oneadam._hyperparameters import Hyperparameters, Rates
from oneadam._plan import Call, Scalars, Settings
from oneadam.torch._model import Model
from oneadam.torch._parts import Seen


class Norms(NamedTuple):
    """The norms of the gradients over all processes, float64, in the model's namespace."""

    each: Any
    """Of each parameter; where nothing needs more, only of its part in this process."""
    total: Any


class Update(NamedTuple):
    """All that one call is made of."""

    model: Model
    seen: Seen
    groups: list[Hyperparameters]
    """Of each group."""
    rates: list[Rates]
    """Of each group."""
    call: Call
    options: Options

    @property
    def clips(self) -> bool:
        """Whether this call clips by a norm."""
        return self.call.updates and any(map(_gradients.needs_norms, self.groups))

    def norms(self, *, names: bool = False) -> Norms:
        """Return the norms of the gradients, or of the sums of their window.

        Args:
            names: whether the norm of each parameter has to be whole.
        """
        model = self.model
        here = model.norms(self.seen, self.options)
        if model.sums.is_local:
            return Norms(here, self._total(here))
        if not names and not any(h.clipnorm is not None for h in self.groups):
            return Norms(here, model.xp.sqrt(model.sums.of_all(here * here)))
        each = model.xp.sqrt(model.sums.of_each(here * here))
        if model.sums.has_all:
            return Norms(each, self._total(each))
        return Norms(each, model.xp.sqrt(model.sums.of_all(here * here)))

    def _total(self, norms: Any) -> Any:
        if not isinstance(norms, Tensor):
            return _gradients.total_norm(norms)
        # Squares of float64 may not fit into float64.
        largest = norms.amax() if len(norms) else norms.sum()
        largest = torch.where(torch.isfinite(largest) & (largest > 0.0), largest, 1.0)
        return torch.linalg.vector_norm(norms / largest) * largest

    def is_skipped(self, norms: Norms | None, on_nonfinite: str, found_inf: Any) -> Any:
        """Return whether this call is to change nothing, the same in all processes.

        Args:
            norms: of the gradients, where they are known.
            on_nonfinite: what an inf or NaN does.
            found_inf: 0-d, not zero where a scaler has found one here; or None.

        Returns:
            A bool, or a 0-d bool on the device where only that knows.

        Raises:
            FloatingPointError: a gradient is not finite, and that is an error.
        """
        skip: Any = False
        if found_inf is not None:
            skip = self.model.sums.any(self._known(found_inf != 0))
        if on_nonfinite == "propagate" or norms is None:
            return skip
        is_finite = self._known(self.model.xp.isfinite(norms.total))
        if on_nonfinite == "skip":
            return skip | ~is_finite if isinstance(is_finite, Tensor) else skip or not is_finite
        if not is_finite and not skip:
            rows = np.flatnonzero(~np.isfinite(np.asarray(torch.as_tensor(norms.each).cpu())))
            names = [self.model.names[row] for row in rows] or ["a parameter of another process"]
            raise FloatingPointError(_messages.nonfinite_gradients(names))
        return skip

    def _known(self, flag: Any) -> Any:
        """Return a flag as a bool where that needs no waiting, else as a tensor on the device."""
        if isinstance(flag, Tensor) and self.model.xp is not np:
            return flag.to(self.model.xp.device)
        return bool(flag)

    def take(self, norms: Norms | None, skip: Tensor | None) -> Scaling:
        """Update the parameters, and return what was done to their gradients."""
        scaling = self._scaling(norms)
        participants = self.model.participants(self.seen)
        scalars = self._scalars(scaling, participants)
        self.model.update(self.seen, participants, scalars, self.options, skip)
        return scaling

    def _scaling(self, norms: Norms | None) -> Scaling:
        divisor, xp = self.call.divisor, self.model.xp
        if norms is None or not self.clips:
            return _gradients.averaging(divisor, None if norms is None else norms.total)
        limit = self.groups[0].global_clipnorm
        if limit is not None:
            total = xp.reshape(norms.total, (1,))
            return _gradients.clipping(limit, total, norms.total, divisor, xp)
        limits = [math.inf if h.clipnorm is None else h.clipnorm for h in self.groups]
        of_each = xp.asarray(np.array(limits)[self.model.group_of])
        return _gradients.clipping(of_each, norms.each, norms.total, divisor, xp)

    def _scalars(self, scaling: Scaling, participants: Any) -> Scalars:
        model, h = self.model, self.groups[0]
        xp = model.xp
        settings = Settings(
            Rates(*map(self._column, map(list, zip(*self.rates, strict=True)))),
            self._column([h.epsilon for h in self.groups]),
            self._column([h.weight_decay or 0.0 for h in self.groups]),
            h.epsilon_hat,
            h.ema_momentum,
        )
        return _plan.scalars(
            settings,
            steps=_plan.steps(model.updates, xp.asarray(participants), xp),
            decayed=xp.asarray(model.decayed),
            averaged=model.averaged,
            grad_scales=xp.asarray(scaling.factors),
            xp=xp,
        )

    def _column(self, values: list[Any]) -> Any:
        """Return a number of each group as one for each parameter, or once where it is the same."""
        model = self.model
        if model.xp is np:
            values = [float(v) if isinstance(v, Tensor) else v for v in values]
        first = values[0]
        if all(value is first for value in values) or not any(
            isinstance(value, Tensor) or value != first for value in values
        ):
            return first
        if any(isinstance(value, Tensor) for value in values):
            return torch.stack([model.xp.asarray(v) for v in values])[model.group_of]
        return model.xp.asarray(np.array(values)[model.group_of])

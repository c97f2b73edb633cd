"""Parameters that one engine takes at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oneadam._engines import Options
from oneadam._engines.gradients import Gradients
from oneadam._engines.host import Host
from oneadam._engines.torch.device import Device
from oneadam._engines.torch.sight import Sight
from oneadam._plan import Scalars
from oneadam.torch._spelling import Group

Bools = NDArray[np.bool_]


class Kind(NamedTuple):
    """What an engine needs to be the same for all parameters that it takes at once."""

    amsgrad: bool
    clipvalue: float | None
    maximize: bool

    @classmethod
    def of(cls, group: Group) -> Kind:
        """Return the kind of a group's parameters."""
        return cls(group["amsgrad"], group["clipvalue"], group["maximize"])


class Part(NamedTuple):
    """Parameters of one kind on one device, and their engine."""

    kind: Kind
    rows: NDArray[np.intp]
    """Which of all parameters they are."""
    numbers: list[int]
    """The same as plain numbers."""
    engine: Host | Device
    sight: Sight | Device
    """What finds out whether the engine has the right tensors."""

    def options(self, options: Options) -> Options:
        """Return what holds for every element of these parameters in a call."""
        loss_scale = options.loss_scale
        if self.kind.maximize:
            # Exact, because only the sign changes.
            loss_scale = -1.0 if loss_scale is None else -loss_scale
        return options._replace(loss_scale=loss_scale, limit=self.kind.clipvalue)

    def update(
        self,
        gradients: Gradients,
        scalars: Scalars,
        options: Options,
        *,
        participants: Bools,
        accumulated: bool,
        skip: Tensor | None,
    ) -> None:
        """Update the participants among these parameters, and all their moving averages."""
        engine = self.engine
        if isinstance(engine, Device):
            engine.update(
                gradients,
                scalars,
                options,
                participants=participants,
                accumulated=accumulated,
                skip=skip,
            )
        elif skip is None or not skip:
            engine.update(
                gradients,
                Scalars(*map(_on_host, scalars)),
                options,
                participants=participants,
                accumulated=accumulated,
            )


class Seen(NamedTuple):
    """What a call found out about its gradients."""

    gradients: list[Gradients]
    """Of each part of the model."""
    present: Bools
    """Which parameters have one."""


def _on_host(column: Any) -> Any:
    return column.cpu().numpy() if isinstance(column, Tensor) else column

"""The engine of host memory, driven like any other engine, one variable or many at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from engines.differential import copied

from oneadam._engines import Buffers, Options, strided, threads
from oneadam._engines.gradients import Gradients
from oneadam._engines.host import Host
from oneadam._engines.sight import Sight
from oneadam._plan import Scalars


def refused(row: int, grad: Any) -> Any:
    """A `closer` for gradients that need no closer look, or that nothing can be said against."""
    return None if grad is None else np.asarray(grad)


def made(rows: list[Buffers]) -> Host:
    """A host of some variables, all with the same kinds of state."""
    columns = {
        name: None if getattr(rows[0], name) is None else [getattr(row, name) for row in rows]
        for name in Buffers._fields
        if name != "grad"
    }
    buffers = Buffers(grad=None, **columns)
    return Host(
        buffers, Sight(buffers, [str(row) for row in range(len(rows))]), strided, threads.together
    )


def seen(host: Host, rows: list[Buffers]) -> Gradients:
    """What the host sees of the gradients."""
    return host.look([row.grad for row in rows], refused)


def columns(s: Scalars, count: int) -> Scalars:
    """The same scalars for every variable."""
    return Scalars(*(np.full(count, float(number)) for number in s))


def update(
    rows: list[Buffers],
    s: Scalars,
    options: Options,
    *,
    participants: list[bool] | None = None,
) -> list[Buffers]:
    """Update variables in place, all at once, and return them without their gradients."""
    host = made(rows)
    taking_part = [True] * len(rows) if participants is None else participants
    host.update(
        seen(host, rows),
        columns(s, len(rows)),
        options,
        participants=np.array(taking_part, np.bool_),
        accumulated=rows[0].accumulator is not None,
    )
    return [row._replace(grad=None) for row in rows]


def engine(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    """Update one variable, on copies."""
    return update([copied(buffers)], s, options)[0]


def same_bits(one: Buffers, other: Buffers) -> bool:
    """Whether two variables and their state are equal to the last bit, byte order aside."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and _bytes(a) == _bytes(b))
        for a, b in zip(one, other, strict=True)
    )


def _bytes(array: np.ndarray) -> tuple[Any, ...]:
    native = array.astype(array.dtype.newbyteorder("="), order="C")
    with np.errstate(invalid="ignore"):
        # NaN is NaN, whatever its payload.
        native = np.where(np.isnan(native), np.nan, native).astype(native.dtype)
    return array.shape, native.dtype.name, native.tobytes()

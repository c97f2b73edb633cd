"""The engines: each runs the rule, on memory of its kind, and decides nothing.

All engines keep one promise on precision: narrow numbers are widened to the compute dtype
(float64 for float64 variables, float32 for all others), computed on, and rounded to nearest
even once, when they are stored. The moving average is taken of the variable as stored.

- `arrays` maps arrays of any namespace to new arrays; tracers included.
- `host` updates host memory in place. It hands arrays whose memory is a plain run of elements
  to `cpu`, which is compiled, and all others to an engine of their kind: `strided` takes NumPy
  arrays block by block, `torch.rows` takes tensors one by one.

`host` knows no kind of array: `sight` finds NumPy arrays in memory, `torch.sight` tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Buffers(NamedTuple):
    """The arrays that an update of one variable reads and writes; None for one that is absent."""

    param: Any
    grad: Any
    accumulator: Any
    momentum: Any
    velocity: Any
    velocity_max: Any
    average: Any


class Options(NamedTuple):
    """What holds for every element of a call."""

    loss_scale: float | None = None
    """What the incoming gradients are divided by."""
    limit: float | None = None
    """Gradients are clipped to plus and minus this, by value."""
    decays: bool = False
    """Whether there is any weight decay."""
    overwrite: bool = False
    """Whether variables become their moving averages."""

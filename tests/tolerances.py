"""How far from the float64 oracle a result may be, in one table, each entry with its reason.

The unit is the spacing of a dtype (the gap between neighbouring numbers) at the largest magnitude
that the element reached. `allowed` tells how many of them are granted after so many updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from oracle import FORMATS


@dataclass(frozen=True)
class Tolerance:
    """`first` spacings of `unit` after one update, growing like √updates up to `limit`."""

    unit: str
    first: float
    limit: float
    reason: str

    def spacings(self, updates: int) -> float:
        """The spacings granted after `updates` updates, any number of them."""
        return min(self.first * max(updates, 1) ** 0.5, self.limit)


# Independent rounding errors add up like a random walk, hence √updates between the two numbers
# that the definition promises; the second caps what biased roundings could add.
PROMISE = "docs/definition.md, section 3: 4 spacings after one update, 64 after 1,000"
BOTH_ROUND = "as for float32, twice, because the float64 oracle rounds like the door it judges"
FLIPPED = (
    "float32 arithmetic may fall on the other side of a rounding boundary of the narrow dtype: "
    "one spacing when it happens, seldom, and what was flipped once stays and may flip again"
)
AVERAGE_OF_NARROW = (
    "the average is float32, but it is taken of a stored value that may be a narrow spacing off"
)
SUM = "one rounding for the unscaling and one for each addition of the window"

STATE = ("momentum", "velocity", "velocity_hat")

TABLE: dict[tuple[str, str], Tolerance] = {
    ("value", "float32"): Tolerance("float32", 4, 64, PROMISE),
    ("value", "float64"): Tolerance("float64", 8, 128, BOTH_ROUND),
    ("value", "float16"): Tolerance("float16", 1.5, 8, FLIPPED),
    ("value", "bfloat16"): Tolerance("bfloat16", 1.5, 4, FLIPPED),
    ("average", "float32"): Tolerance("float32", 4, 64, PROMISE),
    ("average", "float64"): Tolerance("float64", 8, 128, BOTH_ROUND),
    ("average", "float16"): Tolerance("float16", 1.5, 8, AVERAGE_OF_NARROW),
    ("average", "bfloat16"): Tolerance("bfloat16", 1.5, 4, AVERAGE_OF_NARROW),
}
for _what in STATE:
    for _dtype in ("float32", "float16", "bfloat16"):
        TABLE[_what, _dtype] = Tolerance("float32", 4, 64, PROMISE)
    TABLE[_what, "float64"] = Tolerance("float64", 8, 128, BOTH_ROUND)
for _dtype in ("float32", "float16", "bfloat16"):
    TABLE["gradient_accumulator", _dtype] = Tolerance("float32", 1, 1, SUM)
TABLE["gradient_accumulator", "float64"] = Tolerance("float64", 2, 2, SUM)


def allowed(what: str, dtype: str, updates: int, preparation: int = 0) -> float:
    """The spacings granted to one tensor.

    Args:
        what: "value", "average" or the name of a state entry.
        dtype: the variable's dtype.
        updates: how many updates there have been.
        preparation: roundings of a gradient before it meets the moments, at most one spacing
            each: unscaling 1, each addition of a window 1, its mean 1, clipping 2. They count
            double in the velocity, which is quadratic in the gradient.
    """
    entry = TABLE[what, dtype]
    share = {"velocity": 2, "velocity_hat": 2}.get(what, 1)
    if what in ("value", "average") and entry.unit == dtype and dtype in ("float16", "bfloat16"):
        share = 0
    return entry.spacings(updates) + share * preparation


def spacing(magnitude: np.ndarray, dtype: str) -> np.ndarray:
    """The gap between neighbouring numbers of `dtype` at `magnitude`, elementwise."""
    bits, smallest, _ = FORMATS[dtype]
    exponent = np.frexp(magnitude)[1] - 1
    exponent = np.where(magnitude == 0.0, smallest, np.maximum(exponent, smallest))
    return np.ldexp(1.0, exponent - bits)


def unit(what: str, dtype: str) -> str:
    """The dtype whose spacing is the unit for this tensor of a variable of dtype `dtype`."""
    return TABLE[what, dtype].unit

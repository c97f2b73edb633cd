"""A step counter of any framework, and the arithmetic that schedules need on it.

A schedule's formula is written once, with the names of the Python array API standard (`where`,
`sin`, `pow`, ...). NumPy, JAX and other arrays bring a namespace of these names with them, PyTorch
has them in `torch`, and Python's own numbers get one here. No framework is imported.

float32 counts exactly only to 2**24, so differences and quotients of integer steps are taken in
integers and only then made floating-point numbers.
"""

from __future__ import annotations

import math
import numbers
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

NAMESPACES = {"torch": "torch", "tensorflow": "oneadam.keras._tensorflow_names"}
"""The module with the standard's names, by the package of an array without a namespace of its own.

A framework is added by one line here."""

LAST_STEP = 2.0**53


def _pow(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def _split_log(base: float) -> tuple[float, float]:
    """Return two numbers that sum to log(base), the first of so few bits that counts keep it.

    Both have the sign of the sum, so that their powers do not run to zero and infinity at once.
    """
    # Any nonzero multiple of this is far below what exp can tell from zero, and 0 times it is 0.
    log = math.log(base) if base > 0.0 else -1e30
    fraction, exponent = math.frexp(log)
    high = math.ldexp(math.trunc(fraction * 2.0**11), exponent - 11)
    return high, log - high


PYTHON = SimpleNamespace(
    where=lambda condition, chosen, other: chosen if condition else other,
    full_like=lambda like, value: value,
    sin=math.sin,
    pow=_pow,
)


class Step(NamedTuple):
    """A step, as it came and as a floating-point number.

    The bounds and lengths that the methods take are Python numbers.
    """

    xp: Any
    exact: Any
    value: Any
    last: float
    """No later step has to be thought of: its type ends here, or it is a Python number."""
    largest: float
    """The largest integer that `exact` can be compared with, -1 if it is no integer."""

    @classmethod
    def of(cls, step: Any) -> Step:
        """Return the step in a Python number, a NumPy scalar, an array, tensor or tracer."""
        if isinstance(step, numbers.Real):
            return cls._of_number(step)
        xp = _namespace(step)
        value = xp.asarray(step, dtype=xp.asarray(0.0).dtype)
        if "int" not in str(step.dtype):
            return cls(xp, value, value, LAST_STEP, -1)
        end = xp.iinfo(step.dtype).max
        # JAX gives an int the default integer type, whatever it is compared with.
        largest = min(end, xp.iinfo(xp.asarray(0).dtype).max)
        return cls(xp, step, value, min(end, LAST_STEP), largest)

    @classmethod
    def _of_number(cls, step: Any) -> Step:
        if not step >= 0:
            raise ValueError(
                f"step must be a number >= 0, received {step!r}. Pass the number of calls so far."
            )
        last = min(step, LAST_STEP)
        if isinstance(step, numbers.Integral):
            return cls(PYTHON, int(step), float(step), last, LAST_STEP)
        return cls(PYTHON, float(step), float(step), last, -1)

    def reached(self, bound: float) -> Any:
        """Return whether step >= bound."""
        step, bound = self._alike(bound, math.ceil(bound))
        return step >= bound

    def passed(self, bound: float) -> Any:
        """Return whether step > bound."""
        step, bound = self._alike(bound, math.floor(bound))
        return step > bound

    def until(self, bound: float) -> Any:
        """Return bound - step, or 0 from there on."""
        whole = math.ceil(bound)
        step, end = self._alike(whole, whole)
        left = self._floating(self.xp.where(step < end, end - step, 0))
        beyond = whole - bound
        return left if beyond == 0.0 else self.xp.where(left > beyond, left - beyond, 0.0)

    def share(self, length: float) -> Any:
        """Return step / length, or 1 from there on."""
        return self.xp.where(self.reached(length), 1.0, self.value / float(length))

    def divide(self, length: float) -> tuple[Any, Any, Any]:
        """Return whole lengths behind the step, steps since the last and steps to the next."""
        step, length = self._alike(length, math.ceil(length), only_if_equal=True)
        since = step % length
        floating = self._floating
        return floating(step // length), floating(since), floating(length - since)

    def power(self, base: float, count: Any) -> Any:
        """Return base ** count for a whole count.

        A plain power in float32 is off by as many spacings as the count is large.
        """
        if self.xp is PYTHON:
            return _pow(base, count)
        high, low = _split_log(base)
        power = self.xp.exp(count * high)
        # XLA would turn a product of two exponentials into one, and lose what was split off.
        return power + power * self.xp.expm1(count * low)

    def _alike(self, bound: float, whole: int, only_if_equal: bool = False) -> tuple[Any, float]:
        """Return step and bound as integers where the step's type allows, else as floats.

        An integer step lies on the same side of `whole`, the bound rounded, as of the bound.
        """
        if 0 <= whole <= self.largest and (whole == bound or not only_if_equal):
            return self.exact, whole
        return self.value, float(bound)

    def _floating(self, number: Any) -> Any:
        if self.xp is PYTHON:
            return float(number)
        return self.xp.asarray(number, dtype=self.value.dtype)


def _namespace(step: Any) -> Any:
    if hasattr(step, "__array_namespace__"):
        return step.__array_namespace__()
    for kind in type(step).__mro__:
        name = NAMESPACES.get(kind.__module__.partition(".")[0])
        if name is not None:
            return sys.modules[name] if name in sys.modules else import_module(name)
    raise TypeError(
        f"step must be a number, or an array or tensor with one, received {step!r} "
        f"({type(step).__name__}). Pass the number of calls so far, for example 100."
    )

"""The dynamic loss scale: what the next scale is, as pure functions of the last one.

Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

MAXIMUM_SCALE = 2.0**127
SKIPS_BEFORE_WARNING = 50


class LossScale(NamedTuple):
    """The scale, the finite calls since it last changed, the skipped calls in a row."""

    scale: float
    finite_calls: int = 0
    skipped_in_a_row: int = 0


def after_finite(state: LossScale, growth_steps: int) -> LossScale:
    """Return the state after a call with finite gradients: twice the scale once it is due."""
    finite_calls = state.finite_calls + 1
    if finite_calls < growth_steps:
        return LossScale(state.scale, finite_calls)
    return LossScale(min(state.scale * 2.0, MAXIMUM_SCALE))


def after_nonfinite(state: LossScale, minimum_scale: float) -> LossScale:
    """Return the state after a call with an inf or NaN: half the scale, and one more skip."""
    scale = max(state.scale / 2.0, minimum_scale)
    return LossScale(scale, skipped_in_a_row=state.skipped_in_a_row + 1)

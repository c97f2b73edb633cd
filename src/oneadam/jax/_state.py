"""The state of the transformations: arrays only, in NamedTuples."""

from __future__ import annotations

from typing import Any, NamedTuple

from oneadam._plan import Weights

Array = Any
Tree = Any


class Rates(NamedTuple):
    """The numbers that may change between two calls without anything being compiled again."""

    learning_rate: Array
    """Of the next call if it is a number; else that of the last, 0 before the first."""
    beta_1: Weights
    beta_2: Weights


class Absences(NamedTuple):
    """What is counted of each parameter, once one of them has had no gradient in a call."""

    updates: Array
    """uint32, two rows, low words and high words: updates that each has taken part in."""
    in_window: Array
    """bool: whether a call of the open accumulation window has given each a gradient."""


class AdamState(NamedTuple):
    """The state of `adam`.

    Counters are uint32 with two words, the low one first. Trees have the structure of the
    parameters; what is not used is None.
    """

    calls: Array
    """Calls that were finished."""
    updates: Array
    """Calls that have changed the parameters."""
    skipped_calls: Array
    accumulated_calls: Array
    """int32: calls that the open accumulation window has taken."""
    averaged: Array
    """bool: whether the averages have been taken yet."""
    rates: Rates
    gradient_norm: Array | None
    """Of the last update, where it clips or skips: over all parameters, before clipping."""
    clip_scale: Array | None
    """Of the last update, where it clips by norm: the smallest factor."""
    absences: Absences | None
    """None as long as every call has given every parameter a gradient."""
    momentum: Tree
    velocity: Tree
    velocity_hat: Tree
    average: Tree
    gradient_accumulator: Tree


class LossScaleState(NamedTuple):
    """The state of `loss_scale`."""

    scale: Array
    finite_calls: Array
    """int32: since the scale last changed."""
    skipped_in_a_row: Array
    """int32, which stays at its largest number."""
    skipped_calls: Array
    """A counter, two words of uint32."""
    inner: Any
    """The state of the transformation inside."""

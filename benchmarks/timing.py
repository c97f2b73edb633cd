"""Timing contestants in turns, so that whatever disturbs the machine disturbs them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# OpenMP's threads go on spinning for some milliseconds after torch's work, on the cores that
# the next contestant needs.
_PAUSE = 0.02


def _nothing() -> None:
    """Leave everything as it is."""


class Contestant(NamedTuple):
    """Somebody who can take a step."""

    name: str
    step: Callable[[], object]
    at_least: float | None = None
    """The target: how many times oneadam's time its own should be."""
    prepare: Callable[[], object] = _nothing
    """What has to happen before each step, and is not timed."""


class Spread(NamedTuple):
    """The median of a sample, and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        low, median, high = np.percentile(sample, [25, 50, 75]).tolist()
        return cls(median, low, high)


def in_turns(contestants: Sequence[Contestant], rounds: int) -> list[list[float]]:
    """Return the seconds of one step for each contestant and round.

    Each is given a step in advance, which brings its threads and its data back to where they
    are in steps that follow each other.
    """
    seconds: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for contestant, taken in zip(contestants, seconds, strict=True):
            time.sleep(_PAUSE)
            contestant.prepare()
            contestant.step()
            contestant.prepare()
            start = time.perf_counter()
            contestant.step()
            taken.append(time.perf_counter() - start)
    return seconds


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """Return their time in units of ours, compared round by round."""
    return Spread.of([their / our for their, our in zip(theirs, ours, strict=True)])

"""How far runs of the same recipe are apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam.cli import progress
from oneadam.cli.progress import Run


class Differences(NamedTuple):
    """The largest differences between two runs, or among several."""

    losses: float
    """Of any epoch, relative to the loss."""
    weights: float
    """After the last one, relative to the largest of the same array."""
    averages: float
    """Of the weights, in the same way."""


def between(run: Run, other: Run) -> Differences:
    """Return the largest differences of a run from the first."""
    losses = (
        abs(theirs.loss - ours.loss) / ours.loss
        for ours, theirs in zip(run.history, other.history, strict=True)
    )
    return Differences(
        max(losses),
        _largest(_weights(run), _weights(other)),
        _largest(_averages(run), _averages(other)),
    )


def among(runs: Sequence[Run]) -> Differences:
    """Return the largest differences between any two runs."""
    pairs = [between(one, other) for one, other in combinations(runs, 2)]
    return Differences(*map(max, zip(*pairs, strict=True)))


Arrays = dict[str, NDArray[Any]]


def _weights(run: Run) -> Arrays:
    return _as_in_numpy(progress.part(run.tensors, "weights"))


def _averages(run: Run) -> Arrays:
    state, ending = progress.part(run.tensors, "optimizer"), "/average"
    return _as_in_numpy(
        {name.removesuffix(ending): v for name, v in state.items() if name.endswith(ending)}
    )


def _as_in_numpy(arrays: Arrays) -> Arrays:
    """Return arrays under the names, and with the axes, that NumPy's have."""
    found = {}
    for name, array in arrays.items():
        layer, kind = re.split("[/.]", name)[-2:]
        if kind == "weight":  # of PyTorch, which has outputs first
            kind, array = "kernel", array.T
        found[f"{layer}/{kind}"] = array
    return found


def _largest(arrays: Arrays, others: Arrays) -> float:
    if arrays.keys() != others.keys():
        raise ValueError(f"{sorted(arrays)} cannot be compared with {sorted(others)}")
    return max(
        float(np.abs(others[name] - array).max() / np.abs(array).max())
        for name, array in arrays.items()
    )

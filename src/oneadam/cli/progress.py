"""The file from which a run is continued: weights, optimizer, recipe and history in one.

Being one file, written atomically, it cannot hold the weights of one epoch and the optimizer
of another, whenever the process dies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam import checkpoint
from oneadam.cli.recipe import Epoch, Recipe

Tensors = dict[str, NDArray[np.generic]]

_FORMAT = "oneadam demo, version 1"


class Progress(NamedTuple):
    """A run between two epochs."""

    recipe: Recipe
    history: list[Epoch]
    tensors: Tensors
    """Weights and state of the optimizer."""


def write(path: Path, progress: Progress) -> None:
    """Replace the file at `path`, so that it is at every moment the old one or the new one."""
    history = np.array(progress.history, np.float64).reshape(-1, len(Epoch._fields))
    metadata = {"run": _FORMAT, "recipe": json.dumps(progress.recipe._asdict())}
    checkpoint.write(path, {**progress.tensors, "history": history}, metadata)


def read(path: Path) -> Progress:
    """Read what `write` wrote.

    Raises:
        ValueError: The file is damaged, or not one of a demo.
    """
    tensors, metadata = checkpoint.read(path)
    if metadata.get("run") != _FORMAT or "history" not in tensors:
        raise ValueError(f"it is not a file of {_FORMAT}")
    try:
        recipe = Recipe(**json.loads(metadata["recipe"]))
        history = [Epoch(*map(float, row)) for row in tensors.pop("history")]
        if not max(1, len(history)) <= recipe.epochs:
            raise ValueError(f"{len(history)} of {recipe.epochs} epochs")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its description of the run is damaged ({error})") from error
    return Progress(recipe, history, tensors)


def check_alike(tensors: Tensors, expected: Tensors) -> None:
    """Refuse tensors that differ from the expected ones in name, shape or dtype.

    Raises:
        ValueError: They do; the message lists which.
    """
    found, wanted = (
        {(name, value.shape, str(value.dtype)) for name, value in group.items()}
        for group in (tensors, expected)
    )
    if found != wanted:
        names = ", ".join(sorted({name for name, _, _ in found ^ wanted}))
        raise ValueError(f"it belongs to another network or optimizer; these differ: {names}")

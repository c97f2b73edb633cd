"""The file from which runs are continued: weights, optimizers, recipe and histories in one.

Being one file, written atomically, it cannot hold the weights of one epoch and the optimizer
of another, whenever the process dies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam import checkpoint
from oneadam.cli.recipe import Epoch, Recipe

Tensors = dict[str, NDArray[np.generic]]

_FORMAT = "oneadam demo, version 2"


class Run(NamedTuple):
    """One framework's run between two epochs."""

    history: list[Epoch]
    tensors: Tensors
    """Weights and state of the optimizer."""


class Progress(NamedTuple):
    """The runs of a demo."""

    recipe: Recipe
    runs: dict[str, Run]
    """By framework, in their order."""


def write(path: Path, progress: Progress) -> None:
    """Replace the file at `path`, so that it is at every moment the old one or the new one."""
    tensors = joined(
        **{
            framework: {**run.tensors, "history": _as_array(run.history)}
            for framework, run in progress.runs.items()
        }
    )
    metadata = {
        "run": _FORMAT,
        "recipe": json.dumps(progress.recipe._asdict()),
        "frameworks": json.dumps(list(progress.runs)),
    }
    checkpoint.write(path, tensors, metadata)


def read(path: Path) -> Progress:
    """Read what `write` wrote.

    Raises:
        ValueError: The file is damaged, or not one of a demo.
    """
    tensors, metadata = checkpoint.read(path)
    if metadata.get("run") != _FORMAT:
        raise ValueError(f"it is not a file of {_FORMAT}")
    try:
        recipe = Recipe(**json.loads(metadata["recipe"]))
        runs = {
            framework: _run(part(tensors, framework), recipe)
            for framework in json.loads(metadata["frameworks"])
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its description of the run is damaged ({error})") from error
    return Progress(recipe, runs)


def joined(**parts: Mapping[str, NDArray[np.generic]]) -> Tensors:
    """Return the tensors of all parts, each under its part's name and its own."""
    return {f"{part}/{name}": v for part, tensors in parts.items() for name, v in tensors.items()}


def part(tensors: Tensors, name: str) -> Tensors:
    """Return the tensors of one part, under their own names."""
    prefix = f"{name}/"
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


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


def _as_array(history: list[Epoch]) -> NDArray[np.float64]:
    return np.array(history, np.float64).reshape(-1, len(Epoch._fields))


def _run(tensors: Tensors, recipe: Recipe) -> Run:
    history = [Epoch(*map(float, row)) for row in tensors.pop("history")]
    if not max(1, len(history)) <= recipe.epochs:
        raise ValueError(f"{len(history)} of {recipe.epochs} epochs")
    return Run(history, tensors)

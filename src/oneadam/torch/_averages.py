"""Parameters that hold their moving averages, for a block or for good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from oneadam import _interrupts
from oneadam.torch._model import Model
from oneadam.torch._run import Run


def finalize(run: Run, variables: Any) -> None:
    """Set parameters, or all, to their moving averages where they have one."""
    run.check_trained()
    model = run.model()
    with _interrupts.held_back(), torch.no_grad():
        for row, average in _averages(run, model, variables).items():
            model.locals[row].copy_(average)


@contextmanager
def averaged(run: Run) -> Iterator[None]:
    """Let the parameters hold their moving averages for a block."""
    run.check_trained()
    model = run.model()
    averages = _averages(run, model, None)
    trained = {row: model.locals[row].detach().clone() for row in averages}
    try:
        run.holds_averages = True
        with torch.no_grad():
            for row, average in averages.items():
                model.locals[row].copy_(average)
        yield
    finally:
        with _interrupts.held_back(), torch.no_grad():
            for row, values in trained.items():
                model.locals[row].copy_(values)
            run.holds_averages = False


def _averages(run: Run, model: Model, variables: Any) -> dict[int, Tensor]:
    """Return the averages of parameters, or of all, by their rows in the model."""
    if variables is None:
        return model.averages_of(range(len(model.params)))
    if isinstance(variables, (str, Tensor)):
        variables = [variables]
    elif isinstance(variables, Mapping):
        variables = list(variables.values())
    every = run.parameters()
    wanted = {id(every[run.row(_unnamed(variable))]) for variable in variables}
    return model.averages_of(r for r, p in enumerate(model.params) if id(p) in wanted)


def _unnamed(variable: Any) -> Any:
    """Return the parameter of a pair of a name and a parameter."""
    return variable[1] if isinstance(variable, tuple) and len(variable) == 2 else variable

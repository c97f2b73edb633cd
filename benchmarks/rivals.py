"""Those who take steps: oneadam through a door, and what a user of torch would write instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike

import oneadam.numpy
import oneadam.torch
from benchmarks.models import Array, Model, aligned, random

_LEARNING_RATE, _DECAY, _NORM, _EMA = 1e-3, 1e-2, 1.0, 0.99

RECIPE = {
    "weight_decay": _DECAY,
    "global_clipnorm": _NORM,
    "use_ema": True,
    "ema_momentum": _EMA,
}
"""Decay, clipping by the global norm and a moving average."""


def _nothing() -> None:
    """Leave everything as it is."""


class Rival(NamedTuple):
    """What takes a step, after the first, and what has become of variables and state."""

    step: Callable[[], object]
    results: Callable[[], list[Array]]
    prepare: Callable[[], object] = _nothing
    """What has to happen before each step, and does not count."""


def oneadam_step(
    model: Model, dtype: DTypeLike = np.float32, *, door: str = "numpy", **arguments: Any
) -> Rival:
    """Return oneadam's step; its epsilon stands where torch's does.

    Args:
        model: whose variables are updated.
        dtype: of the variables and gradients, through NumPy's door; float32 through torch's.
        door: through which.
        arguments: of the optimizer.
    """
    arguments |= {"learning_rate": _LEARNING_RATE, "epsilon": 1e-8, "epsilon_hat": False}
    if door == "torch":
        return _through_torch(model, arguments)
    return _through_numpy(model, dtype, arguments)


def _through_numpy(model: Model, dtype: DTypeLike, arguments: dict[str, Any]) -> Rival:
    variables, grads = (random(model.shapes, seed, dtype) for seed in (0, 1))
    optimizer = oneadam.numpy.Adam(**arguments)
    optimizer.build(variables)

    def step() -> None:
        optimizer.apply(grads)

    def results() -> list[Array]:
        state = optimizer.state_dict()
        slots = ("momentum", "velocity", *(["average"] if arguments.get("use_ema") else []))
        return [
            *variables,
            *(state[f"{row}/{slot}"] for slot in slots for row in range(len(grads))),
        ]

    step()
    return Rival(step, results)


def _through_torch(model: Model, arguments: dict[str, Any]) -> Rival:
    parameters, prepare = _parameters(model, "torch")
    optimizer = oneadam.torch.Adam(parameters, **arguments)

    def results() -> list[Array]:
        averages = _slot(optimizer, "average") if arguments.get("use_ema") else []
        return [*_values(parameters), *_moments(optimizer), *averages]

    prepare()
    optimizer.step()
    return Rival(optimizer.step, results, prepare)


def torch_step(model: Model, *, door: str = "numpy", **arguments: Any) -> Rival:
    """Return a step of torch's AdamW, in one of its implementations.

    Args:
        model: whose parameters are updated.
        door: of oneadam, which it is compared with: it decides about memory and gradients.
        arguments: of AdamW.
    """
    parameters, prepare = _parameters(model, door)
    optimizer = torch.optim.AdamW(parameters, _LEARNING_RATE, **arguments)
    prepare()
    optimizer.step()
    _place_alike(optimizer, door)
    return Rival(optimizer.step, lambda: [*_values(parameters), *_moments(optimizer)], prepare)


def torch_recipe(model: Model, *, door: str = "numpy") -> Rival:
    """Return clipping, fused AdamW and a moving average, each in torch's fastest way."""
    parameters, prepare = _parameters(model, door)
    optimizer = torch.optim.AdamW(parameters, _LEARNING_RATE, weight_decay=_DECAY, fused=True)
    detached = [parameter.detach() for parameter in parameters]

    def clip_and_update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, _NORM, foreach=True)
        optimizer.step()

    prepare()
    clip_and_update()
    _place_alike(optimizer, door)
    averages = [aligned(value, door) for value in _values(parameters)]
    averaged = [torch.from_numpy(average) for average in averages]

    def step() -> None:
        clip_and_update()
        torch._foreach_lerp_(averaged, detached, 1.0 - _EMA)

    return Rival(step, lambda: [*_values(parameters), *_moments(optimizer), *averages], prepare)


def torch_accumulation(model: Model) -> Rival:
    """Return adding gradients up."""
    totals, grads = (random(model.shapes, seed) for seed in (0, 1))
    summed, added = ([torch.from_numpy(array) for array in arrays] for arrays in (totals, grads))
    return Rival(lambda: torch._foreach_add_(summed, added), lambda: totals)


def _parameters(model: Model, door: str) -> tuple[list[torch.Tensor], Callable[[], None]]:
    """Return parameters, and what gives them gradients.

    Beside NumPy's door the gradients are the same tensors in every step, as there. Beside torch's
    the last ones are thrown away and autograd makes new ones, as in training.
    """
    variables, grads = (random(model.shapes, seed, door=door) for seed in (0, 1))
    parameters = [torch.from_numpy(variable).requires_grad_() for variable in variables]
    sources = [torch.from_numpy(grad) for grad in grads]
    if door == "torch":
        return parameters, lambda: _differentiate(parameters, sources)
    for parameter, source in zip(parameters, sources, strict=True):
        parameter.grad = source
    return parameters, _nothing


def _differentiate(parameters: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
    torch.autograd.backward(parameters, sources)


def _values(parameters: Sequence[torch.Tensor]) -> list[Array]:
    return [parameter.detach().numpy() for parameter in parameters]


def _moments(optimizer: torch.optim.Optimizer) -> list[Array]:
    return [*_slot(optimizer, "exp_avg"), *_slot(optimizer, "exp_avg_sq")]


def _slot(optimizer: torch.optim.Optimizer, name: str) -> list[Array]:
    return [state[name].numpy() for state in optimizer.state.values()]


def _place_alike(optimizer: torch.optim.Optimizer, door: str) -> None:
    """Move torch's state to memory like that of everything else."""
    if door == "torch":
        return
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.from_numpy(aligned(state[name].numpy(), door))

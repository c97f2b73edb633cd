"""Those who take steps: oneadam, and what a user of torch would write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike

from benchmarks.models import Array, Model, aligned, random
from oneadam.numpy import Adam

_LEARNING_RATE, _DECAY, _NORM, _EMA = 1e-3, 1e-2, 1.0, 0.99


class Rival(NamedTuple):
    """What takes a step, after the first, and what has become of variables and state."""

    step: Callable[[], object]
    results: Callable[[], list[Array]]


def oneadam_step(model: Model, dtype: DTypeLike = np.float32, **arguments: Any) -> Rival:
    """Return oneadam's step; its epsilon stands where torch's does."""
    variables, grads = _values(model, dtype)
    optimizer = Adam(_LEARNING_RATE, epsilon=1e-8, epsilon_hat=False, **arguments)
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


def oneadam_recipe(model: Model) -> Rival:
    """Return oneadam's step with decay, clipping by the global norm and a moving average."""
    return oneadam_step(
        model, weight_decay=_DECAY, global_clipnorm=_NORM, use_ema=True, ema_momentum=_EMA
    )


def torch_step(model: Model) -> Rival:
    """Return a step of torch's fused Adam."""
    variables, parameters = _parameters(model)
    optimizer = torch.optim.Adam(parameters, _LEARNING_RATE, fused=True)
    optimizer.step()
    _place_alike(optimizer)
    return Rival(optimizer.step, lambda: [*variables, *_moments(optimizer)])


def torch_recipe(model: Model) -> Rival:
    """Return clipping, fused AdamW and a moving average, each in torch's fastest way."""
    variables, parameters = _parameters(model)
    optimizer = torch.optim.AdamW(parameters, _LEARNING_RATE, weight_decay=_DECAY, fused=True)
    detached = [parameter.detach() for parameter in parameters]

    def clip_and_update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, _NORM, foreach=True)
        optimizer.step()

    clip_and_update()
    _place_alike(optimizer)
    averages = [aligned(variable) for variable in variables]
    averaged = [torch.from_numpy(average) for average in averages]

    def step() -> None:
        clip_and_update()
        torch._foreach_lerp_(averaged, detached, 1.0 - _EMA)

    return Rival(step, lambda: [*variables, *_moments(optimizer), *averages])


def torch_accumulation(model: Model) -> Rival:
    """Return adding gradients up."""
    totals, grads = _values(model, np.float32)
    summed, added = ([torch.from_numpy(array) for array in arrays] for arrays in (totals, grads))
    return Rival(lambda: torch._foreach_add_(summed, added), lambda: totals)


def _values(model: Model, dtype: DTypeLike) -> tuple[list[Array], list[Array]]:
    return random(model.sizes, 0, dtype), random(model.sizes, 1, dtype)


def _parameters(model: Model) -> tuple[list[Array], list[torch.Tensor]]:
    variables, grads = _values(model, np.float32)
    parameters = [torch.from_numpy(variable).requires_grad_() for variable in variables]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = torch.from_numpy(grad)
    return variables, parameters


def _moments(optimizer: torch.optim.Optimizer) -> list[Array]:
    states = optimizer.state.values()
    return [state[name].numpy() for name in ("exp_avg", "exp_avg_sq") for state in states]


def _place_alike(optimizer: torch.optim.Optimizer) -> None:
    """Move torch's state to memory like that of everything else."""
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.from_numpy(aligned(state[name].numpy()))

"""Runs an optimizer and writes down, in whole tensors, what it was given and what it made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

ENTRIES = {
    "exp_avg": "momentum",
    "exp_avg_sq": "velocity",
    "max_exp_avg_sq": "velocity_hat",
    "average": "average",
    "gradient_accumulator": "gradient_accumulator",
}
"""torch's names of state, and the definition's."""
COUNTERS = ("calls", "updates", "accumulated_calls", "skipped_calls")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the whole tensor, on every rank."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


class Recorder:
    """One optimizer and its named parameters.

    Args:
        named: the parameters by name.
        optimizer: of these parameters.
    """

    def __init__(self, named: Iterable[tuple[str, Any]], optimizer: Any) -> None:
        self.named = dict(named)
        self.optimizer = optimizer
        self.initial = self.values()
        self.gradients: list[Any] = []
        """Of each call by name, and between them what else was asked for."""

    def values(self) -> dict[str, torch.Tensor]:
        """The parameters as they are now."""
        return {name: whole(parameter) for name, parameter in self.named.items()}

    def step(self, step: Callable[[], object] | None = None) -> None:
        """Write the gradients down, take a step (default: the optimizer's), clear them."""
        self.gradients.append(
            {
                name: None if parameter.grad is None else whole(parameter.grad)
                for name, parameter in self.named.items()
            }
        )
        (step or self.optimizer.step)()
        for parameter in self.named.values():
            parameter.grad = None

    def flush(self) -> None:
        """Close the window early."""
        self.gradients.append("flush")
        self.optimizer.flush()

    def finalize(self) -> None:
        """Set the parameters to their averages."""
        self.gradients.append("finalize")
        self.optimizer.finalize_variable_values()

    def train(self, calls: Iterable[int], backward: Callable[[int], object]) -> None:
        """Take calls; `backward` fills in the gradients of each."""
        for call in calls:
            backward(call)
            self.step()

    def result(self) -> dict[str, Any]:
        """Everything, in tensors and numbers that can be saved and compared."""
        state = self.optimizer.state
        return {
            "initial": self.initial,
            "gradients": self.gradients,
            "values": self.values(),
            "state": {
                name: {
                    what: whole(state[parameter][entry])
                    for entry, what in ENTRIES.items()
                    if entry in state[parameter]
                }
                for name, parameter in self.named.items()
            },
            "steps": {n: float(state[p]["step"]) for n, p in self.named.items() if p in state},
            "counters": {what: self.optimizer.param_groups[0][what] for what in COUNTERS},
            "metrics": self.optimizer.metrics(),
            "misplaced": self.misplaced(),
            "shards": {name: local_shape(p) for name, p in self.named.items()},
        }

    def misplaced(self) -> list[str]:
        """The state that is not laid out over the ranks as its parameter is."""
        return [
            f"{name}/{entry}"
            for name, parameter in self.named.items()
            for entry in ENTRIES
            if entry in self.optimizer.state[parameter]
            and layout(self.optimizer.state[parameter][entry]) != layout(parameter)
        ]


def local_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of what this rank holds."""
    return tuple((tensor.to_local() if isinstance(tensor, DTensor) else tensor).shape)


def layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """How a tensor lies over the ranks."""
    if isinstance(tensor, DTensor):
        return DTensor, tensor.device_mesh, tuple(tensor.placements), tuple(tensor.shape)
    return torch.Tensor, tuple(tensor.shape)

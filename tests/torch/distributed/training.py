"""The models that jobs train, and where their gradients come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

FEATURES = 7


class Body(nn.Module):
    """First dimensions 5, 4 and 1: over 2 ranks and over 3 they are uneven or leave ranks empty."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(FEATURES, 5)
        self.middle = nn.Linear(5, 4)
        self.narrow = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.narrow(torch.tanh(self.middle(torch.tanh(self.wide(x))))))


class Gained(nn.Module):
    """The body, and a 0-d parameter, which cannot be sharded."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.gain


class Blocks(nn.Module):
    """What is split column-wise, row-wise, along the sequence, and not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(FEATURES, 6)
        self.down = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.out(self.norm(self.down(torch.tanh(self.up(x))))))


def made(kind: type[nn.Module], dtype: str = "float32") -> nn.Module:
    """The same model on every rank and in every world."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind().to(getattr(torch, dtype))


def line(size: int | None = None) -> DeviceMesh:
    """All ranks in a row."""
    return init_device_mesh("cpu", (dist.get_world_size() if size is None else size,))


def seeded(*numbers: int) -> torch.Generator:
    """A generator for these numbers."""
    seed = 0
    for number in numbers:
        seed = 1000 * seed + number + 1
    return torch.Generator().manual_seed(seed)


def loss_of(model: nn.Module, call: int, rank: int, dtype: str = "float32") -> torch.Tensor:
    """The loss of a rank's batch: large in every third call, which is where clipping acts."""
    x = torch.randn(6, FEATURES, generator=seeded(call, rank)).to(getattr(torch, dtype))
    size = 30.0 if call % 3 == 0 else 1.0
    return size * (model(x).float() - 0.5).square().sum()


def feed(named: Iterable[tuple[str, Any]], call: int) -> None:
    """Whole gradients that depend on nothing but the name and the call, in every layout."""
    size = 10.0 if call % 3 == 0 else 0.1
    for name, parameter in named:
        generator = seeded(call, sum(name.encode()))
        gradient = (size * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
        parameter.grad = like(gradient, parameter)


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor that every rank has, laid out as the parameter is."""
    if not isinstance(parameter, DTensor):
        return tensor
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def average_over_ranks(parameter: torch.Tensor) -> None:
    """What DDP does with a gradient, for a parameter that nothing wraps."""
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()

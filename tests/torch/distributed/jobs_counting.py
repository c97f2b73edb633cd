"""Jobs: how much a step says to the other ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from collectives import counted
from jobs_parallel import square
from jobs_sharded import shard
from subject import Adam
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from training import Blocks, Body, Gained, feed, line, made

Configs = dict[str, dict[str, Any]]


def on_a_line(configs: Configs) -> dict[str, Any]:
    """FSDP2 over all ranks."""
    return counts(shard(made(Body), line()), configs)


def partly_on_a_line(configs: Configs) -> dict[str, Any]:
    """The same beside a plain parameter."""
    model = made(Gained)
    shard(model.body, line())
    return counts(model, configs)


def with_replicas(configs: Configs) -> dict[str, Any]:
    """Sharded over one dimension of a mesh, replicated over the other."""
    shape = 2, dist.get_world_size() // 2
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    return counts(shard(made(Body), mesh), configs)


def in_a_square(configs: Configs) -> dict[str, Any]:
    """Sharded over both dimensions of a mesh."""
    mesh, model = square(), made(Blocks)
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"], plan)
    fully_shard(model, mesh=mesh["data"])
    return counts(model, configs)


def counts(model: nn.Module, configs: Configs) -> dict[str, Any]:
    """One optimizer after the other on the same model."""
    return {name: steady(model, config) for name, config in configs.items()}


def steady(model: nn.Module, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The collectives of the first calls, the very first of which makes the state."""
    named = dict(model.named_parameters())
    optimizer = Adam(named.items(), **config)
    answers = []
    for call in range(3):
        feed(named.items(), call)
        answers.append(counted(optimizer.step))
    return answers


def known() -> dict[str, Any]:
    """What `counted` says of things that are known to talk."""
    mesh = line()
    sharded = DTensor.from_local(torch.ones(3), mesh, [Shard(0)])
    group = dist.group.WORLD
    found: list[Any] = [None] * dist.get_world_size()
    actions = {
        "nothing": lambda: torch.ones(3).sum(),
        "all_reduce": lambda: dist.all_reduce(torch.ones(5)),
        "behind the back": lambda: group.allreduce([torch.ones(5)]).wait(),
        "norm of a sharded tensor": lambda: sharded.norm().full_tensor(),
        "gathering": sharded.full_tensor,
        "objects": lambda: dist.all_gather_object(found, "anything"),
    }
    return {name: counted(action) for name, action in actions.items()}

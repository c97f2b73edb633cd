"""Jobs: tensor-parallel placements, alone and together with FSDP2."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from recording import Recorder
from subject import Adam
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from training import Blocks, line, loss_of, made


def tensor_parallel(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """Column- and row-wise; the rest are plain parameters."""
    model = made(Blocks)
    parallelize_module(model, line(), {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return trained(model, config, calls, batch=0)


def sequence_parallel(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """A normalisation that each rank sees a part of: its gradients arrive as partial sums."""
    model = made(Blocks)
    plan = {
        "up": ColwiseParallel(),
        "down": RowwiseParallel(output_layouts=Shard(0)),
        "norm": SequenceParallel(sequence_dim=0),
        "out": PrepareModuleInput(input_layouts=Shard(0), desired_input_layouts=Replicate()),
    }
    parallelize_module(model, line(), plan)
    parallelize_module(model.out, line(), ColwiseParallel(output_layouts=Replicate()))
    return trained(model, config, calls, batch=0)


def two_dimensional(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """FSDP2 over one dimension of a mesh, tensor parallelism over the other."""
    mesh = square()
    model = made(Blocks)
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"], plan)
    # The two layers that are not split live on the other dimension alone.
    fully_shard(model, mesh=mesh["data"])
    return trained(model, config, calls, batch=mesh["data"].get_local_rank())


def square() -> DeviceMesh:
    """The ranks in two rows."""
    shape = 2, dist.get_world_size() // 2
    return init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))


def trained(model: Any, config: dict[str, Any], calls: int, batch: int) -> dict[str, Any]:
    recorder = Recorder(model.named_parameters(), Adam(model.named_parameters(), **config))
    layouts: set[str] = set()

    def backward(call: int) -> None:
        loss_of(model, call, batch).backward()
        for parameter in model.parameters():
            layouts.add(str(getattr(parameter.grad, "placements", "plain")))

    recorder.train(range(calls), backward)
    return {**recorder.result(), "layouts": sorted(layouts)}

"""Jobs: FSDP2, whole and mixed with plain parameters, and hybrid with replicas."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from recording import Recorder
from subject import Adam
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from training import Body, Gained, average_over_ranks, feed, line, loss_of, made


def sharded(
    config: dict[str, Any], calls: int, dtype: str = "float32", narrow: bool = False
) -> dict[str, Any]:
    """All parameters sharded, layer by layer; `narrow` computes in bfloat16."""
    model = shard(made(Body, dtype), line(), narrow)
    return trained(model, config, calls, "bfloat16" if narrow else dtype)


def hybrid(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """Two replicas of a model, each sharded over half of the ranks."""
    shape = 2, dist.get_world_size() // 2
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    return trained(shard(made(Body), mesh), config, calls)


def mixed(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """DTensors and a plain parameter in one optimizer; one of them has no gradient at times."""
    model = made(Gained)
    shard(model.body, line())
    recorder = Recorder(model.named_parameters(), Adam(model.named_parameters(), **config))

    def backward(call: int) -> None:
        loss_of(model, call, dist.get_rank()).backward()
        average_over_ranks(model.gain)
        if call == 2:
            model.body.middle.bias.grad = None

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorder.train(range(calls), backward)
    return {**recorder.result(), "warnings": [str(warning.message) for warning in caught]}


def closed(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """The window is closed early, the averages are looked at, and then taken over for good."""
    model = shard(made(Body), line())
    recorder = Recorder(model.named_parameters(), Adam(model.named_parameters(), **config))
    recorder.train(range(calls), lambda call: feed(recorder.named.items(), call))
    recorder.flush()
    before = recorder.values()
    with recorder.optimizer.averaged():
        inside = recorder.values()
    after = recorder.values()
    recorder.finalize()
    return {**recorder.result(), "before": before, "inside": inside, "after": after}


def misplaced(config: dict[str, Any], calls: int) -> list[str]:
    """What must be noticed: state that is whole or local where its parameter is sharded."""
    model = shard(made(Body), line())
    recorder = Recorder(model.named_parameters(), Adam(model.named_parameters(), **config))
    recorder.train(range(calls), lambda call: feed(recorder.named.items(), call))
    state = recorder.optimizer.state[model.wide.weight]
    state["exp_avg"] = state["exp_avg"].to_local()
    state["average"] = state["average"].redistribute(placements=[Replicate()])
    return recorder.misplaced()


def by_rank(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """What must be told from the real thing: each rank clips by the norm of its own part."""
    model = shard(made(Body), line())
    own = {name: nn.Parameter(p.to_local().detach()) for name, p in model.named_parameters()}
    optimizer = Adam(own.items(), **config)
    recorder = Recorder(model.named_parameters(), optimizer)

    def step() -> None:
        for name, parameter in model.named_parameters():
            own[name].grad = parameter.grad.to_local()
        optimizer.step()

    for call in range(calls):
        loss_of(model, call, dist.get_rank()).backward()
        recorder.step(step)
    state = {p: of_parts(p, optimizer.state[own[name]]) for name, p in model.named_parameters()}
    recorder.optimizer = SimpleNamespace(
        state=state, param_groups=optimizer.param_groups, metrics=dict
    )
    return recorder.result()


def of_parts(whole: DTensor, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a tensor whose parts have been updated each by itself."""
    mesh, placements, shape = whole.device_mesh, whole.placements, whole.shape
    return {
        key: value
        if value.dim() == 0
        else DTensor.from_local(value, mesh, placements, shape=shape, stride=whole.stride())
        for key, value in state.items()
    }


def shard(model: nn.Module, mesh: DeviceMesh, narrow: bool = False) -> nn.Module:
    """Shard a model as torch's guide does: its layers, then what is left."""
    policy = MixedPrecisionPolicy()
    if narrow:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in list(model.children()):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def trained(
    model: nn.Module, config: dict[str, Any], calls: int, dtype: str = "float32"
) -> dict[str, Any]:
    """Train with a real backward pass, each rank on its own batch."""
    recorder = Recorder(model.named_parameters(), Adam(model.named_parameters(), **config))
    recorder.train(
        range(calls), lambda call: loss_of(model, call, dist.get_rank(), dtype).backward()
    )
    return recorder.result()

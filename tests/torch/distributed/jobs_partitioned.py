"""Jobs: plain parameters that are divided among the ranks, by torch and by hand."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from collectives import counted
from recording import COUNTERS, ENTRIES, Recorder
from subject import Adam
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from training import Body, feed, loss_of, made


def redundancy_free(
    config: dict[str, Any], calls: int, resumed_at: int | None = None
) -> dict[str, Any]:
    """`ZeroRedundancyOptimizer` under DDP.

    Args:
        config: of the optimizer; the learning rate goes through the wrapper.
        calls: how many.
        resumed_at: consolidate and load into a new wrapper before this call.
    """
    model = made(Body)
    parallel = DistributedDataParallel(model)
    wrapped = wrapping(model, config)
    recorder = Recorder(model.named_parameters(), wrapped)
    for call in range(calls):
        if call == resumed_at:
            consolidated = consolidate(wrapped)
            wrapped = recorder.optimizer = wrapping(model, config)
            wrapped.load_state_dict(consolidated)
        loss_of(parallel, call, dist.get_rank()).backward()
        recorder.step()
    return {**with_state(recorder, model, consolidate(wrapped)), "own": len(owned(wrapped))}


def wrapping(model: Any, config: dict[str, Any]) -> Any:
    """What concerns the whole model goes into the partial, so that it is in no group."""
    rest = {key: value for key, value in config.items() if key != "learning_rate"}
    made_by = functools.partial(Adam, process_group=dist.group.WORLD, **rest)
    return ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=made_by, lr=config["learning_rate"]
    )


def owned(wrapped: Any) -> list[Any]:
    """The parameters that this rank updates."""
    return [p for group in wrapped.optim.param_groups for p in group["params"]]


def consolidate(wrapped: Any) -> dict[str, Any]:
    """The whole state on every rank."""
    answer: dict[str, Any] = {}
    for rank in range(dist.get_world_size()):
        wrapped.consolidate_state_dict(to=rank)
        if rank == dist.get_rank():
            answer = wrapped.state_dict()
    return answer


def with_state(recorder: Recorder, model: Any, consolidated: dict[str, Any]) -> dict[str, Any]:
    """The record of a wrapper, whose state is known by position."""
    state = {
        name: {what: values[entry] for entry, what in ENTRIES.items() if entry in values}
        for (name, _), values in zip(
            model.named_parameters(), consolidated["state"].values(), strict=True
        )
    }
    steps = {
        name: float(values["step"])
        for (name, _), values in zip(
            model.named_parameters(), consolidated["state"].values(), strict=True
        )
    }
    group = consolidated["param_groups"][0]
    return {
        "initial": recorder.initial,
        "gradients": recorder.gradients,
        "values": recorder.values(),
        "state": state,
        "steps": steps,
        "counters": {what: group[what] for what in COUNTERS},
        "misplaced": [],
    }


def by_hand(config: dict[str, Any], calls: int, grouped: bool = True) -> dict[str, Any]:
    """Each rank updates every n-th parameter and sends it round, as simple sharding does.

    Args:
        config: of the optimizer.
        calls: how many.
        grouped: name the process group; without it every rank clips by what it has.
    """
    model = made(Body)
    named = dict(model.named_parameters())
    rank, size = dist.get_rank(), dist.get_world_size()
    own = {name: p for i, (name, p) in enumerate(named.items()) if i % size == rank}
    group = {"process_group": dist.group.WORLD} if grouped else {}
    optimizer = Adam(own.items(), **config, **group)
    recorder = Recorder(named.items(), optimizer)
    talk = []
    for call in range(calls):
        feed(named.items(), call)
        talk.append(counted(recorder.step))
        for i, parameter in enumerate(named.values()):
            dist.broadcast(parameter.detach(), src=i % size)
            parameter.grad = None
    theirs: list[Any] = [None] * size
    dist.all_gather_object(theirs, {name: dict(optimizer.state[p]) for name, p in own.items()})
    states = {name: values for part in theirs for name, values in part.items()}
    return {
        "initial": recorder.initial,
        "gradients": recorder.gradients,
        "values": recorder.values(),
        "state": {
            name: {
                what: states[name][entry]
                for entry, what in ENTRIES.items()
                if entry in states[name]
            }
            for name in named
        },
        "steps": {name: float(states[name]["step"]) for name in named},
        "counters": {what: optimizer.param_groups[0][what] for what in COUNTERS},
        "misplaced": [],
        "collectives": talk,
    }


def without_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Only the first rank has anything; the others take part in the sums all the same."""
    own = [torch.nn.Parameter(torch.ones(4))] if dist.get_rank() == 0 else []
    optimizer = Adam([{"params": own}], process_group=dist.group.WORLD, **config)
    for parameter in own:
        parameter.grad = torch.full((4,), 3.0)
    optimizer.step()
    return {
        "values": [p.detach().clone() for p in own],
        "counters": (optimizer.calls, optimizer.updates),
    }

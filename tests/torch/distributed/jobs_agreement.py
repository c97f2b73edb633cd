"""Jobs: an infinity that one rank has and the others have not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from jobs_sharded import shard
from recording import Recorder, whole
from subject import Adam, LossScaleOptimizer
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor
from training import Body, Gained, feed, like, line, made, seeded

POISONED = "wide.weight"
BROKEN_CALLS = 2, 3


def poison(parameter: Any, rank: int) -> None:
    """Put an infinity where only one rank sees it."""
    part = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
    if dist.get_rank() == rank:
        part.view(-1)[0] = torch.inf


def bits(recorder: Recorder, *, counters: bool = True) -> list[Any]:
    """Everything that a step could change, to compare on this rank."""
    optimizer = recorder.optimizer
    parts = [*recorder.named.values()]
    for state in map(optimizer.state.get, recorder.named.values()):
        parts += [state[key] for key in sorted(state)] if state else []
    local = [p.to_local() if isinstance(p, DTensor) else p for p in parts]
    numbers = {k: optimizer.param_groups[0][k] for k in ("calls", "updates", "accumulated_calls")}
    raw = [torch.as_tensor(part).detach().clone().numpy().tobytes() for part in local]
    return [*raw, numbers] if counters else raw


def skipped(config: dict[str, Any], calls: int, mixed: bool = False) -> dict[str, Any]:
    """`on_nonfinite="skip"`: two calls in a window are broken, on the last rank and on the first.

    Returns:
        the record, and whether the broken calls left this rank as it was.
    """
    model = made(Gained if mixed else Body)
    shard(model.body if mixed else model, line())
    recorder = Recorder(model.named_parameters(), Adam(model.named_parameters(), **config))
    poisoned = recorder.named["body." * mixed + POISONED]
    untouched = []
    for call in range(calls):
        feed(recorder.named.items(), call)
        if call in BROKEN_CALLS:
            poison(poisoned, rank=dist.get_world_size() - 1 if call == 2 else 0)
        before = bits(recorder)
        recorder.step()
        if call in BROKEN_CALLS:
            untouched.append(before == bits(recorder))
    return {**recorder.result(), "untouched": untouched}


def raised(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """`on_nonfinite="raise"`; the record leaves out the call that raised."""
    model = shard(made(Body), line())
    recorder = Recorder(model.named_parameters(), Adam(model.named_parameters(), **config))
    messages, untouched = [], []
    for call in range(calls):
        feed(recorder.named.items(), call)
        if call in BROKEN_CALLS:
            poison(recorder.named[POISONED], rank=dist.get_world_size() - 1 if call == 2 else 0)
            before = bits(recorder)
            messages.append(message_of(recorder.optimizer.step))
            untouched.append(before == bits(recorder))
        else:
            recorder.step()
    return {**recorder.result(), "messages": messages, "untouched": untouched}


def message_of(action: Callable[[], object]) -> str:
    """What the error said, with its kind; empty without one."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def scaled(config: dict[str, Any], calls: int, by: str, unscale: bool = False) -> dict[str, Any]:
    """A scaler around the step; the record has the gradients as they are without the scale.

    Args:
        config: of the optimizer.
        calls: how many.
        by: "torch" for `torch.amp.GradScaler`, "ours" for `LossScaleOptimizer`.
        unscale: unscale before the step, as one does to look at gradients.
    """
    model = shard(made(Body), line())
    adam = Adam(model.named_parameters(), **config)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    optimizer = LossScaleOptimizer(adam, 1024.0, 3) if by == "ours" else adam
    recorder = Recorder(model.named_parameters(), adam)
    scaler.scale(torch.ones(()))  # as for the first loss: the scale comes into being
    scales, untouched = [], []
    for call in range(calls):
        scale = optimizer.scale if by == "ours" else scaler.get_scale()
        scales.append(float(scale))
        give_scaled(recorder, call, scales[-1])
        broken = call in BROKEN_CALLS
        if broken:
            poison(recorder.named[POISONED], rank=dist.get_world_size() - 1 if call == 2 else 0)
            del recorder.gradients[-1]
        before = bits(recorder)
        if by == "ours":
            optimizer.step()
        else:
            if unscale:
                scaler.unscale_(adam)
            scaler.step(adam)
            scaler.update()
        if broken:
            untouched.append(before == bits(recorder))
    result = {**recorder.result(), "scales": scales, "untouched": untouched}
    # Who counts the skipped calls is another matter.
    result["counters"]["skipped_calls"] = 0
    return result


def give_scaled(recorder: Recorder, call: int, scale: float) -> None:
    """Gradients of a loss times a power of two, and a record of them without it."""
    feed(recorder.named.items(), call)
    recorder.gradients.append({n: whole(p.grad) for n, p in recorder.named.items()})
    for parameter in recorder.named.values():
        parameter.grad = parameter.grad * scale


def partitioned(config: dict[str, Any], calls: int, unscale: bool) -> dict[str, Any]:
    """A `ShardedGradScaler` around plain parameters, of which each rank has its own.

    Returns:
        Of this rank: the scales, the counters after each call and whether broken calls left it as
        it was.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    own = {f"part{rank}": torch.nn.Parameter(torch.ones(3 + rank))}
    adam = Adam(own.items(), process_group=dist.group.WORLD, **config)
    recorder = Recorder(own.items(), adam)
    scaler = ShardedGradScaler("cpu", init_scale=1024.0, process_group=dist.group.WORLD)
    scaler.scale(torch.ones(()))
    answers: dict[str, list[Any]] = {"scales": [], "untouched": [], "counters": []}
    for call in range(calls):
        answers["scales"].append(scaler.get_scale())
        for parameter in own.values():
            gradient = torch.randn(parameter.shape, generator=seeded(call, rank))
            parameter.grad = like(gradient * scaler.get_scale(), parameter)
            if call in BROKEN_CALLS:
                poison(parameter, rank=size - 1 if call == 2 else 0)
        before = bits(recorder)
        if unscale:
            scaler.unscale_(adam)
        scaler.step(adam)
        if call in BROKEN_CALLS:
            answers["untouched"].append(before == bits(recorder))
        scaler.update()
        answers["counters"].append((adam.calls, adam.updates))
    return answers


def warming_up(calls: int) -> dict[str, Any]:
    """The learning rate starts at zero, and only one rank holds anything that has a gradient."""
    narrow = torch.nn.Linear(3, 1, bias=False)
    shard(narrow, line())
    optimizer = Adam(narrow.named_parameters(), lr=0.1, global_clipnorm=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch / calls)
    recorder = Recorder(narrow.named_parameters(), optimizer)
    rates = []
    for call in range(calls):
        feed(recorder.named.items(), call)
        rates.append(optimizer.param_groups[0]["lr"])
        recorder.step()
        scheduler.step()
    return {**recorder.result(), "rates": rates}

"""Jobs: DistributedDataParallel."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from collectives import counted
from recording import Recorder
from subject import Adam
from torch.nn.parallel import DistributedDataParallel
from training import Body, loss_of, made


def replicated(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """Every call is two micro-batches, the first of them without communication."""
    model = made(Body)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    recorder = Recorder(model.named_parameters(), Adam(model.named_parameters(), **config))

    def backward(call: int) -> None:
        with parallel.no_sync():
            loss_of(parallel, call, dist.get_rank()).backward()
        loss_of(parallel, call, 10 + dist.get_rank()).backward()

    recorder.train(range(calls), backward)
    result = recorder.result()
    backward(calls)
    return {**result, "collectives": counted(recorder.optimizer.step)}

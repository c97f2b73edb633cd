"""Jobs: a rank that dies or stops while the others wait for it in a step."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from jobs_agreement import bits, message_of
from jobs_checkpoint import started, state_of
from training import feed

EXIT = 17


def interrupted(
    config: dict[str, Any], calls: int, folder: str, every: int, how: str
) -> dict[str, Any]:
    """Train with a checkpoint now and then; in the last call, rank 1 does not reach the sums.

    Args:
        config: of the optimizer.
        calls: how many, the last one included.
        folder: for the checkpoints.
        every: so many calls to a checkpoint.
        how: "exits", "is killed", or "stops" until the others have given up.
    """
    model, recorder = started(config)
    optimizer = recorder.optimizer
    for call in range(calls - 1):
        feed(recorder.named.items(), call)
        recorder.step()
        if (call + 1) % every == 0:
            dcp.save(
                state_of(model, optimizer, "nested"), checkpoint_id=f"{folder}/{call + 1}/nested"
            )
    feed(recorder.named.items(), calls - 1)
    given_up = dist.FileStore(str(Path(folder) / "given up"), dist.get_world_size())
    if dist.get_rank() == 1:
        optimizer.register_step_pre_hook(lambda *_: fall_out(how, given_up))
    before = bits(recorder)
    message = message_of(optimizer.step)
    answer = {"message": message, "untouched": before == bits(recorder), "calls": optimizer.calls}
    given_up.set(str(dist.get_rank()), "yes")
    return answer


def fall_out(how: str, given_up: Any) -> None:
    if how == "exits":
        os._exit(EXIT)
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    others = [str(rank) for rank in range(dist.get_world_size()) if rank != dist.get_rank()]
    given_up.wait(others, timedelta(seconds=60))
    raise InterruptedError("stopped here until the others had given up")

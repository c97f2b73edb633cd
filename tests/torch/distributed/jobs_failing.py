"""Jobs that fail in the ways that the harness must survive; they need no optimizer."""

from __future__ import annotations

import os
import signal
import sys

import torch
import torch.distributed as dist

EXIT = 17


def blocked() -> None:
    """Wait for what never comes, on rank 1."""
    if dist.get_rank() == 1:
        signal.pause()


def broken() -> None:
    """Fail on rank 1, while the others wait for it."""
    if dist.get_rank() == 1:
        raise LookupError("rank 1 has lost its way")
    dist.barrier()


def well() -> int:
    """Count the ranks, together."""
    ones = torch.ones(1)
    dist.all_reduce(ones)
    return int(ones)


def died() -> None:
    """End without a traceback."""
    print("these were its last words", file=sys.stderr, flush=True)
    os._exit(EXIT)

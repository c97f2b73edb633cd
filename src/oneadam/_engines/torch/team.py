"""Running kernels on PyTorch's own threads.

PyTorch computes on the threads of an OpenMP library, which go on spinning for some milliseconds
after their work, in wait for more. Right after a backward pass other threads would have to compete
with them for the processor's cores; these begin at once.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from oneadam._engines import threads
from oneadam._engines.cpu.compiled import address_of

# Elements that PyTorch, too, would share among threads.
WORTHWHILE = 65_536

_is_forked = False


def _after_fork() -> None:
    # The child has none of the threads, but the library's record of them.
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def together(kernel: threads.Kernel, task: int, elements: int) -> None:
    """Call a kernel with a task on PyTorch's threads, or on our own where those cannot be had.

    Args:
        kernel: a compiled one.
        task: the address of its task.
        elements: how many there are in it.
    """
    parallel = _parallel()
    if parallel is None or _is_forked:
        threads.together(kernel, task, elements)
        return
    team = min(torch.get_num_threads(), threads.get_num_threads())
    if team == 1 or elements < WORTHWHILE:
        kernel(task)
    else:
        parallel(address_of(kernel), task, team, 0)


@cache
def _parallel() -> Any:
    """Return what calls a function of C on all threads of a team; None where it is not known.

    It is part of the interface of GNU's library, which LLVM's and Intel's have as well.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # Found in the library that PyTorch was linked with.
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel

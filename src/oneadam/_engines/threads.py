"""The threads that the CPU engine shares its work among."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Condition, Lock

from oneadam import _arguments as arguments

Kernel = Callable[..., None]
Team = Callable[[Kernel, int, int], None]
"""Runs a kernel on several threads, as `together` does."""

# Elements, for a thread to take longer over them than over waking up.
WORTHWHILE = 131_072


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity mask
        return os.cpu_count() or 1


class _Pool:
    """The worker threads, started at the first use and again after a fork."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock = Lock()
        self._executor: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self.threads - 1, "oneadam")
            return self._executor

    def close(self) -> None:
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)


_pool = _Pool(_usable_cores())


def _after_fork() -> None:
    # The child has none of the threads, and perhaps a lock that nobody will release.
    global _pool
    _pool = _Pool(_pool.threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def get_num_threads() -> int:
    """Return the number of threads that share a step on the CPU.

    Returns:
        The number set by `set_num_threads`, at first the number of usable cores.

    Example:
        >>> import oneadam
        >>> oneadam.get_num_threads() >= 1
        True
    """
    return _pool.threads


def set_num_threads(n: int) -> None:
    """Set how many threads share a step on the CPU, the calling thread included.

    Results do not depend on it, to the last bit. Through PyTorch's door the threads are PyTorch's,
    as many as both this and `torch.set_num_threads` allow.

    Args:
        n: int >= 1; the default is the number of cores that this process may use.

    Raises:
        TypeError: `n` is not an int.
        ValueError: `n` is below 1.

    Example:
        >>> import oneadam
        >>> oneadam.set_num_threads(2)
        >>> oneadam.get_num_threads()
        2
    """
    global _pool
    old, _pool = _pool, _Pool(arguments.count("n", n))
    old.close()


def together(kernel: Kernel, task: int, elements: int) -> None:
    """Call a kernel with a task on this thread and on as many others as are worth waking.

    Returns when none of them is at work any more, whatever has happened. A kernel releases the
    interpreter's lock, and shares the work among those who call it.

    Args:
        kernel: called with the address.
        task: the address of its task.
        elements: how many there are in it.
    """
    pool = _pool  # which another thread may replace at any moment
    threads = min(pool.threads, elements // WORTHWHILE)
    if threads <= 1:
        kernel(task)
        return
    changed, at_work, is_over = Condition(), 0, False

    def help_out() -> None:
        nonlocal at_work
        with changed:
            if is_over:
                return
            at_work += 1
        try:
            kernel(task)
        finally:
            with changed:
                at_work -= 1
                changed.notify_all()

    try:
        # Where the interpreter is shutting down no thread can be started: the caller does it all.
        with suppress(RuntimeError):
            for _ in range(threads - 1):
                pool.executor().submit(help_out)
        kernel(task)
    finally:
        with changed:
            is_over = True
            changed.wait_for(lambda: at_work == 0)

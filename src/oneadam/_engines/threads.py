"""The threads that the CPU engine shares its work among."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Condition, Lock
from typing import TypeVar

from oneadam import _arguments as arguments

Work = TypeVar("Work")


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

    Results do not depend on it, to the last bit.

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


def share(pieces: Sequence[Work], act: Callable[[Work], object]) -> None:
    """Call `act` once on every piece, on all threads, and return when all are done.

    `act` must release the interpreter's lock for this to be of use. The first error that it
    raises is raised here, after every thread has stopped.
    """
    pool = _pool  # which another thread may replace at any moment
    threads = min(pool.threads, len(pieces))
    if threads <= 1:
        for piece in pieces:
            act(piece)
        return
    queue = deque(pieces)
    changed, at_work = Condition(), 0

    def work() -> None:
        nonlocal at_work
        while True:
            with changed:
                if not queue:
                    return
                piece = queue.popleft()
                at_work += 1
            try:
                act(piece)
            finally:
                with changed:
                    at_work -= 1
                    changed.notify_all()

    helpers: list[Future[None]] = []
    try:
        # Where the interpreter is shutting down no thread can be started: the caller does it all.
        with suppress(RuntimeError):
            for _ in range(threads - 1):
                helpers.append(pool.executor().submit(work))
        work()
    finally:
        # Whatever has happened, nobody is at work any more when this returns.
        with changed:
            queue.clear()
            changed.wait_for(lambda: at_work == 0)
    for helper in helpers:
        helper.result()

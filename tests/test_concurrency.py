"""Threads, forks, the end of the interpreter and Ctrl-C: a step is done wholly or not at all."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import processes
import pytest
from snapshots import bits

import oneadam
from oneadam._engines import threads
from oneadam.numpy import Adam

FULL: dict[str, Any] = {
    "learning_rate": 0.1,
    "amsgrad": True,
    "weight_decay": 0.1,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
}
# Large enough for three threads.
SIZES = (2 * threads.WORTHWHILE + 3, 17, threads.WORTHWHILE)
LIMIT = 60.0


@pytest.fixture(autouse=True)
def three_threads() -> Any:
    """More threads than this machine may have cores, and a number of them that is put back."""
    before = oneadam.get_num_threads()
    oneadam.set_num_threads(3)
    yield
    oneadam.set_num_threads(before)


def started(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> tuple[list[np.ndarray], Adam]:
    rng = np.random.default_rng(seed)
    variables = [rng.normal(size=size).astype(np.float32) for size in sizes]
    optimizer = Adam(**FULL)
    optimizer.build(variables)
    return variables, optimizer


def gradients(variables: list[np.ndarray], seed: int) -> list[np.ndarray]:
    return [np.random.default_rng((seed, 1)).normal(size=v.shape).astype(np.float32)
            for v in variables]  # fmt: skip


def trained(seed: int, calls: int = 6, sizes: tuple[int, ...] = SIZES) -> tuple[Any, ...]:
    """The bits of a run by itself."""
    variables, optimizer = started(seed, sizes)
    for call in range(calls):
        optimizer.apply(gradients(variables, call))
    return bits(optimizer, variables)


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """What actions return that start together, each in a thread of its own."""
    barrier = threading.Barrier(len(actions), timeout=LIMIT)

    def go(action: Callable[[], Any]) -> Any:
        barrier.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return [future.result(LIMIT) for future in [pool.submit(go, a) for a in actions]]


def test_two_threads_with_two_optimizers() -> None:
    wanted = [trained(seed) for seed in range(4)]
    found = at_once(*(lambda seed=seed: trained(seed) for seed in range(4)))
    assert found == wanted
    assert len(set(wanted)) == 4


def test_many_small_steps_in_many_threads() -> None:
    sizes = (5,) * 20
    wanted = [trained(seed, 200, sizes) for seed in range(4)]
    assert at_once(*(lambda s=seed: trained(s, 200, sizes) for seed in range(4))) == wanted


def test_the_number_of_threads_may_change_during_steps() -> None:
    wanted, done = [trained(seed, 12) for seed in range(2)], threading.Event()

    def disturb() -> int:
        changes = 0
        while not done.is_set():
            oneadam.set_num_threads(1 + changes % 4)
            changes += 1
        return changes

    def train() -> list[Any]:
        try:
            return [trained(seed, 12) for seed in range(2)]
        finally:
            done.set()

    found, changes = at_once(train, disturb)
    assert found == wanted
    assert changes > 10


class Work:
    """Pieces that a kernel takes one by one, on whatever threads it is called."""

    def __init__(self, count: int) -> None:
        self.left = list(range(count))
        self.done: list[int] = []
        self.running = 0
        self._lock = threading.Lock()

    def kernel(self, task: int) -> None:
        while self.left:
            with self._lock:
                if not self.left:
                    return
                piece = self.left.pop()
                self.running += 1
            try:
                self.act(piece)
                self.done.append(piece)
            finally:
                with self._lock:
                    self.running -= 1

    def act(self, piece: int) -> None:
        threading.Event().wait(0.0002)

    def run(self) -> None:
        threads.together(self.kernel, 0, len(self.left) * threads.WORTHWHILE)


@pytest.mark.parametrize("then", [1, 2, 9])
def test_all_work_is_done_when_the_number_of_threads_changes_at_a_bad_moment(
    then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(50)
    monkeypatch.setattr(work, "act", lambda piece: oneadam.set_num_threads(then))
    work.run()
    assert sorted(work.done) == list(range(50))


def test_work_is_shared_if_there_is_enough_of_it() -> None:
    for elements, most in ((threads.WORTHWHILE, 1), (2 * threads.WORTHWHILE, 2), (10**9, 3)):
        together, alone = threading.Barrier(most), threading.Event()
        callers: set[int] = set()

        def kernel(
            task: int,
            together: threading.Barrier = together,
            callers: set[int] = callers,
        ) -> None:
            callers.add(threading.get_ident())
            together.wait(LIMIT)

        threads.together(kernel, 0, elements)
        alone.wait(0.01)  # for one more to come, if it does
        assert len(callers) == most


def test_an_error_of_the_caller_is_raised_when_the_other_threads_have_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    oneadam.set_num_threads(2)
    caller, helping, work = threading.current_thread(), threading.Event(), Work(200)

    def act(piece: int) -> None:
        if threading.current_thread() is caller:
            helping.wait(LIMIT)
            raise KeyError(piece)
        helping.set()
        threading.Event().wait(0.0002)

    monkeypatch.setattr(work, "act", act)
    with pytest.raises(KeyError):
        work.run()
    assert work.running == 0
    assert len(work.done) == 199


class Interrupted(ThreadPoolExecutor):
    """Workers whose second task comes with a Ctrl-C for whoever has handed it in."""

    tasks = 0

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        future = super().submit(*args, **kwargs)
        self.tasks += 1
        if self.tasks % 2 == 0:
            raise KeyboardInterrupt
        return future


def test_ctrl_c_leaves_no_thread_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ThreadPoolExecutor", Interrupted)
    oneadam.set_num_threads(3)
    left, work = threading.Event(), Work(8)
    late: list[int] = []

    def act(piece: int) -> None:
        left.wait(0.05)
        if left.is_set():
            late.append(piece)

    monkeypatch.setattr(work, "act", act)
    with pytest.raises(KeyboardInterrupt):
        work.run()
    left.set()
    threading.Event().wait(0.05)
    assert work.running == 0
    assert late == [], "memory that the caller may free by now is still being used"


def test_thread_counts_are_checked() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="n must be"):
            oneadam.set_num_threads(wrong)
    for wrong in (1.0, "2", None, True):
        with pytest.raises(TypeError, match="n must be"):
            oneadam.set_num_threads(wrong)  # type: ignore[arg-type]
    assert oneadam.get_num_threads() == 3


# Forks. A child that is stuck is killed, and so never the test.


def in_a_child(action: Callable[[], Any]) -> Any:
    """What an action returns in a forked child; JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.write(writing, json.dumps(action()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    alarm = threading.Timer(LIMIT, os.kill, (child, signal.SIGKILL))
    alarm.start()
    try:
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
    finally:
        alarm.cancel()
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
    return json.loads(said)


def digest(found: tuple[Any, ...]) -> int:
    # Children inherit the parent's hash seed.
    return hash(found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
class TestFork:
    def test_a_step_in_the_child(self) -> None:
        wanted = trained(1)  # the parent has started its threads by now
        assert in_a_child(lambda: digest(trained(1))) == digest(wanted)

    def test_a_step_in_the_parent_after_it(self) -> None:
        wanted = trained(2)
        assert in_a_child(lambda: 7) == 7
        assert trained(2) == wanted

    def test_the_same_optimizer_goes_on_in_both(self) -> None:
        variables, optimizer = started(3)
        optimizer.apply(gradients(variables, 0))

        def go_on() -> int:
            for call in range(1, 6):
                optimizer.apply(gradients(variables, call))
            return digest(bits(optimizer, variables))

        child = in_a_child(go_on)
        assert child == go_on() == digest(trained(3))

    def test_a_grandchild(self) -> None:
        wanted = digest(trained(4))
        assert in_a_child(lambda: in_a_child(lambda: digest(trained(4)))) == wanted

    def test_forks_while_other_threads_are_stepping(self) -> None:
        sizes, done = (3 * threads.WORTHWHILE,), threading.Event()
        wanted = digest(trained(5, 2, sizes))

        def train() -> int:
            count = 0
            while not done.is_set():
                count += digest(trained(5, 2, sizes)) == wanted
            return count

        def fork() -> list[int]:
            try:
                return [in_a_child(lambda: digest(trained(5, 2, sizes))) for _ in range(6)]
            finally:
                done.set()

        right, children = at_once(train, fork)
        assert children == [wanted] * 6
        assert right >= 1

    def test_the_child_keeps_the_number_of_threads(self) -> None:
        assert in_a_child(oneadam.get_num_threads) == 3


STEPS = """
    import atexit, sys, threading
    import numpy as np
    import oneadam
    from oneadam.numpy import Adam

    oneadam.set_num_threads(3)
    variable = np.ones(1_000_000, np.float32)
    optimizer = Adam(0.5, global_clipnorm=1.0, use_ema=True)
    optimizer.build([variable])

    def step():
        optimizer.apply([np.ones(1_000_000, np.float32)])
        print(optimizer.updates, np.unique(variable).size, flush=True)
"""


def test_a_step_when_the_interpreter_is_going_down() -> None:
    said = processes.run(
        STEPS + "    step()\n    atexit.register(step)\n    atexit.register(step)\n"
    )
    assert said.split() == ["1", "1", "2", "1", "3", "1"]


def test_the_first_step_of_all_when_the_interpreter_is_going_down() -> None:
    assert processes.run(STEPS + "    atexit.register(step)\n").split() == ["1", "1"]


def test_a_step_in_a_thread_that_outlives_the_main_one() -> None:
    code = (
        STEPS
        + """
    def later():
        threading.main_thread().join()
        step()

    step()
    threading.Thread(target=later).start()
    """
    )
    assert processes.run(code).split() == ["1", "1", "2", "1"]


def test_a_multiprocessing_worker_steps() -> None:
    code = (
        STEPS
        + """
    import multiprocessing
    import warnings
    # Python 3.12 warns of any fork of a process that has threads; that it works is the point.
    warnings.simplefilter("ignore", DeprecationWarning)

    if __name__ == "__main__":
        step()
        worker = multiprocessing.get_context("fork").Process(target=step)
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0, worker.exitcode
        step()
    """
    )
    assert processes.run(code).split() == ["1", "1", "2", "1", "2", "1"]


# Ctrl-C.


INTERRUPTED = """
    import os, random, signal, sys, threading, time
    import numpy as np
    import oneadam
    from oneadam.numpy import Adam, LossScaleOptimizer

    kind, seed = sys.argv[1], int(sys.argv[2])
    oneadam.set_num_threads(3)
    sizes = (30_000, 5, 20_001) if kind == "strided" else (300_000, 5, 250_001)

    def started():
        variables = [np.linspace(-1, 1, size, dtype=np.float32) for size in sizes]
        optimizer = Adam(0.1, weight_decay=0.1, global_clipnorm=1.0, use_ema=True,
                         gradient_accumulation_steps=2, ema_overwrite_frequency=3)
        if kind == "scaled":
            optimizer = LossScaleOptimizer(optimizer, 4.0, 3)
        if kind == "strided":
            variables = [np.repeat(v, 2)[::2] for v in variables]
        optimizer.build(variables)
        return variables, optimizer

    grads = [np.linspace(-2, 1, size, dtype=np.float32) for size in sizes]

    def whole(variables, optimizer):
        arrays = [*variables, *(a for _, a in sorted(optimizer.state_dict().items()))]
        return hash(tuple(a.tobytes() for a in arrays))

    def plain_run(calls):
        variables, optimizer = started()
        found = [whole(variables, optimizer)]
        for _ in range(calls):
            optimizer.apply(grads)
            found.append(whole(variables, optimizer))
        return found

    wanted = plain_run(24)
    rng, stop = random.Random(seed), threading.Event()
    variables, optimizer = started()
    interrupts = inside = 0

    def interrupt():
        while not stop.is_set():
            time.sleep(rng.uniform(0.0, 0.004))
            if armed.is_set():
                armed.clear()
                signal.raise_signal(signal.SIGINT) if rng.random() < 0.5 else os.kill(
                    os.getpid(), signal.SIGINT)

    armed = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    deadline = time.monotonic() + 100
    while interrupts < 30 and time.monotonic() < deadline:
        before = optimizer.calls
        try:
            armed.set()
            while True:
                before = optimizer.calls
                optimizer.apply(grads)
                if optimizer.calls >= 20:
                    break
            while armed.is_set():
                time.sleep(0.001)
            time.sleep(0.05)
        except KeyboardInterrupt:
            interrupts += 1
            calls = optimizer.calls
            assert calls - before in (0, 1), (before, calls)
            inside += calls == before + 1
            assert whole(variables, optimizer) == wanted[calls], f"torn at call {calls}"
        if optimizer.calls >= 20:
            variables, optimizer = started()
    stop.set()
    thread.join()
    print(interrupts, inside)
"""


@pytest.mark.parametrize("kind", ["plain", "scaled", "strided"])
def test_ctrl_c_during_steps(kind: str) -> None:
    interrupts, inside = map(int, processes.run(INTERRUPTED, kind, 1).split())
    assert interrupts >= 10, "the signals did not arrive"
    # Else every signal came between two steps, and nothing was tested.
    assert inside >= 1


def test_ctrl_c_is_raised_after_the_step_that_it_falls_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, interrupts = threads.together, threading.Event()

    def together(*args: Any) -> None:
        if interrupts.is_set():
            signal.raise_signal(signal.SIGINT)
        real(*args)
        if interrupts.is_set():
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(threads, "together", together)
    variables, optimizer = started(6)
    optimizer.apply(gradients(variables, 0))
    interrupts.set()
    with pytest.raises(KeyboardInterrupt):
        optimizer.apply(gradients(variables, 1))
    interrupts.clear()
    first = optimizer.calls
    assert first in (1, 2)
    for call in range(first, 6):
        optimizer.apply(gradients(variables, call))
    assert bits(optimizer, variables) == trained(6)


def test_the_handler_of_ctrl_c_is_put_back() -> None:
    variables, optimizer = started(7)
    received: list[int] = []

    def mine(number: int, frame: Any) -> None:
        received.append(number)

    before = signal.signal(signal.SIGINT, mine)
    try:
        optimizer.apply(gradients(variables, 0))
        assert signal.getsignal(signal.SIGINT) is mine
        with pytest.raises(ValueError, match="shape"):
            optimizer.apply([g[1:] for g in gradients(variables, 0)])
        assert signal.getsignal(signal.SIGINT) is mine
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        for ignored in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGINT, ignored)
            optimizer.apply(gradients(variables, 0))
            assert signal.getsignal(signal.SIGINT) is ignored
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone() -> None:
    handler = signal.getsignal(signal.SIGINT)
    assert at_once(lambda: trained(8)) == [trained(8)]
    assert signal.getsignal(signal.SIGINT) is handler

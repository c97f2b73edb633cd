"""The threads of a step through PyTorch's door: PyTorch's own, where they can be had."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import oneadam
from oneadam._engines import threads
from oneadam._engines.torch import team
from oneadam.torch import Adam

LIMIT = 60.0
ENOUGH = 10**7
SIZES = (2 * threads.WORTHWHILE + 5, 3, 70_001)

Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

shares_threads = pytest.mark.skipif(
    sys.platform != "linux" or not torch.backends.openmp.is_available(),
    reason="PyTorch's threads are only found on Linux, where it has OpenMP",
)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    ours, theirs = oneadam.get_num_threads(), torch.get_num_threads()
    yield
    oneadam.set_num_threads(ours)
    torch.set_num_threads(theirs)


def callers(elements: int, wanted: int) -> tuple[set[int], set[str]]:
    """The threads that a kernel is called on, and the names of those that are Python's."""
    found: list[int] = []
    names: set[str] = set()
    all_there = threading.Barrier(wanted)

    def act(task: int) -> None:
        assert task == 5
        found.append(threading.get_native_id())
        names.add(threading.current_thread().name)
        all_there.wait(LIMIT)

    team.together(Kernel(act), 5, elements)
    assert len(found) == wanted
    return set(found), {name for name in names if name.startswith("oneadam")}


def trained(seed: int = 0) -> list[Any]:
    """The bits of a short run."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(size, generator=generator).requires_grad_() for size in SIZES]
    optimizer = Adam(params, weight_decay=0.1, global_clipnorm=1.0, use_ema=True, amsgrad=True)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    state = [value for own in optimizer.state.values() for value in own.values()]
    return [tensor.detach().numpy().tobytes() for tensor in (*params, *state)]


@shares_threads
@pytest.mark.parametrize(("ours", "theirs"), [(2, 2), (3, 2), (2, 3), (1, 2), (2, 1)])
def test_the_threads_are_pytorchs_as_many_as_both_allow(ours: int, theirs: int) -> None:
    oneadam.set_num_threads(ours)
    torch.set_num_threads(theirs)
    found, own = callers(ENOUGH, min(ours, theirs))
    assert len(found) == min(ours, theirs)
    assert threading.get_native_id() in found
    assert not own


@shares_threads
def test_the_same_threads_come_again() -> None:
    oneadam.set_num_threads(2)
    torch.set_num_threads(2)
    first, _ = callers(ENOUGH, 2)
    torch.randn(10**6).add_(1.0)
    assert callers(ENOUGH, 2)[0] == first


def test_little_work_is_done_by_the_caller() -> None:
    oneadam.set_num_threads(2)
    torch.set_num_threads(2)
    assert callers(1000, 1)[0] == {threading.get_native_id()}


def test_elsewhere_the_threads_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_parallel", lambda: None)
    oneadam.set_num_threads(2)
    assert callers(ENOUGH, 2)[1]


def test_results_do_not_depend_on_whose_threads_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    oneadam.set_num_threads(1)
    wanted = trained()
    for number in (2, 3):
        oneadam.set_num_threads(number)
        torch.set_num_threads(number)
        assert trained() == wanted
    monkeypatch.setattr(team, "_parallel", lambda: None)
    assert trained() == wanted


def test_other_threads_than_the_main_one_may_train() -> None:
    wanted = [trained(seed) for seed in range(3)]
    found: dict[int, Any] = {}
    trainers = [
        threading.Thread(target=lambda seed=seed: found.update({seed: trained(seed)}))
        for seed in range(3)
    ]
    for trainer in trainers:
        trainer.start()
    for trainer in trainers:
        trainer.join(LIMIT)
    assert [found[seed] for seed in range(3)] == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_threads_that_it_has_not() -> None:
    oneadam.set_num_threads(2)
    torch.set_num_threads(2)
    # PyTorch itself would wait for ever where it shares work in the child: all is made before.
    param = torch.zeros(SIZES[0]).requires_grad_()
    param.grad = torch.linspace(-1.0, 1.0, SIZES[0])
    optimizer = Adam([param])
    optimizer.step()

    def step() -> bytes:
        optimizer.step()
        return param.detach().numpy().tobytes()

    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(step()))
    child.start()
    try:
        found = queue.get(timeout=LIMIT)
    finally:
        child.kill()
        child.join()
    assert found == step()

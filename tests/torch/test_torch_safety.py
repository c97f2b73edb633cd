"""Ctrl-C, threads, forks, default devices and memory."""

from __future__ import annotations

import gc
import os
import signal
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from beside import alike, array_of, give, parameters, same, snapshot, train
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from oneadam.torch import Adam, LossScaleOptimizer

EVERYTHING: dict[str, Any] = {
    "amsgrad": True, "weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True,
    "ema_overwrite_frequency": 2, "loss_scale_factor": 8.0, "gradient_accumulation_steps": 2,
    "on_nonfinite": "skip",
}  # fmt: skip


def trained(seed: int, calls: int = 10) -> dict[str, Any]:
    params = parameters((300,), (20, 30), (), seed=seed)
    optimizer = Adam(params, lr=0.1, **EVERYTHING)
    train(optimizer, params, range(calls))
    return snapshot(optimizer)


def test_many_optimizers_in_many_threads() -> None:
    wanted = [trained(seed) for seed in range(4)]
    barrier = threading.Barrier(4)

    def go(seed: int) -> dict[str, Any]:
        barrier.wait()
        return trained(seed)

    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(go, range(4)), wanted, strict=True):
            same(found, one)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_step_in_a_forked_child_and_in_its_parent() -> None:
    # Torch's own threads do not outlive a fork: what the child computes, only a step computes.
    params = parameters((100_000,))
    optimizer = Adam(params, lr=0.1)
    train(optimizer, params, range(2))
    wanted_params = alike(params)
    wanted = Adam(wanted_params)
    wanted.load_state_dict(optimizer.state_dict())
    train(wanted, wanted_params, [2])
    result = array_of(wanted_params[0])
    give(params, 2)
    found = params[0].detach().numpy()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            optimizer.step()
            status = int((found != result).any())
        finally:
            os._exit(status)
    optimizer.step()
    assert os.waitpid(child, 0)[1] == 0
    assert (found == result).all()


class Batches(Dataset[Tensor]):
    """Data that workers load."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((3,), float(index))


def test_steps_between_batches_of_workers() -> None:
    params = parameters((3,))
    others = alike(params)
    optimizer, other = Adam(params), Adam(others)
    for workers, which, own in ((2, optimizer, params), (0, other, others)):
        for batch in DataLoader(Batches(), batch_size=2, num_workers=workers):
            which.zero_grad()
            ((own[0] * batch) ** 2).sum().backward()
            which.step()
    assert torch.equal(params[0], others[0])


@pytest.mark.parametrize("wrap", [lambda inner: inner, LossScaleOptimizer], ids=["plain", "scaled"])
def test_ctrl_c_in_a_step_waits_until_it_is_done(
    wrap: Callable[[Adam], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = parameters((3,), (4,))
    others = alike(params)
    optimizer, other = wrap(Adam(params, use_ema=True)), wrap(Adam(others, use_ema=True))
    train(optimizer, params, range(2))
    train(other, others, range(3))
    give(params, 2)
    model = type(getattr(optimizer, "inner_optimizer", optimizer)._run.model())
    real = model.update
    sent = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        sent.append(True)
        return real(*args, **kwargs)

    monkeypatch.setattr(model, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert sent
    same(snapshot(optimizer), snapshot(other))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def _elsewhere() -> Iterator[None]:
    """Another default device than the parameters', as scripts for GPUs set it."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("_elsewhere")
def test_the_default_device_does_not_matter(tmp_path: Any) -> None:
    with torch.device("cpu"):
        params = parameters((3,))
        others = alike(params)
        give(params, 0)
        give(others, 0)
    optimizer, other = Adam(params, **EVERYTHING), Adam(others, **EVERYTHING)
    for _ in range(3):
        optimizer.step()
    optimizer.flush()
    with optimizer.averaged():
        pass
    optimizer.save(tmp_path / "file")
    optimizer.load(tmp_path / "file")
    other.load_state_dict(optimizer.state_dict())
    optimizer.step()
    other.step()
    devices = {value.device.type for value in other.state[others[0]].values()}
    assert devices == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(dtype: torch.dtype) -> None:
    params = parameters((3,))
    wanted = snapshot_after(params)
    torch.set_default_dtype(dtype)
    try:
        found = snapshot_after(parameters_like(params))
    finally:
        torch.set_default_dtype(torch.float32)
    same(found, wanted)


def parameters_like(params: list[Parameter]) -> list[Parameter]:
    source = torch.Generator().manual_seed(1000)
    return [Parameter(torch.randn(p.shape, generator=source, dtype=torch.float32)) for p in params]


def snapshot_after(params: list[Parameter]) -> dict[str, Any]:
    optimizer = Adam(params, **EVERYTHING)
    for call in range(5):
        params[0].grad = torch.full((3,), 0.1 * (call + 1), dtype=torch.float32)
        optimizer.step()
    return snapshot(optimizer)


class Allocations(TorchDispatchMode):
    """The largest tensor that any operation of torch has returned."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not any(result is a for a in args):
            self.largest = max(self.largest, result.nbytes)
        return result


def held(action: Callable[[], Any]) -> int:
    """The most memory that an action allocated at once, of Python, NumPy or in one tensor."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with Allocations() as mode:
            action()
        return max(mode.largest, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


SIZE = 400_000


class TestMemory:
    """A step takes no memory that grows with the model."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
    @pytest.mark.parametrize(
        "config", [{}, {"clipnorm": 1.0}, EVERYTHING], ids=["bare", "clip", "all"]
    )
    def test_of_a_step(self, config: dict[str, Any], dtype: torch.dtype, last: bool) -> None:
        kind = torch.channels_last if last else torch.contiguous_format
        shape = (SIZE // 400, 4, 10, 10)
        params = [Parameter(torch.full(shape, 0.5, dtype=dtype).to(memory_format=kind))]
        optimizer = Adam(params, **config)
        params[0].grad = torch.full_like(params[0], 0.5)
        optimizer.step()
        optimizer.step()

        def steps() -> None:
            for _ in range(3):
                optimizer.step()

        assert held(steps) < SIZE // 5

    @pytest.mark.parametrize(
        "hungry",
        [lambda: torch.zeros(SIZE), lambda: bytearray(4 * SIZE), lambda: torch.ones(SIZE).mul(2)],
    )
    def test_is_measured(self, hungry: Callable[[], Any]) -> None:
        assert held(hungry) > SIZE

    def test_is_given_back(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params)
        train(optimizer, params, range(2))
        state = weakref.ref(optimizer.state[params[0]]["exp_avg"])
        param = weakref.ref(params[0])
        del optimizer, params
        gc.collect()
        assert state() is None
        assert param() is None

    def test_of_what_was_exchanged_is_given_back(self) -> None:
        params = parameters((3,), (2,))
        optimizer = Adam(params)
        train(optimizer, params, range(2))
        old = weakref.ref(params[0])
        del optimizer.state[params[0]]
        params[0] = parameters((4,))[0]
        optimizer.param_groups[0]["params"][0] = params[0]
        train(optimizer, params, range(2))
        gc.collect()
        assert old() is None

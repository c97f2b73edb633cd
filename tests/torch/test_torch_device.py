"""Tensors of a device without an engine of its own: nothing in a step waits for the device.

Host memory stands in for a device here, and whatever would make the host wait for one fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from oneadam.torch import Adam  # noqa: E402

EVERYTHING: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.01,
    "use_ema": True,
    "maximize": True,
    "loss_scale_factor": 8.0,
}
WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.equal)


class WaitedError(AssertionError):
    """Somebody has asked for a value that is on the device."""


class Impatient(TorchDispatchMode):
    """Fails where a value is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in WAITING:
            raise WaitedError(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def impatient() -> Iterator[None]:
    """Let nobody wait for the device in a block."""

    def refuse(tensor: Any) -> Any:
        raise WaitedError("values were fetched")

    with pytest.MonkeyPatch.context() as patch, Impatient():
        for name in ("numpy", "tolist", "cpu"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


@pytest.fixture(autouse=True)
def _away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneadam._engines.torch.tensors.is_host", lambda device: False)


def made(dtype: Any = None, **config: Any) -> Adam:
    """An optimizer of two parameters with gradients, after its first step."""
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((3, 4), (5,))]
    for param in params:
        param.grad = torch.full_like(param, 0.5)
    optimizer = Adam(params, **config)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "wait",
    [float, bool, lambda t: t.item(), lambda t: t.tolist(), lambda t: t.cpu(), lambda t: t.numpy()],
)
def test_waiting_is_noticed(wait: Any) -> None:
    number = torch.ones(())
    with pytest.raises(WaitedError), impatient():
        wait(number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_a_step_waits_for_nothing(clip: str, dtype: Any) -> None:
    optimizer = made(dtype, **EVERYTHING, **{clip: 1.0})
    with impatient():
        optimizer.step()
        optimizer.step()
    assert optimizer.calls == 3


def test_micro_steps_wait_for_nothing() -> None:
    optimizer = made(gradient_accumulation_steps=2, global_clipnorm=1.0)
    with impatient():
        for _ in range(3):
            optimizer.step()
    assert (optimizer.calls, optimizer.updates) == (4, 2)


def test_a_learning_rate_on_the_device_stays_there_and_counts() -> None:
    rate = torch.full((), 0.1)
    optimizer, same = made(lr=rate, weight_decay=0.1), made(lr=0.1, weight_decay=0.1)
    for number in (0.1, 0.2, 0.4):
        rate.fill_(number)
        same.learning_rate = number
        with impatient():
            optimizer.step()
        same.step()
    for one, other in zip(parameters(optimizer), parameters(same), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0)


def parameters(optimizer: Adam) -> list[Any]:
    """The parameters of an optimizer."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def test_a_scaler_is_obeyed_without_waiting() -> None:
    optimizer, same = (
        made(global_clipnorm=1.0, use_ema=True),
        made(global_clipnorm=1.0, use_ema=True),
    )
    for found in (0.0, 1.0, 0.0):
        optimizer.grad_scale = torch.full((), 4.0)
        optimizer.found_inf = torch.full((), found)
        for param in parameters(optimizer):
            param.grad = torch.full_like(param, float("inf") if found else 2.0)
        with impatient():
            optimizer.step()
        if not found:
            same.step()
    assert (optimizer.calls, optimizer.updates, optimizer.metrics()["skipped_calls"]) == (3, 3, 1)
    assert optimizer.state_dict()["param_groups"][0]["calls"] == 3
    for one, other in zip(parameters(optimizer), parameters(same), strict=True):
        assert torch.equal(one, other)
        for key, value in same.state[other].items():
            assert torch.equal(optimizer.state[one][key], value), key


@pytest.mark.parametrize("steps", [None, 2])
def test_a_skipped_call_changes_nothing_but_its_counter(steps: int | None) -> None:
    optimizer = made(on_nonfinite="skip", gradient_accumulation_steps=steps, use_ema=True)
    before = [param.clone() for param in parameters(optimizer)]
    parameters(optimizer)[1].grad[2] = float("nan")
    optimizer.step()
    assert (optimizer.calls, optimizer.metrics()["skipped_calls"]) == (1, 1)
    assert all(map(torch.equal, before, parameters(optimizer)))


def test_skipping_is_left_to_the_device() -> None:
    optimizer = made(on_nonfinite="skip")
    with impatient():
        optimizer.step()
    assert optimizer.calls == 2

"""Compiled models and compiled training steps come to the same numbers."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from beside import same, snapshot
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from oneadam.schedules import ExponentialDecay
from oneadam.torch import Adam, LossScaleOptimizer

CONFIGS: dict[str, dict[str, Any]] = {
    "bare": {},
    "all": {
        "amsgrad": True, "weight_decay": 0.1, "global_clipnorm": 0.5, "use_ema": True,
        "ema_overwrite_frequency": 3, "gradient_accumulation_steps": 2,
    },
    "schedule": {"learning_rate": ExponentialDecay(0.1, 2, 0.5), "on_nonfinite": "raise"},
}  # fmt: skip
BACKENDS = ["eager", "aot_eager"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """What one test has compiled is no concern of the next; what the compiler warns of, neither."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def inputs(call: int) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(call))


def training_step(network: nn.Module, optimizer: Any, batch: Tensor) -> Tensor:
    """Everything that a training loop has inside."""
    optimizer.zero_grad()
    loss = (network(batch) ** 2).sum()
    optimizer.scale_loss(loss).backward()
    optimizer.step()
    return loss.detach()


def plain(params: Any, **config: Any) -> Any:
    return Adam(params, **config)


def scaled(params: Any, **config: Any) -> Any:
    return LossScaleOptimizer(Adam(params, **config), initial_scale=8.0)


def both(make: Callable[..., Any], config: dict[str, Any]) -> list[tuple[nn.Module, Any]]:
    one = model()
    other = copy.deepcopy(one)
    return [(m, make(m.parameters(), **config)) for m in (one, other)]


@pytest.mark.parametrize(
    ("make", "backend"), [(plain, "eager"), (plain, "aot_eager"), (scaled, "eager")]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_compiled_training_step(name: str, make: Callable[..., Any], backend: str) -> None:
    (compiled, one), (network, other) = both(make, CONFIGS[name])
    step = torch.compile(training_step, backend=backend)
    for call in range(7):
        torch.testing.assert_close(
            step(compiled, one, inputs(call)), training_step(network, other, inputs(call))
        )
    same(snapshot(one), snapshot(other))
    assert one.calls == 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_step_alone(backend: str) -> None:
    (compiled, one), (network, other) = both(plain, {"clipnorm": 0.5})
    step = torch.compile(lambda: one.step(), backend=backend)
    for call in range(5):
        for which, take in ((compiled, step), (network, other.step)):
            which.zero_grad()
            (which(inputs(call)) ** 2).sum().backward()
            take()
    same(snapshot(one), snapshot(other))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_learning_rate_changed_between_compiled_steps(backend: str) -> None:
    (compiled, one), (network, other) = both(plain, {})
    step = torch.compile(training_step, backend=backend)
    schedulers = [OneCycleLR(o, 0.1, total_steps=12) for o in (one, other)]
    for call in range(10):
        step(compiled, one, inputs(call))
        training_step(network, other, inputs(call))
        for scheduler in schedulers:
            scheduler.step()
        if call == 8:
            one.learning_rate = other.learning_rate = 0.5
    same(snapshot(one), snapshot(other))


def test_a_compiled_model() -> None:
    (compiled, one), (network, other) = both(plain, CONFIGS["all"])
    fast = torch.compile(compiled, backend="aot_eager")
    for call in range(5):
        training_step(fast, one, inputs(call))
        training_step(network, other, inputs(call))
    same(snapshot(one), snapshot(other))


def test_an_optimizer_of_a_compiled_models_parameters() -> None:
    network = model()
    fast = torch.compile(network, backend="eager")
    optimizer = Adam(fast.named_parameters(), lr=0.1)
    before = copy.deepcopy(network.state_dict())
    training_step(fast, optimizer, inputs(0))
    for name, value in network.state_dict().items():
        assert not torch.equal(value, before[name])


def test_extras_inside_of_compiled_code() -> None:
    (compiled, one), (network, other) = both(plain, {**CONFIGS["all"], "weight_decay": 0.2})

    def step(which: nn.Module, optimizer: Any, batch: Tensor) -> Tensor:
        training_step(which, optimizer, batch)
        optimizer.flush()
        with optimizer.averaged():
            held: Tensor = which(batch).sum()
        optimizer.finalize_variable_values()
        return held.detach()

    fast = torch.compile(step, backend="eager")
    for call in range(3):
        torch.testing.assert_close(
            fast(compiled, one, inputs(call)), step(network, other, inputs(call))
        )
    same(snapshot(one), snapshot(other))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_with_inductor() -> None:
    (compiled, one), (network, other) = both(plain, {"weight_decay": 0.1})
    step = torch.compile(training_step, backend="inductor")
    for call in range(3):
        step(compiled, one, inputs(call))
        training_step(network, other, inputs(call))
    for p, q in zip(compiled.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(p, q)  # the gradients are inductor's
    assert one.updates == 3


def test_other_numbers_are_noticed() -> None:
    (compiled, one), (network, other) = both(plain, {})
    other.learning_rate = 0.002
    step = torch.compile(training_step, backend="eager")
    step(compiled, one, inputs(0))
    training_step(network, other, inputs(0))
    with pytest.raises(AssertionError, match="differ"):
        same(snapshot(one), snapshot(other))

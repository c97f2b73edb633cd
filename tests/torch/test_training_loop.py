"""A training loop with nothing around it, beside the NumPy door on the same gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import trainers
from tolerances import spacing
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import oneadam.numpy
from oneadam.torch import Adam, LossScaleOptimizer

RECIPE = {
    "weight_decay": 0.02,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.98,
    "gradient_accumulation_steps": 2,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with trainers.one_thread():
        yield


def learning_rate(call: int) -> float:
    """Rise for 20 calls and then fall, as a function of the finished calls."""
    return 0.01 * min((call + 1) / 20, 20 / (call + 1)) ** 0.5


def train(
    network: nn.Module, optimizer: Any, data: trainers.Data, epochs: int, *beside: Any
) -> list[float]:
    """Train, handing the gradients to other optimizers beside; return the loss of each epoch."""
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(data.training, batch_size=32, shuffle=True, generator=order)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(network(images), labels)
            optimizer.scale_loss(loss).backward()
            for other in beside:
                other.apply([p.grad.numpy() for p in network.parameters()])
            optimizer.step()
            total += float(loss.detach())
        losses.append(total / len(loader))
    optimizer.flush()
    for other in beside:
        other.flush()
    return losses


def make(network: nn.Module, **options: Any) -> Adam:
    optimizer = Adam(
        network.named_parameters(), **({"learning_rate": learning_rate} | RECIPE | options)
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def make_numpy(network: nn.Module, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The same optimizer of the NumPy door, on copies of the parameters."""
    copies = {name: p.detach().numpy().copy() for name, p in network.named_parameters()}
    optimizer = oneadam.numpy.Adam(**({"learning_rate": learning_rate} | RECIPE | options))
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(copies)
    return optimizer, copies


def spacings(network: nn.Module, copies: dict[str, Any]) -> float:
    """How far the parameters are from the copies, in spacings of float32, at the most."""
    return max(
        float(np.max(np.abs(p.detach().numpy() - c) / spacing(np.abs(c).max(), "float32")))
        for p, c in zip(network.parameters(), copies.values(), strict=True)
    )


def test_the_full_recipe_learns_the_digits_and_ends_with_the_averages() -> None:
    network, data = trainers.network(hidden=32), trainers.data()
    optimizer = make(network)
    assert trainers.accuracy(network, data.held_out) < 0.3
    losses = train(network, optimizer, data, 12)
    assert losses[-1] < losses[0] / 5
    trained = trainers.values(network)
    with optimizer.averaged():
        inside = trainers.values(network)
    optimizer.finalize_variable_values()
    assert trainers.accuracy(network, data.held_out) > 0.95
    assert trainers.differing(trainers.values(network), inside) == []
    assert trainers.differing(trainers.values(network), trained) != []


def test_the_numpy_door_comes_to_the_same_from_the_same_gradients() -> None:
    network = trainers.network(hidden=32)
    optimizer = make(network)
    beside, copies = make_numpy(network)
    train(network, optimizer, trainers.data(), 2, beside)
    assert optimizer.calls == beside.calls == 2 * 45
    assert optimizer.updates == beside.updates == 45
    assert spacings(network, copies) <= 64
    theirs, ours = beside.metrics(), optimizer.metrics()
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, rel=1e-6)
    optimizer.finalize_variable_values()
    before = spacings(network, copies)
    beside.finalize_variable_values()
    assert spacings(network, copies) <= 64 < before


@pytest.mark.parametrize("other", [{"weight_decay": 0.021}, {"gradient_accumulation_steps": 4}])
def test_another_recipe_comes_to_something_else(other: dict[str, Any]) -> None:
    network = trainers.network(hidden=32)
    optimizer = make(network)
    beside, copies = make_numpy(network, **other)
    train(network, optimizer, trainers.data(), 1, beside)
    assert spacings(network, copies) > 64


def test_a_checkpoint_of_either_door_goes_on_in_the_other(tmp_path: Any) -> None:
    network = trainers.network(hidden=32)
    optimizer = make(network)
    data = trainers.data(32 * 5)
    train(network, optimizer, data, 1)
    optimizer.save(tmp_path / "adam.safetensors")

    beside, copies = make_numpy(network)
    beside.load(tmp_path / "adam.safetensors")
    assert (beside.calls, beside.updates) == (5, 3)
    train(network, optimizer, data, 2, beside)
    assert spacings(network, copies) <= 64
    fresh, others = make_numpy(network)
    train(network, optimizer, data, 1, fresh)
    assert spacings(network, others) > 64


def test_the_dynamic_loss_scale_changes_nothing_and_skips_an_overflow() -> None:
    plain, scaled = trainers.network(hidden=32), trainers.network(hidden=32)
    data = trainers.data(32 * 9)
    train(plain, make(plain), data, 2)
    optimizer = LossScaleOptimizer(make(scaled), initial_scale=2.0**10)
    initial = trainers.values(scaled)
    optimizer.scale_loss(scaled(data.training.tensors[0]).sum() * float("inf")).backward()
    optimizer.step()
    assert optimizer.metrics()["skipped_calls"] == 1
    assert optimizer.scale == 2.0**9
    assert trainers.differing(trainers.values(scaled), initial) == []
    train(scaled, optimizer, data, 2)
    # Powers of two are taken off again without rounding.
    assert trainers.far(trainers.values(plain), trainers.values(scaled)) == []
    assert trainers.far(trainers.values(plain), initial) != []

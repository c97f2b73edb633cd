"""Pickling and copying optimizers, alone and with their models, at any moment."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import EVERYTHING, parameters, parameters_of, same, snapshot, train
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from oneadam.schedules import ExponentialDecay
from oneadam.torch import Adam, LossScaleOptimizer


def rate() -> float:
    """A learning rate without arguments."""
    return 0.05


def rate_of(call: int) -> float:
    """A learning rate by calls."""
    return 0.05 / (1 + call)


def through_a_file(optimizer: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "pickle 2": lambda optimizer: pickle.loads(pickle.dumps(optimizer, protocol=2)),
    "deepcopy": copy.deepcopy,
    "torch.save": through_a_file,
}
RATES: dict[str, Any] = {
    "number": 0.05,
    "tensor": torch.tensor(0.05),
    "schedule": ExponentialDecay(0.05, 3, 0.5),
    "of calls": rate_of,
    "callable": rate,
}


def plain(params: Any, **config: Any) -> Any:
    return Adam(params, **config)


def scaled(params: Any, **config: Any) -> Any:
    return LossScaleOptimizer(Adam(params, **config), initial_scale=4.0, dynamic_growth_steps=3)


@pytest.mark.parametrize("make", [plain, scaled])
@pytest.mark.parametrize("learning_rate", RATES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("calls", [0, 1, 5])
def test_a_copy_goes_on_to_the_same_bits(
    calls: int, way: str, learning_rate: str, make: Callable[..., Any]
) -> None:
    params = parameters((3,), (2, 2))
    optimizer = make(
        [{"params": params[:1], "maximize": True}, {"params": params[1:], "note": "mine"}],
        lr=copy.deepcopy(RATES[learning_rate]),
        **EVERYTHING,
    )
    train(optimizer, params, range(calls))
    again = WAYS[way](optimizer)
    assert type(again) is type(optimizer)
    others = parameters_of(again)
    assert all(p is not q for p, q in zip(params, others, strict=True))
    before = snapshot(optimizer)
    train(again, others, range(calls, calls + 4))
    same(before, snapshot(optimizer))  # a copy shares nothing
    train(optimizer, params, range(calls, calls + 4))
    same(snapshot(optimizer), snapshot(again))
    assert again.metrics() == optimizer.metrics()
    assert again.learning_rate == optimizer.learning_rate


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_model_and_its_optimizer_stay_together(way: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = Adam(model.named_parameters(), lr=0.1, use_ema=True)
    train(optimizer, model.parameters(), range(2))
    other, again = WAYS[way]((model, optimizer))
    assert all(p is q for p, q in zip(other.parameters(), parameters_of(again), strict=True))
    train(again, other.parameters(), [2])
    assert not torch.equal(other.weight, model.weight)
    again.finalize_variable_values([other.weight])
    assert torch.equal(other.weight, again.state[other.weight]["average"])


def test_exclusions_go_along() -> None:
    model = nn.Linear(3, 2)
    optimizer = Adam(model.named_parameters(), lr=0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    before = model.weight.detach().clone(), model.bias.detach().clone()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.allclose(model.weight, before[0] * 0.95)
    assert torch.equal(model.bias, before[1])


def test_a_scheduler_goes_along() -> None:
    params = parameters((3,))
    optimizer = Adam(params)
    scheduler = OneCycleLR(optimizer, 0.1, total_steps=20)
    train(optimizer, params, range(2))
    scheduler.step()
    again, turning = copy.deepcopy((optimizer, scheduler))
    assert turning.optimizer is again
    for one, other in ((optimizer, scheduler), (again, turning)):
        for seed in range(5):
            train(one, parameters_of(one), [seed])
            other.step()
    same(snapshot(optimizer), snapshot(again))


def test_groups_can_be_added_to_a_copy() -> None:
    params = parameters((3,))
    optimizer = Adam(params, lr=0.1)
    train(optimizer, params, range(2))
    again = pickle.loads(pickle.dumps(optimizer))
    (late,) = parameters((2,), seed=3)
    again.add_param_group({"params": [late], "lr": 0.3})
    train(again, parameters_of(again), range(2))
    assert [group["lr"] for group in again.param_groups] == [0.1, 0.3]
    assert [int(again.state[p]["step"]) for p in parameters_of(again)] == [4, 2]
    with pytest.raises(ValueError, match="no use_ema of its own"):
        again.add_param_group({"params": parameters((2,)), "use_ema": True})


def test_what_cannot_be_pickled_says_so() -> None:
    optimizer = Adam(parameters((3,)), lr=lambda: 0.1)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(optimizer)


def test_no_copy_is_taken_while_the_parameters_hold_their_averages() -> None:
    params = parameters((3,))
    optimizer = Adam(params, use_ema=True)
    train(optimizer, params, range(2))
    with optimizer.averaged(), pytest.raises(RuntimeError, match="averag"):
        pickle.dumps(optimizer)
    pickle.dumps(optimizer)


def test_loading_again_and_again_keeps_nothing() -> None:
    params = parameters((3,))
    optimizer = Adam(params)
    train(optimizer, params, range(2))
    size = len(pickle.dumps(optimizer))
    for _ in range(30):
        optimizer.load_state_dict(optimizer.state_dict())
        train(optimizer, params, range(1))
    assert len(pickle.dumps(optimizer)) < 1.2 * size

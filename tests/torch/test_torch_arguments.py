"""What the optimizer is made of: spellings, numbers and callables, parameters of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from beside import alike, give, parameters, same, snapshot, train, unchanged
from torch import nn
from torch.nn import Parameter

from oneadam.torch import Adam, LossScaleOptimizer

BOTH: list[dict[str, Any]] = [
    {"learning_rate": 0.1, "lr": 0.2},
    {"learning_rate": 0.1, "lr": 0.1},
    {"learning_rate": 0.001, "lr": 0.001},
    {"epsilon": 1e-8, "eps": 1e-8},
    {"beta_1": 0.9, "betas": (0.9, 0.999)},
    {"beta_2": 0.99, "betas": (0.9, 0.999)},
]


def entries(optimizer: Adam) -> dict[str, Any]:
    group = optimizer.param_groups[0]
    return {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad")}


def test_both_spellings_make_the_same() -> None:
    params = parameters((3,))
    ours = Adam(params, learning_rate=0.1, beta_1=0.8, beta_2=0.95, epsilon=1e-3)
    theirs = Adam(alike(params), lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    for optimizer in (ours, theirs):
        train(optimizer, optimizer.param_groups[0]["params"], range(3))
    same(snapshot(ours), snapshot(theirs))
    assert entries(Adam(params, 0.1)) == entries(Adam(params, lr=0.1))
    assert entries(Adam(params)) == {
        "lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-7, "weight_decay": 0.0, "amsgrad": False,
    }  # fmt: skip


@pytest.mark.parametrize("arguments", BOTH, ids=str)
def test_both_spellings_at_once_are_refused(arguments: dict[str, Any]) -> None:
    ours, theirs = arguments
    with pytest.raises(ValueError, match=f"{ours} and {theirs} must not both be given"):
        Adam(parameters((2,)), **arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"lr": -1.0}, "learning_rate"),
        ({"lr": math.nan}, "learning_rate"),
        ({"lr": "0.1"}, "learning_rate"),
        ({"lr": True}, "learning_rate"),
        ({"lr": torch.ones(2)}, "learning_rate"),
        ({"betas": 0.9}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"betas": (0.9, 0.99, 0.999)}, "betas"),
        ({"betas": (1.0, 0.9)}, "beta_1"),
        ({"betas": (0.9, -0.1)}, "beta_2"),
        ({"betas": None}, "betas"),
        ({"eps": 0}, "epsilon"),
        ({"eps": 1e-46}, "epsilon"),
        ({"maximize": 1}, "maximize"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "clipnorm"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"capturable": True}, "capturable"),
        ({"differentiable": True}, "differentiable"),
        ({"capturable": "no"}, "capturable"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite"),
        ({"name": ""}, "name"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named) as caught:
        Adam(parameters((2,)), **arguments)
    assert "received" in str(caught.value)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="momentum"):
        Adam(parameters((2,)), momentum=0.9)  # type: ignore[call-arg]


def test_numbers_of_other_kinds_are_numbers() -> None:
    optimizer = Adam(
        parameters((2,)),
        lr=np.float64(0.1),
        betas=[torch.tensor(0.5, dtype=torch.float64), np.float32(0.25)],
        eps=torch.tensor(0.125),
        weight_decay=1,
        clipnorm=np.int64(2),
    )
    found = optimizer.param_groups[0]
    assert entries(optimizer) == {
        "lr": 0.1, "betas": (0.5, 0.25), "eps": 0.125, "weight_decay": 1.0, "amsgrad": False,
    }  # fmt: skip
    assert all(type(found[name]) is float for name in ("lr", "eps", "weight_decay", "clipnorm"))


class TestTensorRates:
    """A tensor as the learning rate."""

    def test_is_read_at_every_step(self) -> None:
        params, other = parameters((3,)), parameters((3,))
        rate = torch.tensor(0.5)
        optimizer, beside = Adam(params, lr=rate), Adam(other, lr=0.5)
        assert optimizer.param_groups[0]["lr"] is rate
        for number in (0.5, 0.25, 0.125):
            rate.fill_(number)
            beside.param_groups[0]["lr"] = number
            train(optimizer, params, [1])
            train(beside, other, [1])
            assert optimizer.learning_rate == number
            assert torch.equal(params[0], other[0])
        assert optimizer.param_groups[0]["lr"] is rate

    def test_out_of_range_is_refused_when_read(self) -> None:
        params = parameters((3,))
        rate = torch.tensor(0.5)
        optimizer = Adam(params, lr=rate)
        train(optimizer, params, [1])
        rate.fill_(math.nan)
        with unchanged(optimizer), pytest.raises(ValueError, match="lr must be"):
            optimizer.step()

    def test_may_require_a_gradient(self) -> None:
        params = parameters((3,))
        train(Adam(params, lr=torch.tensor(0.5, requires_grad=True)), params, [1])

    def test_can_be_assigned(self) -> None:
        params = parameters((3,), (2,))
        optimizer = Adam([{"params": [p]} for p in params])
        optimizer.learning_rate = rate = torch.tensor(0.25)
        assert all(group["lr"] is rate for group in optimizer.param_groups)
        train(optimizer, params, [1])
        optimizer.learning_rate = 0.5
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


class Counting:
    """A callable that counts how often it is evaluated."""

    def __init__(self, *numbers: float) -> None:
        self.numbers, self.evaluated = numbers, 0

    def __call__(self) -> float:
        self.evaluated += 1
        return self.numbers[(self.evaluated - 1) % len(self.numbers)]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("wrap", [lambda inner: inner, LossScaleOptimizer], ids=["alone", "scaled"])
def test_a_callable_is_evaluated_once_a_call(groups: int, wrap: Callable[[Adam], Any]) -> None:
    params = parameters(*[(2,)] * groups)
    rate, beta_1, beta_2 = Counting(0.1, 0.2), Counting(0.5, 0.6, 0.7), Counting(0.9)
    optimizer = wrap(
        Adam(
            [{"params": [p]} for p in params],
            lr=rate,
            betas=(beta_1, beta_2),
            gradient_accumulation_steps=2,
        )
    )
    assert rate.evaluated == beta_1.evaluated == beta_2.evaluated == 0
    for call in range(1, 5):
        train(optimizer, params, [call])
        assert rate.evaluated == beta_1.evaluated == beta_2.evaluated == call
        for group in optimizer.param_groups:
            assert group["lr"] == rate.numbers[(call - 1) % 2]
            assert group["betas"] == (beta_1.numbers[(call - 1) % 3], 0.9)


def test_a_callable_that_returns_nonsense_stops_the_call() -> None:
    params = parameters((2,))
    optimizer = Adam(params, lr=Counting(0.1, -1.0, 0.1))
    train(optimizer, params, [0])
    with pytest.raises(ValueError, match="learning_rate must be"), unchanged(optimizer):
        optimizer.step()
    train(optimizer, params, [1])
    assert optimizer.calls == 2


class TestParams:
    """What may be given as parameters."""

    def test_of_all_iterables(self) -> None:
        model = nn.Linear(3, 2)
        for given in (model.parameters(), [*model.parameters()], ({"params": model.parameters()},)):
            assert len(Adam(given).param_groups[0]["params"]) == 2
        groups = Adam({"params": p} for p in model.parameters()).param_groups
        assert [len(group["params"]) for group in groups] == [1, 1]

    def test_with_names(self) -> None:
        model = nn.Linear(3, 2)
        for given in (
            model.named_parameters(),
            dict(model.named_parameters()).items(),
            [{"params": model.named_parameters()}],
        ):
            assert Adam(given).param_groups[0]["param_names"] == ["weight", "bias"]

    def test_used_up_generator(self) -> None:
        params = nn.Linear(3, 2).parameters()
        Adam(params)
        with pytest.raises(ValueError, match=r"received none.*generator"):
            Adam(params)

    def test_twice(self) -> None:
        first, second = parameters((2,), (2,))
        with pytest.raises(ValueError, match="once, received one of them twice"):
            Adam([first, second, first])
        with pytest.raises(ValueError, match="appear in more than one"):
            Adam([{"params": [first]}, {"params": [second, first]}])

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            (lambda: torch.ones(2, requires_grad=True), TypeError, "put a single tensor into"),
            (lambda: {"params": parameters((2,))}, TypeError, "single dict"),
            (lambda: nn.Linear(2, 2).state_dict(), TypeError, "single dict"),
            (lambda: None, TypeError, "iterable"),
            (lambda: 5, TypeError, "iterable"),
            (list, ValueError, "at least one"),
            (lambda: [{"lr": 0.1}], ValueError, "'params'"),
            (lambda: [{"params": set(parameters((2,)))}], TypeError, "ordered"),
            (lambda: [{"params": 5}], TypeError, "params"),
            (lambda: [parameters((2,))], TypeError, "list"),
            (lambda: ["weight"], TypeError, "str"),
            (lambda: [{"params": parameters((2,))}, *parameters((2,))], TypeError, "Parameter"),
            (lambda: [torch.ones(2, requires_grad=True) * 2], ValueError, "non-leaf"),
            (lambda: [("a", parameters((2,))[0]), *parameters((2,))], ValueError, "names"),
            (lambda: [("a", p) for p in parameters((2,), (3,))], ValueError, "names"),
        ],
        ids=range(15),
    )
    def test_refused(self, given: Callable[[], Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Adam(given())

    def test_names_and_no_names_in_two_groups_are_refused(self) -> None:
        first, second = parameters((2,), (3,))
        optimizer = Adam([("a", first)])
        with pytest.raises(ValueError, match="names"):
            optimizer.add_param_group({"params": [second]})
        assert len(optimizer.param_groups) == 1
        optimizer.add_param_group({"params": [("b", second)]})
        assert optimizer.param_groups[1]["param_names"] == ["b"]


class TestOptimizer:
    """What every optimizer of torch is."""

    def test_is_one(self) -> None:
        for optimizer in (Adam(parameters((2,))), LossScaleOptimizer(Adam(parameters((2,))))):
            assert isinstance(optimizer, torch.optim.Optimizer)
            assert "lr: 0.001" in repr(optimizer)
            assert optimizer.defaults["lr"] == 0.001
            assert optimizer.state == {}

    def test_keeps_parameters_that_are_no_parameters(self) -> None:
        tensor = torch.ones(2, requires_grad=True)
        optimizer = Adam([tensor], lr=0.5)
        tensor.sum().backward()
        optimizer.step()
        assert tensor.tolist() == pytest.approx([0.5, 0.5], rel=1e-5)

    def test_parameters_of_subclasses(self) -> None:
        class Own(Parameter):
            pass

        class OwnTensor(torch.Tensor):
            pass

        for param in (Own(torch.ones(2)), Parameter(torch.ones(2).as_subclass(OwnTensor))):
            optimizer = Adam([param], lr=0.5)
            param.square().sum().backward()
            optimizer.step()
            assert param.tolist() == pytest.approx([0.5, 0.5], rel=1e-5)

    def test_makes_no_state_before_the_first_step(self) -> None:
        params = parameters((2,))
        optimizer = Adam(params, use_ema=True)
        assert not optimizer.state
        with pytest.raises(ValueError, match="must have a gradient"):
            optimizer.step()
        give(params, 0)
        optimizer.step()
        assert list(optimizer.state) == params

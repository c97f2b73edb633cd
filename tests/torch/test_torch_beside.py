"""What the tests of this door are judged by rejects what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import (
    Beside,
    BesideError,
    alike,
    array_of,
    give,
    parameters,
    same,
    snapshot,
    spacings,
    train,
    unchanged,
    warned,
)

from oneadam.torch import Adam

GROUPS: list[dict[str, Any]] = [{"lr": 0.1}, {"lr": 0.02, "weight_decay": 0.1}]


def tampered(tamper: Callable[[torch.Tensor], None]) -> Callable[[Any], Adam]:
    """Makes optimizers that do one thing more after every step."""

    def make(groups: Any) -> Adam:
        optimizer = Adam(groups)

        def after(stepped: Any, args: Any, kwargs: Any) -> None:
            with torch.no_grad():
                tamper(stepped.param_groups[1]["params"][0])

        optimizer.register_step_post_hook(after)
        return optimizer

    return make


def beside(
    kind: Callable[[Any], Adam], own: list[dict[str, Any]], oracles: list[dict[str, Any]]
) -> Beside:
    params = parameters((3,), (2, 2))
    groups = [{"params": [p], **entry} for p, entry in zip(params, own, strict=True)]
    return Beside(kind(groups), {}, oracles)


def steps(judge: Beside, count: int = 3) -> None:
    for seed in range(count):
        give([p for group in judge.optimizer.param_groups for p in group["params"]], seed)
        judge.step()


def test_a_right_optimizer_passes() -> None:
    steps(beside(Adam, GROUPS, GROUPS), 50)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.02},
        {"lr": 0.02001, "weight_decay": 0.1},
        {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-3},
        {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.99)},
        {"lr": 0.02, "weight_decay": 0.1, "maximize": True},
        {"lr": 0.02, "weight_decay": 0.1, "clipnorm": 0.1, "eps": 1.0},
    ],
    ids=str,
)
def test_a_group_with_other_hyperparameters_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(BesideError, match="group 1, parameter 0"):
        steps(beside(Adam, GROUPS, [GROUPS[0], wrong]))


def one_spacing_too_many(param: torch.Tensor) -> None:
    param[0, 0] += param[0, 0].abs() * 2e-6


def lost(param: torch.Tensor) -> None:
    param[1, 1] = float("nan")


@pytest.mark.parametrize("tamper", [one_spacing_too_many, lost])
def test_an_element_that_is_off_is_rejected(tamper: Callable[[torch.Tensor], None]) -> None:
    with pytest.raises(BesideError, match="spacings off"):
        steps(beside(tampered(tamper), GROUPS, GROUPS))


def test_spacings_are_those_of_float32() -> None:
    one = torch.tensor([1.0, 2.0])
    assert spacings([one], [one]) == 0.0
    assert spacings([torch.nextafter(one, one * 2)], [one]) == 1.0
    assert spacings([torch.tensor([1.0, float("nan")])], [one]) == float("inf")
    with pytest.raises(BesideError, match="shapes"):
        spacings([one], [one[:1]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arrays_have_the_values_of_tensors_and_their_own_memory(dtype: torch.dtype) -> None:
    tensor = torch.linspace(-1, 1, 6).to(dtype).reshape(2, 3).t()
    array = array_of(tensor)
    assert array.dtype.name == str(dtype).removeprefix("torch.")
    assert array.astype(float).tolist() == tensor.double().tolist()
    array[...] = 0
    assert tensor.any()


def test_a_snapshot_sees_every_change() -> None:
    params = parameters((3,))
    optimizer = Adam(params, use_ema=True, gradient_accumulation_steps=2)
    train(optimizer, params, range(3))
    with unchanged(optimizer):
        pass
    own = optimizer.state[params[0]]
    for change in (
        lambda: params[0].data[0].add_(1e-3),
        lambda: own["exp_avg"][0].neg_(),
        lambda: own["step"].add_(1),
        lambda: own["averaged"].logical_not_(),
        lambda: own.pop("average"),
        lambda: optimizer.param_groups[0].update(lr=0.002),
        lambda: optimizer.param_groups[0].update(skipped_calls=1),
    ):
        with pytest.raises(BesideError, match="differ"), unchanged(optimizer):
            change()


def test_a_warning_too_few_too_many_or_of_something_else_is_seen() -> None:
    with warned("a", "b"):
        warnings.warn("a and b", stacklevel=1)
    with warned():
        pass
    wrong = [(["a"], []), (["a"], ["a", "a"]), (["a", "c"], ["a and b"]), ([], ["a"])]
    for wanted, given in wrong:
        with pytest.raises(BesideError, match="expected a warning"):
            say(given, wanted)


def say(texts: list[str], wanted: list[str]) -> None:
    with warned(*wanted):
        for text in texts:
            warnings.warn(text, stacklevel=1)


def test_gradients_depend_on_shape_and_seed_alone() -> None:
    params = parameters((3,), (2, 2))
    other = alike(params)
    give(params, 1)
    give(other, 1)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(params, other, strict=True))
    give(other, 2)
    assert not torch.equal(params[0].grad, other[0].grad)
    assert torch.equal(params[0].grad.sign(), other[0].grad.sign())
    optimizer, another = Adam(params), Adam(alike(params))
    same(snapshot(optimizer), snapshot(another))

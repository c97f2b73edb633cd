"""Groups of parameters, each with hyperparameters of its own, beside one oracle for each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from beside import Beside, BesideError, alike, array_of, give, parameters, train, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from oneadam.torch import Adam

OWN: dict[str, Any] = {
    "lr": 0.05,
    "betas": (0.8, 0.95),
    "eps": 1e-3,
    "weight_decay": 0.1,
    "amsgrad": True,
    "clipnorm": 0.1,
    "clipvalue": 0.2,
    "maximize": True,
}

OF_THE_WHOLE: dict[str, Any] = {
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 3,
    "loss_scale_factor": 8.0,
    "gradient_accumulation_steps": 2,
    "epsilon_hat": False,
    "on_nonfinite": "skip",
}


def made(config: dict[str, Any], *own: dict[str, Any]) -> Beside:
    shapes = ((3,), (2, 2), (), (5,))
    groups = [
        {"params": parameters(*shapes[: 1 + number % 4], seed=number), **entry}
        for number, entry in enumerate(own)
    ]
    return Beside(Adam(groups, **config), config, own)


def run(judge: Beside, seeds: range) -> None:
    for seed in seeds:
        for number, group in enumerate(judge.optimizer.param_groups):
            give(group["params"], 100 * number + seed)
        judge.step()


@pytest.mark.parametrize("entry", OWN)
def test_a_group_overrides(entry: str) -> None:
    run(made({}, {}, {entry: OWN[entry]}, {}), range(20))


@pytest.mark.parametrize("entry", OWN)
def test_an_entry_makes_a_difference(entry: str) -> None:
    # Clipping shows only where epsilon matters, AMSGrad only where the second moment shrinks.
    config = {"epsilon": 0.1, "beta_2": 0.5}
    judge = made(config, {}, {entry: OWN[entry]})
    other = made(config, {}, {})
    judge.oracles = other.oracles
    judge.signs = other.signs
    with pytest.raises(BesideError, match="group 1"):
        run(judge, range(5))


RATES = st.sampled_from([0.0, 1e-3, 0.05])
ENTRIES: dict[str, st.SearchStrategy[Any]] = {
    "lr": RATES,
    "betas": st.tuples(st.sampled_from([0.0, 0.9]), st.sampled_from([0.5, 0.95, 0.999])),
    "eps": st.sampled_from([1e-8, 1e-3, 1.0]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "amsgrad": st.booleans(),
    "maximize": st.booleans(),
}
CLIP = st.sampled_from(
    [{}, {"clipnorm": 0.3}, {"clipvalue": 0.2}, {"clipnorm": math.inf}, {"clipnorm": None}]
)
GROUP = st.builds(lambda own, clip: own | clip, st.fixed_dictionaries({}, optional=ENTRIES), CLIP)


@settings(max_examples=60)
@given(st.lists(GROUP, min_size=1, max_size=4), st.booleans(), st.integers(2, 8))
def test_groups_agree_with_an_oracle_each(
    own: list[dict[str, Any]], epsilon_hat: bool, calls: int
) -> None:
    run(made({"epsilon_hat": epsilon_hat, "weight_decay": 0.01}, *own), range(calls))


def test_a_group_without_clipping_beside_one_that_clips() -> None:
    run(made({"clipnorm": 0.1, "epsilon": 1.0}, {"clipnorm": None}, {}), range(10))
    run(
        made({"clipnorm": 0.1, "epsilon": 1.0}, {"clipnorm": None, "clipvalue": 0.1}, {}), range(10)
    )


def test_an_infinite_gradient_stays_in_its_parameter() -> None:
    judge = made({"epsilon": 1.0}, {}, {"clipnorm": 0.1}, {"clipvalue": 0.1})
    run(judge, range(2))
    for group in judge.optimizer.param_groups:
        give(group["params"], 5)
    judge.optimizer.param_groups[0]["params"][0].grad[0] = math.inf
    judge.step()
    first, *others = (p for group in judge.optimizer.param_groups for p in group["params"])
    assert torch.isnan(first).tolist() == [True, False, False]
    assert all(torch.isfinite(p).all() for p in others)


def test_a_norm_over_all_groups_whatever_their_rates() -> None:
    params = parameters((3,), (2, 2))
    groups = [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "eps": 0.1}]
    optimizer = Adam(groups, global_clipnorm=0.5)
    beside = alike(params)
    judge = Beside(
        Adam([{**g, "params": [b]} for g, b in zip(groups, beside, strict=True)]),
        {},
        [{"lr": 0.1}, {"eps": 0.1}],
    )
    for seed in range(10):
        give(params, seed, 3.0)
        length = math.hypot(*(x for p in params for x in array_of(p.grad).ravel().tolist()))
        give(beside, seed, 3.0 * 0.5 / length)
        optimizer.step()
        judge.step()
        assert optimizer.metrics()["gradient_norm"] == pytest.approx(length, rel=1e-6)
        for p, q in zip(params, beside, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OF_THE_WHOLE)
def test_what_concerns_the_whole_model_is_refused_in_a_group(name: str) -> None:
    with pytest.raises(ValueError, match=f"no {name} of its own.*pass it to the optimizer"):
        Adam([{"params": parameters((2,)), name: OF_THE_WHOLE[name]}])
    optimizer = Adam(parameters((2,)))
    with unchanged(optimizer), pytest.raises(ValueError, match=f"no {name} of its own"):
        optimizer.add_param_group({"params": parameters((3,)), name: OF_THE_WHOLE[name]})
    assert len(optimizer.param_groups) == 1


def test_a_norm_of_a_group_beside_one_of_the_whole_model_is_refused() -> None:
    with pytest.raises(ValueError, match="clipnorm"):
        Adam([{"params": parameters((2,)), "clipnorm": 1.0}], global_clipnorm=1.0)


def test_unknown_entries_survive() -> None:
    group = {"params": parameters((2,)), "name": "backbone", "lr_mult": 0.1, "note": {"a": 1}}
    optimizer = Adam([group])
    train(optimizer, group["params"], range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, group["params"], range(2))
    found = optimizer.param_groups[0]
    assert (found["name"], found["lr_mult"], found["note"]) == ("backbone", 0.1, {"a": 1})


def test_our_spellings_in_a_group() -> None:
    own = {"learning_rate": 0.1, "beta_1": 0.5, "epsilon": 1e-3}
    optimizer = Adam([{"params": parameters((2,)), **own}], beta_2=0.99)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.5, 0.99), 1e-3)
    assert not own.keys() & group.keys()
    for both in ({"lr": 0.1, "learning_rate": 0.1}, {"betas": (0.5, 0.9), "beta_1": 0.5}):
        with pytest.raises(ValueError, match="must not both be given"):
            Adam([{"params": parameters((2,)), **both}])


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("lr", -1.0), ("lr", math.nan), ("lr", True), ("betas", (0.9, 1.0)), ("betas", 0.9),
        ("betas", (0.9,)), ("eps", 0.0), ("weight_decay", -0.1), ("amsgrad", 1), ("clipnorm", 0.0),
        ("clipvalue", -1.0), ("maximize", "yes"),
    ],
)  # fmt: skip
def test_an_entry_out_of_range_is_refused_when_made_and_when_changed(
    entry: str, value: Any
) -> None:
    params = parameters((2,))
    named = {"lr": "learning_rate", "betas": "beta", "eps": "epsilon"}.get(entry, entry)
    with pytest.raises((TypeError, ValueError), match=named):
        Adam([{"params": params, entry: value}])
    optimizer = Adam(params)
    train(optimizer, params, range(2))
    before = optimizer.param_groups[0][entry]
    optimizer.param_groups[0][entry] = value
    with unchanged(optimizer), pytest.raises((TypeError, ValueError)):
        optimizer.step()
    optimizer.param_groups[0][entry] = before
    optimizer.step()


def test_entries_changed_between_steps_take_effect_at_the_next() -> None:
    judge = made({"epsilon": 0.1}, {}, {})
    run(judge, range(3))
    changes: dict[str, Any] = {"lr": 0.03, "betas": (0.7, 0.9), "eps": 0.01, "weight_decay": 0.2}
    for entry, value in changes.items():
        judge.optimizer.param_groups[1][entry] = value
        oracle = judge.oracles[1]
        if entry == "betas":
            oracle.beta_1, oracle.beta_2 = value
        else:
            setattr(oracle, {"lr": "learning_rate", "eps": "epsilon"}.get(entry, entry), value)
        run(judge, range(3, 6))
    judge.optimizer.param_groups[1]["clipvalue"] = judge.oracles[1].clipvalue = 0.1
    run(judge, range(6, 9))
    judge.optimizer.param_groups[1]["maximize"] = True
    judge.signs[1] = -1.0
    run(judge, range(9, 12))


def test_amsgrad_switched_on_between_steps_starts_its_maximum_there() -> None:
    params = parameters((3,))
    optimizer = Adam(params)
    train(optimizer, params, range(3))
    optimizer.param_groups[0]["amsgrad"] = True
    train(optimizer, params, range(3, 6))
    own = optimizer.state[params[0]]
    assert torch.equal(own["max_exp_avg_sq"], own["exp_avg_sq"])  # it has only grown
    assert optimizer.updates == int(own["step"]) == 6


def test_a_group_added_between_steps_starts_like_a_new_one() -> None:
    judge = made({"weight_decay": 0.1}, {"lr": 0.1})
    run(judge, range(5))
    judge.optimizer.add_param_group({"params": parameters((4,), seed=9), "lr": 0.02})
    judge.add({"weight_decay": 0.1}, {"lr": 0.02})
    run(judge, range(5, 15))
    groups = judge.optimizer.param_groups
    assert [group["calls"] for group in groups] == [15, 15]
    steps = [int(judge.optimizer.state[group["params"][0]]["step"]) for group in groups]
    assert steps == [15, 10]


def test_a_group_added_in_an_open_window_takes_part_in_it() -> None:
    first, late = parameters((3,), (2,))
    optimizer = Adam([first], gradient_accumulation_steps=2, use_ema=True)
    train(optimizer, [first], range(3))
    optimizer.add_param_group({"params": [late]})
    assert optimizer.param_groups[1]["accumulated_calls"] == 1
    late.grad = torch.ones(2)
    before = array_of(late)
    optimizer.step()
    assert optimizer.updates == 2
    # Half the gradient, which Adam's first step does not see.
    torch.testing.assert_close(late.detach(), torch.from_numpy(before) - 1e-3)
    torch.testing.assert_close(optimizer.state[late]["exp_avg"], torch.full((2,), 0.05))


def test_a_refused_group_changes_nothing() -> None:
    params = parameters((3,))
    optimizer = Adam(params)
    train(optimizer, params, range(2))
    for wrong in (
        {"params": params},
        {"params": parameters((2,)), "lr": -1.0},
        {"params": [torch.ones(2, requires_grad=True) * 2]},
        {"params": [Parameter(torch.ones(2, dtype=torch.complex64))]},
        {"lr": 0.1},
    ):
        with unchanged(optimizer), pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group(wrong)
        assert len(optimizer.param_groups) == 1
    train(optimizer, params, range(2))


def test_memory_shared_with_another_group_is_refused_before_it_is_written_to() -> None:
    params = parameters((3,))
    optimizer = Adam(params)
    train(optimizer, params, range(2))
    params.append(Parameter(params[0].detach()[1:]))
    before = array_of(params[0])
    give(params, 0)
    with pytest.raises(ValueError, match="share memory"):  # noqa: PT012
        optimizer.add_param_group({"params": params[1:]})
        optimizer.step()
    assert (array_of(params[0]) == before).all()


def test_the_callers_groups_are_left_as_they_are() -> None:
    group = {"params": parameters((2,)), "learning_rate": 0.1}
    before = dict(group)
    optimizer = Adam([group])
    train(optimizer, group["params"], range(2))
    assert group == before


def test_a_group_without_parameters_is_no_hindrance() -> None:
    params = parameters((2,))
    optimizer = Adam([{"params": []}, {"params": params}], global_clipnorm=1.0, use_ema=True)
    train(optimizer, params, range(3))
    assert optimizer.updates == 3
    alone = Adam([{"params": []}])
    alone.step()  # there is no gradient at all, so nothing to do
    alone.add_param_group({"params": params})
    train(alone, params, range(2))

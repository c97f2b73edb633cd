"""State in torch's own form: names, dtypes, matching, and what goes wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import (
    EVERYTHING,
    alike,
    array_of,
    give,
    parameters,
    same,
    snapshot,
    through_a_file,
    train,
    unchanged,
    warned,
)

from oneadam.torch import Adam, LossScaleOptimizer

CONFIGS: dict[str, dict[str, Any]] = {
    "bare": {},
    "amsgrad": {"amsgrad": True},
    "average": {"use_ema": True},
    "window": {"gradient_accumulation_steps": 3},
    "everything": EVERYTHING,
}
KEYS = {
    "bare": {"step", "exp_avg", "exp_avg_sq"},
    "amsgrad": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "average": {"step", "exp_avg", "exp_avg_sq", "average", "averaged"},
    "window": {"step", "exp_avg", "exp_avg_sq", "gradient_accumulator", "in_window"},
    "everything": {
        "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "average", "averaged",
        "gradient_accumulator", "in_window",
    },
}  # fmt: skip
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def plain(params: Any, **config: Any) -> Any:
    return Adam(params, **config)


def scaled(params: Any, **config: Any) -> Any:
    return LossScaleOptimizer(Adam(params, **config), initial_scale=4.0, dynamic_growth_steps=3)


MAKERS = [plain, scaled]


@pytest.mark.parametrize("name", CONFIGS)
def test_has_torchs_names(name: str) -> None:
    params = parameters((3,), (2, 2))
    optimizer = Adam(params, **CONFIGS[name])
    assert optimizer.state_dict()["state"] == {}
    train(optimizer, params, range(2))
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups"}
    assert set(state["state"]) == {0, 1}
    for own in state["state"].values():
        assert set(own) == KEYS[name]
        assert own["step"].shape == ()
        assert own["step"].dtype == torch.float64
    (group,) = state["param_groups"]
    assert group["params"] == [0, 1]
    assert {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"} <= set(group)
    assert (group["calls"], group["skipped_calls"]) == (2, 0)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("calls", [1, 2, 3, 7])
def test_a_resumed_run_is_the_same_to_the_bit(
    make: Callable[..., Any], dtype: torch.dtype, name: str, calls: int
) -> None:
    params = parameters((3,), (2, 2), dtype=dtype)
    optimizer = make(params, lr=0.05, **CONFIGS[name])
    train(optimizer, params, range(calls))
    others = alike(params)
    resumed = make(others, lr=0.7, **CONFIGS[name])
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    same(snapshot(optimizer), snapshot(resumed))
    for seed in range(calls, calls + 7):
        train(optimizer, params, [seed])
        train(resumed, others, [seed])
    same(snapshot(optimizer), snapshot(resumed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_state_of_narrow_parameters_stays_wide_where_torch_casts_it(dtype: torch.dtype) -> None:
    params = parameters((30,), dtype=dtype)
    optimizer = Adam(params, use_ema=True)
    train(optimizer, params, range(3))
    state = optimizer.state_dict()
    resumed = Adam(alike(params), use_ema=True)
    resumed.load_state_dict(state)
    (own,) = resumed.state.values()
    for key in ("exp_avg", "exp_avg_sq", "average"):
        assert own[key].dtype == torch.float32
        assert torch.equal(own[key], state["state"][0][key])
    # The control: what loading is like in torch.
    theirs = torch.optim.AdamW(alike(params))
    theirs.load_state_dict(state)
    (cast,) = theirs.state.values()
    assert cast["exp_avg"].dtype == dtype
    assert not torch.equal(cast["exp_avg"].float(), own["exp_avg"])


@pytest.mark.parametrize("make", MAKERS)
def test_loading_takes_a_copy(make: Callable[..., Any]) -> None:
    params = parameters((3,))
    optimizer = make(params, **EVERYTHING)
    train(optimizer, params, range(4))
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    resumed = make(alike(params), **EVERYTHING)
    resumed.load_state_dict(state)
    mine, theirs = optimizer.state[params[0]], next(iter(resumed.state.values()))
    for key, value in theirs.items():
        assert value.data_ptr() != mine[key].data_ptr(), key
    train(resumed, resumed.param_groups[0]["params"], range(7))
    resumed.param_groups[0]["lr"] = 5.0
    for key, value in before["state"][0].items():
        assert torch.equal(state["state"][0][key], value), key
    assert state["param_groups"] == before["param_groups"]
    assert optimizer.param_groups[0]["lr"] == 0.001


class TestNames:
    """Parameters that have names are matched by them."""

    def named(self, order: str) -> tuple[Adam, dict[str, Any]]:
        params = dict(zip("abc", parameters((3,), (3,), (3,)), strict=True))
        return Adam([(name, params[name]) for name in order]), params

    def test_in_another_order(self) -> None:
        optimizer, params = self.named("abc")
        train(optimizer, params.values(), range(3))
        resumed, others = self.named("cab")
        resumed.load_state_dict(through_a_file(optimizer.state_dict()))
        assert resumed.param_groups[0]["param_names"] == ["c", "a", "b"]
        for name, param in params.items():
            wanted, found = optimizer.state[param], resumed.state[others[name]]
            assert torch.equal(found["exp_avg"], wanted["exp_avg"])

    def test_in_the_same_order_without_names(self) -> None:
        optimizer, params = self.named("abc")
        train(optimizer, params.values(), range(3))
        resumed = Adam(alike(params.values()))
        resumed.load_state_dict(optimizer.state_dict())
        wanted = [own["exp_avg"] for own in optimizer.state.values()]
        found = [own["exp_avg"] for own in resumed.state.values()]
        assert all(map(torch.equal, wanted, found))
        assert "param_names" not in resumed.param_groups[0]

    def test_other_names_are_warned_of(self) -> None:
        optimizer, params = self.named("abc")
        train(optimizer, params.values(), range(3))
        params["d"] = params.pop("a")
        resumed = Adam([("d", params["d"]), ("b", params["b"]), ("c", params["c"])])
        with warned("other names", "a and d"):
            resumed.load_state_dict(optimizer.state_dict())
        assert torch.equal(
            resumed.state[params["d"]]["exp_avg"], optimizer.state[params["d"]]["exp_avg"]
        )
        assert resumed.param_groups[0]["param_names"] == ["d", "b", "c"]


def changed(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of a state dict with one entry changed."""
    result = place = copy.deepcopy(state)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return result


WRONG: dict[str, tuple[tuple[Any, ...], Any]] = {
    "shape": (("state", 1, "exp_avg"), torch.zeros(4)),
    "shape that would broadcast": (("state", 1, "exp_avg_sq"), torch.zeros(1, 2)),
    "no tensor": (("state", 1, "exp_avg"), [1.0, 2.0, 3.0]),
    "steps that are no number": (("state", 0, "step"), "many"),
    "no moments": (("state", 0), {"momentum_buffer": torch.zeros(3)}),
    "no entries": (("state", 0), 5),
    "no groups": (("param_groups",), []),
    "learning rate": (("param_groups", 0, "lr"), -1.0),
    "betas": (("param_groups", 0, "betas"), (0.9, 1.0)),
    "eps": (("param_groups", 0, "eps"), math.nan),
    "fewer parameters": (("param_groups", 0, "params"), [0]),
    "counters": (("param_groups", 0, "calls"), "many"),
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_changes_nothing(what: str, make: Callable[..., Any]) -> None:
    params = parameters((3,), (2, 2))
    optimizer = make(params)
    train(optimizer, params, range(2))
    state = optimizer.state_dict()
    train(optimizer, params, range(2))
    with unchanged(optimizer), pytest.raises((TypeError, ValueError)):
        optimizer.load_state_dict(changed(state, *WRONG[what]))
    train(optimizer, params, range(2))
    optimizer.load_state_dict(state)
    assert optimizer.calls == 2


def test_a_warning_turned_into_an_error_changes_nothing() -> None:
    params = parameters((3,))
    optimizer = Adam(params)
    train(optimizer, params, range(2))
    richer = Adam(parameters((3,)), use_ema=True)
    with unchanged(richer), pytest.raises(UserWarning, match="average"):
        richer.load_state_dict(optimizer.state_dict())


class TestOptionalParts:
    """What only one side has starts afresh, or is left out, and is said."""

    def test_an_average_switched_on_later(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params)
        train(optimizer, params, range(3))
        resumed = Adam(params, use_ema=True)
        with warned("afresh", "average"):
            resumed.load_state_dict(optimizer.state_dict())
        train(resumed, params, range(1))
        assert torch.equal(resumed.state[params[0]]["average"], params[0])  # its beginning
        assert int(resumed.state[params[0]]["step"]) == 4

    def test_a_window_switched_on_later(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params)
        train(optimizer, params, range(3))
        resumed = Adam(params, gradient_accumulation_steps=2)
        with warned("afresh", "gradient_accumulator"):
            resumed.load_state_dict(optimizer.state_dict())
        before = array_of(params[0])
        train(resumed, params, range(1))
        assert (array_of(params[0]) == before).all()
        train(resumed, params, range(1))
        assert (resumed.calls, resumed.updates) == (5, 4)

    def test_a_window_switched_off_later(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, gradient_accumulation_steps=2)
        train(optimizer, params, range(3))
        resumed = Adam(params)
        with warned("left out", "gradient_accumulator"):
            resumed.load_state_dict(optimizer.state_dict())
        assert resumed.param_groups[0]["accumulated_calls"] == 0
        train(resumed, params, range(2))
        assert (resumed.calls, resumed.updates) == (5, 3)

    def test_parameters_that_were_frozen_then(self) -> None:
        params = parameters((3,), (2,))
        params[1].requires_grad_(False)
        optimizer = Adam(params)
        train(optimizer, params[:1], range(3))
        assert set(optimizer.state_dict()["state"]) == {0}
        others = alike(params)
        others[1].requires_grad_(True)
        resumed = Adam(others)
        with warned("started afresh", "all of 1"):
            resumed.load_state_dict(optimizer.state_dict())
        train(resumed, others, range(2))
        assert [int(own["step"]) for own in resumed.state.values()] == [5, 2]

    def test_state_before_the_first_step(self) -> None:
        resumed = Adam(parameters((3,)), lr=0.1, **EVERYTHING)
        resumed.load_state_dict(Adam(parameters((3,)), lr=0.2, **EVERYTHING).state_dict())
        assert (resumed.param_groups[0]["lr"], resumed.calls) == (0.2, 0)
        train(resumed, resumed.param_groups[0]["params"], range(3))


def test_a_dict_of_the_loss_scale_and_one_without_load_into_each_other() -> None:
    params = parameters((3,))
    inner, outer = plain(params), scaled(alike(params))
    give(params, 0)
    inner.step()
    outer.load_state_dict(inner.state_dict())
    assert outer.scale == 4.0
    assert outer.calls == 1
    inner.load_state_dict(outer.state_dict())
    train(inner, params, range(2))
    assert inner.calls == 3

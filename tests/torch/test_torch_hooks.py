"""Hooks, closures, `zero_grad`, and the modes of autograd around a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import alike, give, parameters, same, snapshot, train, unchanged
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from oneadam.torch import Adam, LossScaleOptimizer


def plain(params: Any, **config: Any) -> Any:
    return Adam(params, **config)


def scaled(params: Any, **config: Any) -> Any:
    return LossScaleOptimizer(Adam(params, **config), initial_scale=8.0)


both = pytest.mark.parametrize("make", [plain, scaled])
Make = Callable[..., Any]


class TestStepHooks:
    """Before and after every step."""

    @both
    def test_are_called_in_order(self, make: Make) -> None:
        params = parameters((3,))
        optimizer = make(params)
        log: list[tuple[str, int]] = []
        removable = [
            optimizer.register_step_pre_hook(lambda o, *_: log.append(("before", o.calls))),
            optimizer.register_step_post_hook(lambda o, *_: log.append(("after", o.calls))),
            register_optimizer_step_pre_hook(lambda o, *_: log.append(("all before", o.calls))),
            register_optimizer_step_post_hook(lambda o, *_: log.append(("all after", o.calls))),
        ]
        train(optimizer, params, [0])
        for hook in removable:
            hook.remove()
        train(optimizer, params, [0])
        wanted = [("all before", 0), ("before", 0), ("after", 1), ("all after", 1)]
        assert sorted(log) == sorted(wanted)
        assert [count for _, count in log] == [0, 0, 1, 1]

    @both
    def test_may_change_gradients_and_rates(self, make: Make) -> None:
        params = parameters((3,))
        others = alike(params)
        optimizer, other = make(params, clipnorm=1.0), make(others, clipnorm=1.0)

        def halve(which: Any, *_: Any) -> None:
            for param in params:
                param.grad = param.grad / 2
            which.param_groups[0]["lr"] = 0.5

        optimizer.register_step_pre_hook(halve)
        train(optimizer, params, range(3))
        other.param_groups[0]["lr"] = 0.5
        train(other, others, range(3), scale=0.5)
        assert torch.equal(params[0], others[0])

    @both
    def test_an_error_in_one_changes_nothing(self, make: Make) -> None:
        params = parameters((3,))
        optimizer = make(params)
        train(optimizer, params, [0])

        def refuse(*_: Any) -> None:
            raise KeyError("no")

        hook = optimizer.register_step_pre_hook(refuse)
        with unchanged(optimizer), pytest.raises(KeyError):
            optimizer.step()
        hook.remove()
        optimizer.step()


class TestStateDictHooks:
    """Before and after saving and loading."""

    @both
    def test_are_called_in_order(self, make: Make) -> None:
        params = parameters((3,))
        optimizer = make(params)
        train(optimizer, params, [0])
        log: list[str] = []
        optimizer.register_state_dict_pre_hook(lambda o: log.append("before saving"))
        optimizer.register_state_dict_post_hook(lambda o, d: {**d, "mine": log.append("saved")})
        optimizer.register_load_state_dict_pre_hook(lambda o, d: log.append("before loading"))
        optimizer.register_load_state_dict_post_hook(lambda o: log.append("loaded"))
        state = optimizer.state_dict()
        assert "mine" in state
        optimizer.load_state_dict(state)
        assert log == ["before saving", "saved", "before loading", "loaded"]

    @both
    def test_may_put_another_dict_in_the_place_of_the_loaded_one(self, make: Make) -> None:
        params = parameters((3,))
        optimizer = make(params, lr=0.1)
        train(optimizer, params, [0])
        state = optimizer.state_dict()
        empty = {"state": {}, "param_groups": state["param_groups"]}
        optimizer.register_load_state_dict_pre_hook(lambda o, d: empty)
        optimizer.load_state_dict(state)
        assert not optimizer.state
        assert state["state"]  # the caller's dict stays as it is


class TestClosures:
    """A function that evaluates the model again."""

    @both
    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
    def test_are_evaluated_with_gradients(self, make: Make, mode: Any) -> None:
        params = parameters((3,))
        others = alike(params)
        optimizer, other = make(params, lr=0.1), make(others, lr=0.1)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (params[0] ** 2).sum()
            optimizer.scale_loss(loss).backward()
            return loss

        wanted = (others[0] ** 2).sum().item()
        with mode():
            assert optimizer.step(closure).item() == wanted
            assert optimizer.step(closure=closure).item() < wanted
        for _ in range(2):
            other.zero_grad()
            other.scale_loss((others[0] ** 2).sum()).backward()
            assert other.step() is None
        same(snapshot(optimizer), snapshot(other))

    @both
    def test_that_fail_change_nothing(self, make: Make) -> None:
        params = parameters((3,))
        optimizer = make(params)
        train(optimizer, params, [0])

        def closure() -> Tensor:
            raise KeyError("no")

        with unchanged(optimizer), pytest.raises(KeyError):
            optimizer.step(closure)


@both
def test_zero_grad_both_ways(make: Make) -> None:
    params = parameters((3,), (2,))
    optimizer = make(params)
    give(params, 0)
    grad = params[0].grad
    optimizer.zero_grad(set_to_none=False)
    assert params[0].grad is grad
    assert not any(p.grad.any() for p in params)
    optimizer.step()
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_a_step_inside_of_the_backward_pass() -> None:
    params = parameters((3,), (2,))
    others = alike(params)
    optimizers = {param: Adam([param], lr=0.1) for param in params}

    def update(param: Tensor) -> None:
        optimizers[param].step()
        param.grad = None

    for param in params:
        param.register_post_accumulate_grad_hook(update)
    other = Adam(others, lr=0.1)
    for _ in range(3):
        sum((p**2).sum() for p in params).backward()
        other.zero_grad()
        sum((p**2).sum() for p in others).backward()
        other.step()
    assert all(map(torch.equal, params, others))


class TestModes:
    """Modes of autograd around a step."""

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    @pytest.mark.parametrize("config", [{}, {"use_ema": True, "gradient_accumulation_steps": 2}])
    def test_do_not_matter(self, mode: Any, config: dict[str, Any]) -> None:
        params = [*parameters((3,), (2, 2)), Parameter(torch.ones(8)[::2])]
        others = alike(params)
        optimizer, other = Adam(params, lr=0.1, **config), Adam(others, lr=0.1, **config)
        for seed in range(6):
            give(params, seed)
            if seed % 3 == 2:
                optimizer.step()
            else:
                with mode():
                    optimizer.step()
            train(other, others, [seed])
        same(snapshot(optimizer), snapshot(other))
        resumed = Adam(alike(params), lr=0.1, **config)
        resumed.load_state_dict(optimizer.state_dict())
        train(resumed, resumed.param_groups[0]["params"], range(3))
        for own in optimizer.state.values():
            for value in own.values():
                value.copy_(value.clone())  # may be written to, whatever made it

    def test_no_state_takes_part_in_autograd(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, use_ema=True, amsgrad=True)
        train(optimizer, params, range(2))
        assert not any(value.requires_grad for value in optimizer.state[params[0]].values())
        assert params[0].is_leaf

    def test_gradients_of_gradients_are_gradients(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, lr=0.1)
        loss = (params[0] ** 3).sum()
        (first,) = torch.autograd.grad(loss, params, create_graph=True)
        (first**2).sum().backward(create_graph=False)
        optimizer.step()
        params[0].grad = first
        with torch.enable_grad():
            optimizer.step()
        assert params[0].is_leaf


class TestVersions:
    """Autograd notices what a step has changed, and only that."""

    def test_a_step_between_forward_and_backward_is_noticed(self) -> None:
        for optimizer_of in (Adam, torch.optim.AdamW):
            params = parameters((3,))
            optimizer = optimizer_of(params)
            give(params, 0)
            loss = (params[0] ** 2).sum()
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    @pytest.mark.parametrize("what", ["averaged", "finalized", "overwritten"])
    def test_so_are_averages(self, what: str) -> None:
        params = parameters((3,))
        every = 1 if what == "overwritten" else None
        optimizer = Adam(params, use_ema=True, ema_overwrite_frequency=every)
        train(optimizer, params, range(2))
        loss = (params[0] ** 2).sum()
        if what == "averaged":
            with optimizer.averaged():
                pass
        elif what == "finalized":
            optimizer.finalize_variable_values()
        else:
            train(optimizer, params, [2])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_parameters_that_did_not_change_may_be_used(self) -> None:
        first, second = parameters((3,), (3,))
        optimizer = Adam([first, second], weight_decay=0.1)
        losses = [(p**2).sum() for p in (first, second)]
        losses[0].backward()
        with pytest.warns(UserWarning, match="gradient"):
            optimizer.step()
        losses[1].backward()
        assert second.grad is not None

    def test_calls_that_change_nothing_are_no_change(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, gradient_accumulation_steps=2, on_nonfinite="skip")
        give(params, 0)
        loss = (params[0] ** 2).sum()
        optimizer.step()
        params[0].grad = torch.full((3,), float("nan"))
        optimizer.step()
        loss.backward()
        assert optimizer.updates == 0
        assert isinstance(params[0], Parameter)

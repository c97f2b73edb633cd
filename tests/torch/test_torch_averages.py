"""Averages, windows, exclusions, metrics and configurations."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import Beside, alike, array_of, give, parameters, same, snapshot, train, unchanged
from torch import nn

from oneadam.schedules import ExponentialDecay
from oneadam.torch import Adam, LossScaleOptimizer

Make = Callable[..., Any]


def plain(params: Any, **config: Any) -> Any:
    return Adam(params, **config)


def scaled(params: Any, **config: Any) -> Any:
    return LossScaleOptimizer(Adam(params, **config), initial_scale=1.0)


both = pytest.mark.parametrize("make", [plain, scaled])


def averages(optimizer: Any) -> list[torch.Tensor]:
    return [own["average"].clone() for own in optimizer.state.values()]


class TestAveraged:
    """Parameters that hold their averages for a while."""

    @both
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    def test_inside_and_outside_of_the_block(self, make: Make, dtype: torch.dtype) -> None:
        params = [
            *parameters((3,), (2, 2), dtype=dtype),
            nn.Parameter(torch.ones(8, dtype=dtype)[::2]),
        ]
        optimizer = make(params, use_ema=True, ema_momentum=0.5, lr=0.1)
        train(optimizer, params, range(5))
        before = snapshot(optimizer)
        places = [p.data_ptr() for p in params]
        with optimizer.averaged():
            for param, average in zip(params, averages(optimizer), strict=True):
                assert torch.equal(param, average.to(dtype))
                assert not torch.equal(param.double(), torch.zeros_like(param).double())
            assert [p.data_ptr() for p in params] == places
        same(before, snapshot(optimizer))

    @both
    def test_what_would_mix_both_up_is_refused(self, make: Make, tmp_path: Any) -> None:
        params = parameters((3,))
        optimizer = make(params, use_ema=True)
        train(optimizer, params, range(2))
        state = optimizer.state_dict()
        with optimizer.averaged():
            for action in (
                optimizer.step,
                lambda: optimizer.averaged().__enter__(),
                optimizer.finalize_variable_values,
                lambda: optimizer.save(tmp_path / "file"),
                lambda: optimizer.load_state_dict(state),
                lambda: copy.deepcopy(optimizer),
            ):
                with pytest.raises(RuntimeError, match="averag"):
                    action()
        train(optimizer, params, range(2))
        assert optimizer.calls == 4

    def test_an_error_inside_brings_the_parameters_back(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, use_ema=True)
        train(optimizer, params, range(3))
        with unchanged(optimizer), pytest.raises(KeyError), optimizer.averaged():
            raise KeyError("no")
        train(optimizer, params, range(1))

    @pytest.mark.parametrize("config", [{}, {"use_ema": True}], ids=["without", "not yet"])
    def test_without_averages_nothing_changes(self, config: dict[str, Any]) -> None:
        params = parameters((3,))
        optimizer = Adam(params, **config)
        if not config:
            train(optimizer, params, range(2))
        before = array_of(params[0])
        with optimizer.averaged():
            assert (array_of(params[0]) == before).all()
        optimizer.finalize_variable_values()
        assert (array_of(params[0]) == before).all()


class TestFinalize:
    """Parameters that become their averages for good."""

    @both
    def test_by_parameter_name_or_all(self, make: Make) -> None:
        for choose in (
            lambda p: [p[1]],
            lambda p: ["b"],
            lambda p: [("b", p[1])],
            lambda p: iter([p[1]]),
            lambda p: p[1],
            lambda p: "b",
        ):
            params = parameters((3,), (2,))
            optimizer = make([*zip("ab", params, strict=True)], use_ema=True, lr=0.1)
            train(optimizer, params, range(3))
            first = array_of(params[0])
            optimizer.finalize_variable_values(choose(params))
            assert torch.equal(params[1], averages(optimizer)[1])
            assert (array_of(params[0]) == first).all()
            optimizer.finalize_variable_values()
            assert torch.equal(params[0], averages(optimizer)[0])
            train(optimizer, params, range(2))

    def test_of_strangers_is_refused(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, use_ema=True)
        train(optimizer, params, range(2))
        for stranger in (parameters((3,)), ["b"], [array_of(params[0])]):
            with unchanged(optimizer), pytest.raises((TypeError, ValueError)):
                optimizer.finalize_variable_values(stranger)


class TestFlush:
    """Windows closed before they are full."""

    @both
    @pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.5}, {"maximize": True}])
    def test_takes_the_mean_of_what_there_is(self, make: Make, clip: dict[str, Any]) -> None:
        params = parameters((3,), (2,))
        others = alike(params)
        optimizer = make(params, lr=0.1, eps=0.1, gradient_accumulation_steps=4, **clip)
        other = make(others, lr=0.1, eps=0.1, **clip)
        train(optimizer, params, range(2))
        optimizer.flush()
        total = [0.0 * p for p in others]
        for seed in range(2):
            give(others, seed)
            total = [t + p.grad / 2 for t, p in zip(total, others, strict=True)]
        for param, mean in zip(others, total, strict=True):
            param.grad = mean.detach()
        other.step()
        for param, beside in zip(params, others, strict=True):
            torch.testing.assert_close(param, beside, rtol=1e-6, atol=1e-7)
        assert (optimizer.calls, optimizer.updates) == (2, 1)
        optimizer.flush()
        assert optimizer.updates == 1
        train(optimizer, params, range(4))
        assert (optimizer.calls, optimizer.updates) == (6, 2)

    def test_needs_no_gradients(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, gradient_accumulation_steps=2)
        train(optimizer, params, [0])
        optimizer.zero_grad()
        optimizer.flush()
        assert optimizer.updates == 1
        assert not optimizer.state[params[0]]["gradient_accumulator"].any()


class TestExclusions:
    """Parameters that do not decay."""

    @pytest.mark.parametrize(
        "exclusions",
        [
            lambda model: {"var_names": ["bias"]},
            lambda model: {"var_names": [re.compile(r"^bias$")]},
            lambda model: {"var_list": [model.bias]},
            lambda model: {"var_list": ["bias"]},
        ],
        ids=range(4),
    )
    @both
    def test_by_part_pattern_name_or_parameter(self, make: Make, exclusions: Any) -> None:
        model = nn.Linear(3, 2)
        optimizer = make(model.named_parameters(), lr=0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(**exclusions(model))
        before = copy.deepcopy(model)
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
        torch.testing.assert_close(model.weight, before.weight * 0.95)
        assert torch.equal(model.bias, before.bias)
        with pytest.raises(RuntimeError, match="first step"):
            optimizer.exclude_from_weight_decay(**exclusions(model))

    def test_hold_in_every_group_and_through_configurations(self) -> None:
        params = parameters((3,), (2,))
        groups = [{"params": [("a", params[0])]}, {"params": [("b", params[1])]}]
        optimizer = Adam(groups, lr=0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["b"])
        other = Adam.from_config(optimizer.get_config(), [*zip("ab", alike(params), strict=True)])
        for which in (optimizer, other):
            for group in which.param_groups:
                for param in group["params"]:
                    param.grad = torch.zeros_like(param)
            before = array_of(which.param_groups[-1]["params"][-1])
            which.step()
            assert (array_of(which.param_groups[-1]["params"][-1]) == before).all()
        assert torch.equal(params[0], other.param_groups[0]["params"][0])

    def test_of_strangers_are_refused(self) -> None:
        model = nn.Linear(3, 2)
        optimizer = Adam(model.named_parameters())
        for wrong in ({"var_list": ["offset"]}, {"var_list": parameters((2,))}, {"var_list": [1]},
                      {"var_names": [1]}, {"var_names": "bias"}):  # fmt: skip
            with pytest.raises((TypeError, ValueError)):
                optimizer.exclude_from_weight_decay(**wrong)


class TestMetrics:
    """Plain numbers to log."""

    def test_of_a_whole_run(self) -> None:
        params = parameters((2,), ())
        optimizer = Adam(params, lr=ExponentialDecay(0.1, 1, 0.5), global_clipnorm=2.0)
        assert optimizer.metrics()["calls"] == 0
        params[0].grad, params[1].grad = torch.tensor([3.0, 4.0]), torch.tensor(12.0)
        optimizer.step()
        optimizer.step()
        metrics = optimizer.metrics()
        assert metrics == {
            "learning_rate": 0.05, "calls": 2, "updates": 2, "skipped_calls": 0,
            "gradient_norm": 13.0, "clip_scale": pytest.approx(2 / 13),
        }  # fmt: skip
        assert {type(value) for value in metrics.values()} <= {int, float}
        assert json.dumps(metrics)

    def test_of_the_loss_scale(self) -> None:
        params = parameters((2,))
        assert Adam(params, loss_scale_factor=8.0).metrics()["loss_scale"] == 8.0
        optimizer = LossScaleOptimizer(Adam(params), initial_scale=8.0)
        params[0].grad = torch.full((2,), float("nan"))
        optimizer.step()
        found = optimizer.metrics()
        assert (found["loss_scale"], found["skipped_calls"], found["calls"]) == (4.0, 1, 0)


class TestConfigurations:
    """What makes an equal optimizer."""

    @both
    def test_go_through_json(self, make: Make) -> None:
        params = parameters((3,))
        optimizer = make(
            params, lr=ExponentialDecay(0.1, 2, 0.5), betas=(0.8, 0.99), eps=1e-3, amsgrad=True,
            weight_decay=0.1, global_clipnorm=1.0, use_ema=True, epsilon_hat=False, maximize=True,
        )  # fmt: skip
        config = json.loads(json.dumps(optimizer.get_config()))
        before = copy.deepcopy(config)
        others = alike(params)
        other = type(optimizer).from_config(config, others)
        assert config == before
        train(optimizer, params, range(3))
        train(other, others, range(3))
        same(snapshot(optimizer), snapshot(other))
        assert other.get_config() == optimizer.get_config()

    def test_functions_have_none(self) -> None:
        with pytest.raises(ValueError, match="learning_rate"):
            Adam(parameters((3,)), lr=lambda: 0.1).get_config()

    def test_unknown_keys_are_refused(self) -> None:
        with pytest.raises(ValueError, match="momentum"):
            Adam.from_config({"momentum": 0.9}, parameters((3,)))


def test_a_loss_is_scaled_and_its_gradients_unscaled() -> None:
    params = parameters((3,))
    judge = Beside(Adam(params, loss_scale_factor=8.0), {"loss_scale_factor": 8.0}, [{}])
    for seed in range(3):
        give(params, seed, scale=8.0)
        judge.step()
    assert judge.optimizer.scale_loss(2.0) == 16.0
    assert Adam(params).scale_loss(2.0) == 2.0

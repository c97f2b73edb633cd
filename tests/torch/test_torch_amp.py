"""Mixed precision: torch's gradient scaler, autocast, narrow parameters, and our own loss scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from beside import alike, parameters, same, snapshot, train, unchanged
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from oneadam.torch import Adam, LossScaleOptimizer

INF = float("inf")
CONFIGS: dict[str, dict[str, Any]] = {
    "bare": {},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5, "weight_decay": 0.1},
    "clipvalue": {"clipvalue": 0.1, "amsgrad": True},
    "maximize": {"maximize": True, "global_clipnorm": 0.5},
    "window": {"gradient_accumulation_steps": 3, "use_ema": True, "global_clipnorm": 0.5},
}
BROKEN = (2, 3, 7)
"""The calls that overflow."""


def loss(params: list[Parameter], call: int) -> Tensor:
    return sum(((p + 0.1 * call) ** 2).sum() for p in params)  # type: ignore[return-value]


def scaled_call(
    scaler: GradScaler, optimizer: Any, params: list[Parameter], call: int, unscale: float | None
) -> None:
    """One call as torch's documentation has it; some overflow."""
    optimizer.zero_grad()
    scaler.scale(loss(params, call) * (INF if call in BROKEN else 1.0)).backward()
    if unscale is not None:
        scaler.unscale_(optimizer)
        clip_grad_norm_(params, unscale)
    scaler.step(optimizer)
    scaler.update()


def plain_call(optimizer: Any, params: list[Parameter], call: int, limit: float | None) -> None:
    """The same without a scaler; none overflows."""
    optimizer.zero_grad()
    loss(params, call).backward()
    if limit is not None:
        clip_grad_norm_(params, limit)
    optimizer.step()


class TestGradScaler:
    """`torch.amp.GradScaler`, through the protocol of torch's own fused optimizers."""

    @pytest.mark.parametrize("unscale", [None, 0.3])
    @pytest.mark.parametrize("name", CONFIGS)
    def test_changes_nothing_but_what_overflows(self, name: str, unscale: float | None) -> None:
        params = parameters((3,), (2, 2))
        others = alike(params)
        optimizer, other = (
            Adam(params, lr=0.1, **CONFIGS[name]),
            Adam(others, lr=0.1, **CONFIGS[name]),
        )
        scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        for call in range(14):
            before = snapshot(optimizer)
            scaled_call(scaler, optimizer, params, call, unscale)
            if call not in BROKEN:
                plain_call(other, others, call, unscale)
                continue
            after = snapshot(optimizer)
            if call == BROKEN[0]:
                assert any(key.endswith("exp_avg") for key in before)
            before["group 0/skipped_calls"] = after["group 0/skipped_calls"]
            same(before, after)
        assert optimizer.metrics()["skipped_calls"] == len(BROKEN)
        for group in optimizer.param_groups:
            group["skipped_calls"] = 0
        same(snapshot(other), snapshot(optimizer))
        assert scaler.get_scale() not in (1.0, 2.0**10)
        assert not hasattr(optimizer, "found_inf")

    def test_a_lost_scale_would_be_seen(self) -> None:
        params = parameters((3,))
        others = alike(params)
        optimizer, other = Adam(params, eps=1.0), Adam(others, eps=1.0)
        scaler = GradScaler("cpu", init_scale=2.0**4)
        scaled_call(scaler, optimizer, params, 0, None)
        (scaler.get_scale() * loss(others, 0)).backward()
        other.step()
        assert not torch.equal(params[0], others[0])

    @pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
    def test_decides_before_on_nonfinite(self, on_nonfinite: str) -> None:
        params = parameters((3,))
        optimizer = Adam(params, on_nonfinite=on_nonfinite)
        scaler = GradScaler("cpu")
        for call in range(5):
            scaled_call(scaler, optimizer, params, call, None)
        assert (optimizer.calls, optimizer.metrics()["skipped_calls"]) == (3, 2)
        assert torch.isfinite(params[0]).all()

    def test_of_several_calls_before_a_step(self) -> None:
        params = parameters((3,))
        others = alike(params)
        optimizer, other = Adam(params), Adam(others)
        scaler = GradScaler("cpu")
        for call in (10, 11, 12):
            scaler.scale(loss(params, call)).backward()
            loss(others, call).backward()
        scaler.step(optimizer)
        scaler.update()
        other.step()
        assert torch.equal(params[0], others[0])

    def test_over_two_optimizers(self) -> None:
        params = parameters((3,), (2,))
        first, second = (Adam([p], lr=0.1) for p in params)
        scaler = GradScaler("cpu")
        before = params[1].detach().clone()
        scaler.scale(params[0].sum() * INF + params[1].sum()).backward()
        scaler.step(first)
        scaler.step(second)
        scaler.update()
        assert (first.calls, second.calls) == (0, 1)
        assert (params[1] != before).all()

    def test_switched_off(self) -> None:
        params = parameters((3,))
        others = alike(params)
        optimizer, other = Adam(params), Adam(others)
        for call in (10, 11):
            scaled_call(GradScaler("cpu", enabled=False), optimizer, params, call, 0.1)
            plain_call(other, others, call, 0.1)
        assert torch.equal(params[0], others[0])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_of_narrow_gradients(self, dtype: torch.dtype) -> None:
        params = parameters((3,), dtype=dtype)
        optimizer = Adam(params, lr=0.1)
        scaler = GradScaler("cpu", init_scale=2.0**3)
        for call in (10, 11, 12):
            scaled_call(scaler, optimizer, params, call, None)
        assert optimizer.calls == 3
        assert optimizer.state[params[0]]["exp_avg"].dtype == torch.float32

    @pytest.mark.parametrize("own", ["factor", "optimizer"])
    def test_beside_a_loss_scale_of_ours_is_refused(self, own: str) -> None:
        params = parameters((3,))
        optimizer: Any = (
            Adam(params, loss_scale_factor=8.0)
            if own == "factor"
            else LossScaleOptimizer(Adam(params))
        )
        scaler = GradScaler("cpu")
        scaler.scale(loss(params, 0)).backward()
        with unchanged(optimizer), pytest.raises(ValueError, match="GradScaler"):
            scaler.step(optimizer)

    def test_an_error_in_its_step_leaves_no_trace(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params)
        train(optimizer, params, [0])
        scaler = GradScaler("cpu")
        scaler.scale(loss(params, 0) * INF).backward()
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match="lr must be a finite number >= 0, received -1"):
            scaler.step(optimizer)
        optimizer.param_groups[0]["lr"] = 0.1
        train(optimizer, params, [0])
        assert optimizer.calls == 2


class TestAutocast:
    """Models computed in bfloat16."""

    @staticmethod
    def learn(optimizer: Any, model: nn.Module, steps: int) -> list[float]:
        inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        targets = inputs.sum(1, keepdim=True)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                error = ((model(inputs) - targets) ** 2).mean()
            optimizer.scale_loss(error).backward()
            optimizer.step()
            losses.append(error.item())
        return losses

    @pytest.mark.parametrize("narrow", [False, True])
    def test_learns(self, narrow: bool) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        if narrow:
            model.to(torch.bfloat16)
        for optimizer in (
            Adam(model.parameters(), lr=0.02, global_clipnorm=1.0),
            LossScaleOptimizer(Adam(model.parameters(), lr=0.02)),
        ):
            losses = self.learn(optimizer, model, 40)
            assert losses[-1] < losses[0]
        assert losses[-1] < 0.2

    def test_around_a_step_changes_nothing(self) -> None:
        params = parameters((3,), (2, 2))
        others = alike(params)
        optimizer, other = Adam(params, clipnorm=0.5), Adam(others, clipnorm=0.5)
        with torch.autocast("cpu", torch.bfloat16):
            train(optimizer, params, range(3))
        train(other, others, range(3))
        same(snapshot(optimizer), snapshot(other))


class TestLossScaleOptimizer:
    """Our own dynamic loss scale, as an optimizer of torch."""

    def test_skips_halves_and_doubles(self) -> None:
        params = parameters((3,), (2, 2))
        others = alike(params)
        inner = Adam(params, lr=0.1, **CONFIGS["window"])
        optimizer = LossScaleOptimizer(inner, initial_scale=2.0**10, dynamic_growth_steps=4)
        other = Adam(others, lr=0.1, **CONFIGS["window"])
        scales = []
        for call in range(14):
            optimizer.zero_grad()
            factor = INF if call in BROKEN else 1.0
            optimizer.scale_loss(loss(params, call) * factor).backward()
            optimizer.step()
            scales.append(optimizer.scale)
            if call not in BROKEN:
                plain_call(other, others, call, None)
        wanted = [10, 10, 9, 8, 8, 8, 8, 7, 7, 7, 7, 8, 8, 8]
        assert scales == [2.0**power for power in wanted]
        for p, q in zip(params, others, strict=True):
            assert torch.equal(p, q)
            assert torch.equal(inner.state[p]["average"], other.state[q]["average"])
        assert (optimizer.calls, optimizer.updates) == (other.calls, other.updates)
        assert optimizer.metrics()["loss_scale"] == optimizer.scale

    def test_its_groups_and_state_are_those_inside(self) -> None:
        params = parameters((3,))
        inner = Adam(params)
        optimizer = LossScaleOptimizer(inner)
        assert optimizer.inner_optimizer is inner
        assert optimizer.param_groups is inner.param_groups
        optimizer.param_groups[0]["lr"] = 0.5
        assert inner.learning_rate == optimizer.learning_rate == 0.5
        optimizer.add_param_group({"params": parameters((2,)), "lr": 0.1})
        assert len(inner.param_groups) == 2
        train(optimizer, [p for g in optimizer.param_groups for p in g["params"]], range(2))
        assert optimizer.state is inner.state
        assert len(inner.state) == 2

    def test_around_a_fixed_one_or_another_optimizer_is_refused(self) -> None:
        with pytest.raises(ValueError, match="loss_scale_factor"):
            LossScaleOptimizer(Adam(parameters((2,)), loss_scale_factor=2.0))
        with pytest.raises(TypeError, match="Adam"):
            LossScaleOptimizer(torch.optim.AdamW(parameters((2,))))  # type: ignore[arg-type]

    def test_many_skipped_calls_in_a_row_warn(self) -> None:
        params = parameters((3,))
        optimizer = LossScaleOptimizer(Adam(params), initial_scale=4.0)
        params[0].grad = torch.full((3,), INF)
        for _ in range(49):
            optimizer.step()
        assert optimizer.scale == 1.0
        with pytest.warns(UserWarning, match="50"):
            optimizer.step()

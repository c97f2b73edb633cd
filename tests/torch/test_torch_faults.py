"""Faults that the torch door once had, each as small as it can be shown."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from oneadam.torch import Adam, LossScaleOptimizer  # noqa: E402


def parameters(*sizes: int) -> list[Any]:
    """Parameters of ones, with gradients of ones."""
    params = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def moved(change: Any) -> float:
    """How far a step goes after a first one and a change of its group."""
    (param,) = parameters(1)
    optimizer = Adam([param], lr=0.5)
    optimizer.step()
    before = param.item()
    change(optimizer.param_groups[0])
    param.grad.fill_(3.0)
    optimizer.step()
    return before - param.item()


def test_entries_changed_in_place_are_seen() -> None:
    def exchanged(group: dict[str, Any]) -> None:
        group["betas"], group["lr"] = (0.1, 0.999), 0.25

    def in_place(group: dict[str, Any]) -> None:
        group["betas"], group["lr"] = [0.9, 0.999], np.array(0.5)
        group["betas"][0] = 0.1
        group["lr"] *= 0.5

    assert moved(in_place) == moved(exchanged) != moved(lambda group: None)


def test_entries_that_could_be_changed_in_place_are_replaced_by_numbers() -> None:
    (param,) = parameters(1)
    optimizer = Adam([param])
    group, betas = optimizer.param_groups[0], [0.5, 0.9]
    group["betas"] = betas
    optimizer.step()
    assert group["betas"] == (0.5, 0.9)
    betas[0] = 0.0
    optimizer.step()
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)


def test_an_equal_number_takes_the_place_of_a_tensor() -> None:
    (param,) = parameters(1)
    rate = torch.tensor(0.5)
    optimizer = Adam([param], lr=rate)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    rate.fill_(100.0)
    before = param.item()
    optimizer.step()
    assert abs(before - param.item()) < 1.0


def test_a_parameter_called_like_the_optimizer_is_not_saved_over(tmp_path: Path) -> None:
    (param,) = parameters(1)
    optimizer = Adam([("adam", param)])
    optimizer.step()
    with pytest.raises(ValueError, match="adam/updates"):
        optimizer.save(tmp_path / "adam.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [float("nan"), 0.25])
def test_a_scale_out_of_range_is_refused_before_anything_is_loaded(scale: float) -> None:
    (param,) = parameters(1)
    optimizer = LossScaleOptimizer(Adam([param]), initial_scale=8.0)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0].update(loss_scale=scale, lr=0.75)
    with pytest.raises(ValueError, match="loss scale"):
        optimizer.load_state_dict(saved)
    assert (optimizer.scale, optimizer.learning_rate) == (8.0, 0.001)
    optimizer.step()


def windowed() -> tuple[list[Any], Adam]:
    """Two parameters in the middle of a window."""
    params = parameters(1, 1)
    optimizer = Adam(params, gradient_accumulation_steps=2)
    optimizer.step()
    return params, optimizer


def test_a_window_without_all_of_its_sums_is_begun_anew() -> None:
    _, optimizer = windowed()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][0]["gradient_accumulator"]
    _, resumed = windowed()
    with pytest.warns(UserWarning, match="gradient_accumulator"):
        resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["accumulated_calls"] == 0
    for own in resumed.state.values():
        assert not own["gradient_accumulator"].any()
        assert not own["in_window"]


def test_moments_without_their_count_are_refused() -> None:
    _, optimizer = windowed()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][1]["step"]
    with pytest.raises(ValueError, match="step"):
        windowed()[1].load_state_dict(saved)


def test_a_trained_parameter_without_saved_state_is_told_of() -> None:
    _, optimizer = windowed()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][1]
    _, resumed = windowed()
    with pytest.warns(UserWarning, match="all of 1"):
        resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["accumulated_calls"] == 0


def test_counters_below_zero_are_refused() -> None:
    _, optimizer = windowed()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["calls"] = -5
    with pytest.raises(ValueError, match="counters must be >= 0"):
        optimizer.load_state_dict(saved)


def test_the_configuration_is_saved_with_a_schedule_too(tmp_path: Path) -> None:
    from oneadam import checkpoint
    from oneadam.schedules import ExponentialDecay

    (param,) = parameters(1)
    optimizer = Adam([param], ExponentialDecay(0.1, 10, 0.5))
    optimizer.step()
    optimizer.save(tmp_path / "adam.safetensors")
    assert "ExponentialDecay" in checkpoint.read(tmp_path / "adam.safetensors")[1]["config"]


def test_a_refused_scaler_leaves_no_trace() -> None:
    (param,) = parameters(1)
    for optimizer in (Adam([param], loss_scale_factor=2.0), LossScaleOptimizer(Adam([param]))):
        optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.ones(())
        with pytest.raises(ValueError, match="GradScaler"):
            optimizer.step()
        optimizer.step()
        assert optimizer.calls == 1


class TestAwayFromHostMemory:
    """Faults of the way that tensors of a device take, with host memory standing in for one."""

    @pytest.fixture(autouse=True)
    def _away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("oneadam._engines.torch.tensors.is_host", lambda device: False)

    def test_a_copy_has_the_counters_that_the_device_knows(self) -> None:
        (param,) = parameters(1)
        optimizer = Adam([param], on_nonfinite="skip")
        optimizer.step()
        param.grad = torch.full_like(param, float("inf"))
        optimizer.step()
        twin = copy.deepcopy(optimizer)
        assert (twin.calls, twin.metrics()["skipped_calls"]) == (1, 1)

    def test_parameters_that_come_to_share_memory_are_refused(self) -> None:
        one, other = parameters(2, 2)
        optimizer = Adam([one, other])
        optimizer.step()
        other.data = one.data
        with pytest.raises(ValueError, match="must not share memory"):
            optimizer.step()

    def test_a_gradient_that_is_another_parameter_is_read_before_that_changes(self) -> None:
        one, other = parameters(2, 2)
        optimizer = Adam([one, other], lr=0.5)
        other.grad = one.detach()
        optimizer.step()
        assert optimizer.state[other]["exp_avg"].tolist() == pytest.approx([0.1, 0.1])

    def test_norms_of_float64_do_not_overflow(self) -> None:
        param = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
        param.grad = torch.full_like(param, 1e200)
        optimizer = Adam([param], global_clipnorm=1.0)
        optimizer.step()
        assert optimizer.metrics()["gradient_norm"] == pytest.approx(2e200)

"""Learning-rate schedulers of torch, our schedules, and both at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import alike, parameters, spacings, train, unchanged
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from oneadam.schedules import CosineDecay, ExponentialDecay
from oneadam.torch import Adam, LossScaleOptimizer

Make = Callable[[Any], Any]

SCHEDULERS: dict[str, Make] = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=60),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=5),
    "CyclicLR, betas": lambda o: lr_scheduler.CyclicLR(
        o, 0.001, 0.1, step_size_up=5, cycle_momentum=True, base_momentum=0.7
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [5]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.95)]
    ),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LambdaLR from 0": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: min(1.0, epoch / 10)),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 40),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [5, 20]),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, patience=3, factor=0.5),
}


def turn(scheduler: Any) -> None:
    """The next step of a scheduler."""
    scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))


def rates(optimizer: Any) -> list[tuple[float, Any]]:
    return [(float(group["lr"]), group["betas"]) for group in optimizer.param_groups]


def beside(make: Make, ours: Any, theirs: torch.optim.Optimizer) -> tuple[float, set[Any]]:
    """The distance of the parameters after 50 steps, and which rates there were."""
    params, others = (
        [p for group in o.param_groups for p in group["params"]] for o in (ours, theirs)
    )
    schedulers = make(ours), make(theirs)
    seen = set()
    for seed in range(50):
        assert rates(ours) == rates(theirs)
        train(ours, params, [seed])
        train(theirs, others, [seed])
        for scheduler in schedulers:
            turn(scheduler)
        seen.update(rates(ours))
    return spacings(params, others), seen


@pytest.mark.parametrize("kind", ["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_does_what_it_does_to_torchs_optimizer(name: str, kind: str) -> None:
    params = parameters((3,), (2, 2))
    others = alike(params)
    rate = (lambda: 0.05) if kind == "number" else (lambda: torch.tensor(0.05))
    ours = Adam([{"params": params[:1], "lr": rate()}, {"params": params[1:]}],
                lr=rate(), epsilon_hat=False, eps=1e-8)  # fmt: skip
    theirs = torch.optim.AdamW([{"params": others[:1], "lr": rate()}, {"params": others[1:]}],
                               lr=rate(), weight_decay=0.0)  # fmt: skip
    distance, seen = beside(SCHEDULERS[name], ours, theirs)
    assert distance <= 64
    assert len(seen) > 1
    assert any(
        isinstance(group["lr"], torch.Tensor) == (kind == "tensor") for group in ours.param_groups
    )


@pytest.mark.parametrize("name", ["OneCycleLR", "LambdaLR from 0"])
def test_a_scheduler_left_out_is_seen(name: str) -> None:
    params = parameters((3,))
    others = alike(params)
    ours, theirs = Adam(params, lr=0.05), torch.optim.AdamW(others, lr=0.05, weight_decay=0.0)
    scheduler = SCHEDULERS[name](ours)
    for seed in range(50):
        train(ours, params, [seed])
        train(theirs, others, [seed])
        turn(scheduler)
    assert spacings(params, others) > 64


@pytest.mark.parametrize("name", ["OneCycleLR", "SequentialLR", "ReduceLROnPlateau"])
def test_a_scheduler_over_the_dynamic_loss_scale(name: str) -> None:
    params = parameters((3,))
    others = alike(params)
    ours = LossScaleOptimizer(Adam(params, lr=0.05), initial_scale=1.0)
    theirs = Adam(others, lr=0.05)
    distance, seen = beside(SCHEDULERS[name], ours, theirs)
    assert distance == 0.0
    assert len(seen) > 1


def test_a_scheduler_of_one_cycle_changes_betas() -> None:
    params = parameters((3,))
    optimizer = Adam(params)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    first = optimizer.param_groups[0]["betas"]
    for seed in range(5):
        train(optimizer, params, [seed])
        scheduler.step()
    assert optimizer.param_groups[0]["betas"][0] < first[0]
    assert optimizer.param_groups[0]["betas"][1] == first[1] == 0.999


@pytest.mark.parametrize("name", ["OneCycleLR", "ReduceLROnPlateau", "SequentialLR", "LambdaLR"])
def test_a_resumed_scheduler_goes_on(name: str) -> None:
    params = parameters((3,))
    optimizer = Adam(params, lr=0.05)
    scheduler = SCHEDULERS[name](optimizer)
    for seed in range(10):
        train(optimizer, params, [seed])
        turn(scheduler)
    others = alike(params)
    resumed = Adam(others, lr=0.7)
    again = SCHEDULERS[name](resumed)
    resumed.load_state_dict(optimizer.state_dict())
    again.load_state_dict(scheduler.state_dict())
    for seed in range(10, 20):
        train(optimizer, params, [seed])
        train(resumed, others, [seed])
        turn(scheduler)
        turn(again)
    assert rates(resumed) == rates(optimizer)
    assert torch.equal(params[0], others[0])


SCHEDULE = ExponentialDecay(0.1, 2, 0.5)


def schedule_function(call: int) -> float:
    """A schedule as optax writes them."""
    return 0.1 / (1 + call)


class TestSchedules:
    """Our own schedules, and functions."""

    @pytest.mark.parametrize(
        "schedule", [SCHEDULE, CosineDecay(0.1, 10), schedule_function], ids=range(3)
    )
    def test_are_followed_call_by_call(self, schedule: Any) -> None:
        params = parameters((3,))
        others = alike(params)
        optimizer, other = Adam(params, lr=schedule), Adam(others)
        for call in range(6):
            assert optimizer.learning_rate == pytest.approx(schedule(call), rel=1e-12)
            other.param_groups[0]["lr"] = schedule(call)
            train(optimizer, params, [call])
            train(other, others, [call])
            assert torch.equal(params[0], others[0])
            assert optimizer.param_groups[0]["lr"] == optimizer.metrics()["learning_rate"]
            assert optimizer.metrics()["learning_rate"] == schedule(call)

    def test_of_groups_of_their_own(self) -> None:
        first, second = parameters((3,), (2,))
        optimizer = Adam([{"params": [first], "lr": SCHEDULE}, {"params": [second]}], lr=0.3)
        train(optimizer, [first, second], range(3))
        assert [g["lr"] for g in optimizer.param_groups] == [SCHEDULE(2), 0.3]

    def test_are_assigned_and_replaced(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, lr=SCHEDULE)
        train(optimizer, params, range(3))
        optimizer.learning_rate = 0.3
        train(optimizer, params, range(2))
        assert optimizer.param_groups[0]["lr"] == optimizer.learning_rate == 0.3
        optimizer.learning_rate = schedule_function
        assert optimizer.learning_rate == schedule_function(5)
        train(optimizer, params, range(1))
        assert optimizer.param_groups[0]["lr"] == schedule_function(5)

    def test_count_calls_not_updates(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, lr=SCHEDULE, gradient_accumulation_steps=3)
        train(optimizer, params, range(6))
        assert optimizer.metrics()["learning_rate"] == SCHEDULE(5)

    def test_go_on_after_load_state_dict(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, lr=SCHEDULE)
        train(optimizer, params, range(3))
        others = alike(params)
        resumed = Adam(others, lr=SCHEDULE)
        resumed.load_state_dict(optimizer.state_dict())
        assert resumed.learning_rate == SCHEDULE(3)
        train(optimizer, params, range(3, 6))
        train(resumed, others, range(3, 6))
        assert torch.equal(params[0], others[0])


def always(rate: float) -> Callable[[], float]:
    return lambda: rate


class TestBothAtOnce:
    """A scheduler of torch over a learning rate that something else decides."""

    @pytest.mark.parametrize("rate", [SCHEDULE, schedule_function, always(0.1)], ids=range(3))
    @pytest.mark.parametrize("name", ["OneCycleLR", "LambdaLR", "MultiStepLR"])
    def test_is_refused_as_soon_as_it_wants_another_rate(self, rate: Any, name: str) -> None:
        params = parameters((3,))
        optimizer = Adam(params, lr=rate)
        with pytest.raises(ValueError, match="lr must be left to the learning_rate") as caught:
            self.go_on(optimizer, params, name)
        # Before the first call, nobody but the scheduler asks what `always` returns.
        assert "nan" not in str(caught.value) or name == "LambdaLR"

    @staticmethod
    def go_on(optimizer: Adam, params: Any, name: str) -> None:
        scheduler: LRScheduler = SCHEDULERS[name](optimizer)
        for seed in range(10):
            train(optimizer, params, [seed])
            scheduler.step()

    def test_is_refused_for_betas(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, beta_1=always(0.9))
        with pytest.raises(ValueError, match="betas must be left to the beta_1"):
            self.go_on(optimizer, params, "OneCycleLR")

    def test_changes_nothing_when_refused(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, lr=SCHEDULE)
        train(optimizer, params, range(3))
        optimizer.param_groups[0]["lr"] = 0.7
        with unchanged(optimizer), pytest.raises(ValueError, match="lr must be left"):
            optimizer.step()

    def test_assigning_the_learning_rate_is_the_way_out(self) -> None:
        params = parameters((3,))
        optimizer = Adam(params, lr=SCHEDULE)
        train(optimizer, params, range(3))
        optimizer.learning_rate = 0.1
        self.go_on(optimizer, params, "MultiStepLR")

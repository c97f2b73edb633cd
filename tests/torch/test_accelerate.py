"""Hugging Face Accelerate with the optimizer, which needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trainers
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from oneadam.torch import Adam

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

BATCH = 20
BATCHES = 7
"""In an epoch; odd, so that the last accumulation window of an epoch is incomplete."""
EVERY = {"gradient_accumulation_steps": None}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """All accelerators of a process share their settings; forget those of other tests."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with trainers.one_thread():
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Run:
    """A training loop as Accelerate's documentation writes it."""

    def __init__(self, recipe: dict[str, Any] | None = None, **options: Any) -> None:
        self.accelerator = Accelerator(cpu=True, **({"mixed_precision": "no"} | options))
        self.network = trainers.network()
        self.adam = Adam(self.network.named_parameters(), **(trainers.RECIPE | (recipe or {})))
        scheduler = torch.optim.lr_scheduler.StepLR(self.adam, 5, gamma=0.5)
        loader = DataLoader(trainers.data(BATCH * BATCHES).training, batch_size=BATCH)
        self.model, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            self.network, self.adam, loader, scheduler
        )
        self.history = trainers.History(self.network, lambda: self.adam.updates)
        self.rates: list[float] = []

    def train(self, epochs: int, clip: float | None = None) -> Run:
        for _ in range(epochs):
            for images, labels in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(cross_entropy(self.model(images), labels))
                    if clip is not None and self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                    self.optimizer.step()
                    assert not self.optimizer.step_was_skipped
                    if self.accelerator.sync_gradients:
                        self.rates.append(self.adam.metrics()["learning_rate"])
                    self.scheduler.step()
                    # At the start it would throw away what Accelerate has accumulated.
                    self.optimizer.zero_grad()
                self.history.look()
        return self

    @property
    def ended(self) -> trainers.Values:
        return trainers.values(self.network)


def bare(epochs: int, **recipe: Any) -> nn.Module:
    """The same without Accelerate."""
    network = trainers.network()
    adam = Adam(network.named_parameters(), **(trainers.RECIPE | recipe))
    scheduler = torch.optim.lr_scheduler.StepLR(adam, 5, gamma=0.5)
    loader = DataLoader(trainers.data(BATCH * BATCHES).training, batch_size=BATCH)
    for _ in range(epochs):
        for images, labels in loader:
            adam.zero_grad()
            cross_entropy(network(images), labels).backward()
            adam.step()
            scheduler.step()
    return network


def test_a_prepared_run_is_the_bare_one() -> None:
    run = Run().train(2)
    assert run.adam.updates == BATCHES
    assert trainers.differing(run.ended, trainers.values(bare(2))) == []
    assert trainers.differing(run.ended, trainers.values(bare(2, weight_decay=0.02))) != []


def test_averages_flush_and_metrics_are_those_of_the_optimizer_itself() -> None:
    run = Run().train(1)
    assert run.optimizer.optimizer is run.adam
    with run.adam.averaged():
        assert trainers.far(run.ended, trainers.averages_of(run.history.after)) == []
    assert trainers.differing(run.ended, run.history.after[-1]) == []
    run.adam.flush()
    run.history.look()
    assert len(run.history.after) == BATCHES // 2 + 1
    run.adam.finalize_variable_values()
    assert trainers.far(run.ended, trainers.averages_of(run.history.after)) == []
    assert trainers.far(run.ended, run.history.after[-1]) != []
    assert run.adam.metrics()["updates"] == len(run.history.after)


def test_accumulation_of_accelerate_equals_ours() -> None:
    ours = Run().train(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    theirs = Run(EVERY, gradient_accumulation_steps=2).train(1)
    assert (ours.adam.calls, theirs.adam.calls) == (BATCHES, BATCHES // 2 + 1)
    assert trainers.far(ours.history.after[0], theirs.history.after[0]) == []
    assert trainers.far(ours.history.after[0], theirs.history.after[1]) != []


def test_both_accumulations_together() -> None:
    run = Run(gradient_accumulation_steps=2).train(2)
    # Accelerate closes its window at the end of an epoch, so there are 4 calls in each.
    assert (run.adam.calls, run.adam.updates) == (8, 4)


def test_accelerate_clips_and_then_the_optimizer() -> None:
    run = Run(EVERY | {"global_clipnorm": 0.01}).train(1, clip=0.05)
    metrics = run.adam.metrics()
    assert metrics["gradient_norm"] == pytest.approx(0.05, rel=1e-4)
    assert metrics["clip_scale"] == pytest.approx(0.2, rel=1e-4)
    alone = Run(EVERY | {"global_clipnorm": 0.01}).train(1)
    assert alone.adam.metrics()["gradient_norm"] > 0.05


def test_the_scheduler_steps_with_the_optimizer() -> None:
    run = Run().train(2)
    assert run.rates == [0.01 * 0.5 ** (call // 5) for call in range(2 * BATCHES)]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = Run().train(3, clip=0.7)
    first = Run().train(1, clip=0.7)
    first.accelerator.save_state(tmp_path)
    assert first.adam.param_groups[0]["accumulated_calls"] == 1
    resumed = Run()
    resumed.accelerator.load_state(tmp_path)
    assert trainers.differing(resumed.ended, first.ended) == []
    assert trainers.unlike(resumed.adam.state_dict(), first.adam.state_dict()) == []
    resumed.train(2, clip=0.7)
    assert trainers.differing(resumed.ended, whole.ended) == []
    assert trainers.unlike(resumed.adam.state_dict(), whole.adam.state_dict()) == []
    resumed.adam.finalize_variable_values()
    whole.adam.finalize_variable_values()
    assert trainers.differing(resumed.ended, whole.ended) == []
    assert resumed.rates == whole.rates[BATCHES:]


def test_resuming_without_the_state_of_the_optimizer_is_another_run(tmp_path: Path) -> None:
    whole = Run().train(2)
    first = Run().train(1)
    first.accelerator.save_state(tmp_path)
    resumed = Run()
    resumed.network.load_state_dict(first.network.state_dict())
    resumed.train(1)
    assert trainers.far(resumed.ended, whole.ended) != []


def test_bfloat16_autocast() -> None:
    run = Run(EVERY, mixed_precision="bf16").train(2)
    assert all(p.dtype == torch.float32 for p in run.network.parameters())
    assert trainers.far(run.ended, trainers.values(bare(2, **EVERY))) != []
    with run.adam.averaged():
        assert trainers.far(run.ended, trainers.averages_of(run.history.after)) == []

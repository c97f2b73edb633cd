"""The recipe carried out, whatever the framework that computes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from oneadam.cli.digits import Digits, Examples, batches
from oneadam.cli.progress import Tensors
from oneadam.cli.recipe import Epoch, Recipe
from oneadam.schedules import CosineDecay


class Optimizer(Protocol):
    """What the optimizers of all doors have, as far as the demo needs it."""

    @property
    def updates(self) -> int:
        """The number of finished updates."""

    def metrics(self) -> dict[str, float]:
        """Return plain numbers to log."""

    def averaged(self) -> AbstractContextManager[None]:
        """Let the weights hold their averages for a block."""

    def flush(self) -> None:
        """Close an incomplete accumulation window."""

    def save(self, path: Path) -> None:
        """Write a portable checkpoint."""


class Training(Protocol):
    """The demo's network and its optimizer in one framework."""

    @property
    def optimizer(self) -> Optimizer:
        """Of this framework."""

    def step(self, batch: Examples) -> float:
        """Make one call with the gradients of a batch, and return its loss before."""

    def accuracy(self, examples: Examples) -> float:
        """Return the share of examples whose digit is recognised."""

    def tensors(self) -> Tensors:
        """Return all that has to be kept to continue later, by name."""

    def restore(self, tensors: Tensors) -> None:
        """Take over what `tensors` returned, or raise ValueError where it does not fit."""


def arguments(recipe: Recipe, digits: Digits) -> dict[str, Any]:
    """Return what the optimizer is made with, by the names that all doors have."""
    # A schedule counts calls, one per batch.
    calls = recipe.epochs * (len(digits.training.labels) // recipe.batch)
    warm_up = round(recipe.warm_up * calls)
    schedule = CosineDecay(
        0.0,
        decay_steps=calls - warm_up,
        warmup_target=recipe.peak_learning_rate,
        warmup_steps=warm_up,
    )
    return {
        "learning_rate": schedule,
        "weight_decay": recipe.weight_decay,
        "global_clipnorm": recipe.clip,
        "use_ema": True,
        "ema_momentum": recipe.averaging,
        "gradient_accumulation_steps": recipe.accumulation,
    }


def train_epoch(
    training: Training, recipe: Recipe, digits: Digits, number: int
) -> tuple[Epoch, float]:
    """Train for epoch `number` (1, 2, ...), in place.

    Returns:
        What came of it, and how many examples per second were trained on.
    """
    optimizer = training.optimizer
    losses, norms = [], []
    begin = perf_counter()
    for batch in batches(digits.training, size=recipe.batch, seed=recipe.seed, epoch=number):
        updates = optimizer.updates
        losses.append(training.step(batch))
        if optimizer.updates > updates:
            norms.append(optimizer.metrics()["gradient_norm"])
    if number == recipe.epochs:
        # Windows of accumulation run on from epoch to epoch; the last may be incomplete.
        optimizer.flush()
    seconds = perf_counter() - begin

    with optimizer.averaged():
        averaged_accuracy = training.accuracy(digits.held_out)
    epoch = Epoch(
        loss=float(np.mean(losses)),
        accuracy=training.accuracy(digits.held_out),
        averaged_accuracy=averaged_accuracy,
        learning_rate=float(optimizer.metrics()["learning_rate"]),
        gradient_norm=float(np.mean(norms)),
    )
    return epoch, len(losses) * recipe.batch / seconds

"""The recipe carried out with NumPy."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from oneadam.cli.digits import Digits, batches
from oneadam.cli.network import Parameters, accuracy, loss_and_gradients
from oneadam.cli.recipe import Epoch, Recipe
from oneadam.numpy import Adam
from oneadam.schedules import CosineDecay


def make_optimizer(recipe: Recipe, digits: Digits) -> Adam:
    """Make the optimizer of a run, not yet built."""
    # A schedule counts calls, one per batch.
    calls = recipe.epochs * (len(digits.training.labels) // recipe.batch)
    warm_up = round(recipe.warm_up * calls)
    schedule = CosineDecay(
        0.0,
        decay_steps=calls - warm_up,
        warmup_target=recipe.peak_learning_rate,
        warmup_steps=warm_up,
    )
    optimizer = Adam(
        learning_rate=schedule,
        weight_decay=recipe.weight_decay,
        global_clipnorm=recipe.clip,
        use_ema=True,
        ema_momentum=recipe.averaging,
        gradient_accumulation_steps=recipe.accumulation,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def train_epoch(
    parameters: Parameters, optimizer: Adam, recipe: Recipe, digits: Digits, number: int
) -> tuple[Epoch, float]:
    """Train for epoch `number` (1, 2, ...), in place.

    Returns:
        What came of it, and how many examples per second were trained on.
    """
    losses, norms = [], []
    begin = perf_counter()
    for batch in batches(digits.training, size=recipe.batch, seed=recipe.seed, epoch=number):
        loss, gradients = loss_and_gradients(parameters, batch)
        updates = optimizer.updates
        optimizer.apply(gradients)
        losses.append(loss)
        if optimizer.updates > updates:
            norms.append(optimizer.metrics()["gradient_norm"])
    if number == recipe.epochs:
        # Windows of accumulation run on from epoch to epoch; the last may be incomplete.
        optimizer.flush()
    seconds = perf_counter() - begin

    with optimizer.averaged():
        averaged_accuracy = accuracy(parameters, digits.held_out)
    epoch = Epoch(
        loss=float(np.mean(losses)),
        accuracy=accuracy(parameters, digits.held_out),
        averaged_accuracy=averaged_accuracy,
        learning_rate=float(optimizer.metrics()["learning_rate"]),
        gradient_norm=float(np.mean(norms)),
    )
    return epoch, len(losses) * recipe.batch / seconds

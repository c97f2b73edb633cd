"""How the demo trains, and what it keeps of each epoch: the same with every framework."""

from __future__ import annotations

from typing import NamedTuple


class Recipe(NamedTuple):
    """How the network is trained."""

    epochs: int = 40
    seed: int = 0
    batch: int = 16
    accumulation: int = 2
    peak_learning_rate: float = 0.005
    warm_up: float = 0.1
    """Share of the run in which the learning rate rises."""
    weight_decay: float = 0.1
    clip: float = 1.0
    """The largest global norm of a gradient."""
    averaging: float = 0.99
    """Momentum of the moving average of the weights."""


class Epoch(NamedTuple):
    """What one epoch of training came to."""

    loss: float
    """Mean cross-entropy over the batches trained on."""
    accuracy: float
    """Share of the held-out digits that the trained weights recognise."""
    averaged_accuracy: float
    """The same for the moving average of the weights."""
    learning_rate: float
    """The last one of the epoch."""
    gradient_norm: float
    """Mean over the updates, before clipping."""

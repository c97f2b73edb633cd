"""What is under test."""

from oneadam.torch import Adam, LossScaleOptimizer

__all__ = ["Adam", "LossScaleOptimizer"]

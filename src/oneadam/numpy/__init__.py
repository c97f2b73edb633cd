"""The door for NumPy: an optimizer that updates arrays in place.

Example:
    >>> import numpy as np
    >>> from oneadam.numpy import Adam
    >>> weights = {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    >>> optimizer = Adam(learning_rate=0.01, global_clipnorm=1.0)
    >>> optimizer.build(weights)
    >>> optimizer.apply({"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)})
"""

from oneadam.numpy._adam import Adam
from oneadam.numpy._loss_scale import LossScaleOptimizer

__all__ = ["Adam", "LossScaleOptimizer"]

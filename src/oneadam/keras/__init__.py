"""oneadam for Keras: what `keras.optimizers.Adam` documents, on TensorFlow, JAX and PyTorch.

`docs/keras.md` has the details.
"""

from oneadam.keras._adam import Adam
from oneadam.keras._loss_scale import LossScaleOptimizer

__all__ = ["Adam", "LossScaleOptimizer"]

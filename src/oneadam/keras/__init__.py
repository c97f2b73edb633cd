"""oneadam for Keras: what `keras.optimizers.Adam` documents, on TensorFlow, JAX and PyTorch.

`docs/keras.md` has the details.
"""

from oneadam.keras._adam import Adam

__all__ = ["Adam"]

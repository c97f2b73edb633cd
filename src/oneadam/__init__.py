"""Adam as the documentation of `keras.optimizers.Adam` describes it, written once.

The optimizer is reached through a door, one public module per framework: `oneadam.numpy`
updates NumPy arrays in place. `oneadam.schedules` holds the learning-rate schedules and
`oneadam.checkpoint` the file format that all doors share. Importing `oneadam` itself loads
no framework and no compiler.
"""

from oneadam._engines.threads import get_num_threads, set_num_threads

__all__ = ["__version__", "get_num_threads", "set_num_threads"]

__version__ = "0.1.0"

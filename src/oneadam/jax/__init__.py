"""Adam for JAX: a gradient transformation of optax.

>>> from oneadam.jax import adam, step
"""

from oneadam.jax._functions import (
    averaged,
    expect_absences,
    finalize,
    flush,
    load,
    load_state_dict,
    metrics,
    save,
    scale_loss,
    set_learning_rate,
    state_dict,
    step,
)
from oneadam.jax._making import adam, from_config, get_config, loss_scale
from oneadam.jax._state import Absences, AdamState, LossScaleState, Rates

__all__ = [
    "Absences",
    "AdamState",
    "LossScaleState",
    "Rates",
    "adam",
    "averaged",
    "expect_absences",
    "finalize",
    "flush",
    "from_config",
    "get_config",
    "load",
    "load_state_dict",
    "loss_scale",
    "metrics",
    "save",
    "scale_loss",
    "set_learning_rate",
    "state_dict",
    "step",
]

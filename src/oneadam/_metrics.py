"""What an optimizer knows anyway, as plain numbers to log."""

from __future__ import annotations

from oneadam._gradients import Scaling
from oneadam._hyperparameters import Rates
from oneadam._plan import Counters


def metrics(
    counters: Counters, rates: Rates | None, scaling: Scaling | None, loss_scale: float | None
) -> dict[str, float]:
    """Return the counters and whatever else is known.

    Args:
        counters: how far the optimizer has come.
        rates: of the last call, if there was one.
        scaling: of the last update, if there was one; its numbers may be a framework's.
        loss_scale: what the loss is multiplied by, if it is.
    """
    known = {
        "learning_rate": None if rates is None else rates.learning_rate,
        "gradient_norm": None if scaling is None else scaling.gradient_norm,
        "clip_scale": None if scaling is None else scaling.clip_scale,
        "loss_scale": loss_scale,
    }
    return {
        "calls": counters.calls,
        "updates": counters.updates,
        "skipped_calls": counters.skipped_calls,
        **{name: float(value) for name, value in known.items() if value is not None},
    }

"""The optimizers of a trainer that are of this package, and their averages in the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from oneadam.torch import Adam, LossScaleOptimizer

Optimizer = Adam | LossScaleOptimizer


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer itself, where a trainer has wrapped it."""
    # Wrappers may imitate the class of what they wrap, so isinstance does not tell them apart.
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    return optimizer


def ours(optimizers: Iterable[Any]) -> list[Optimizer]:
    """Return those optimizers, unwrapped, that are of this package."""
    inner = (unwrapped(optimizer) for optimizer in optimizers)
    return [optimizer for optimizer in inner if isinstance(optimizer, (Adam, LossScaleOptimizer))]


def ours_or_complaint(optimizers: Iterable[Any], callback: str) -> list[Optimizer]:
    """Return `ours`, of which there must be one at least.

    Raises:
        ValueError: the trainer has none.
    """
    given = list(optimizers)
    found = ours(given)
    if not found:
        names = ", ".join(type(unwrapped(optimizer)).__name__ for optimizer in given) or "none"
        raise ValueError(
            f"{callback} needs a trainer with an Adam or LossScaleOptimizer of oneadam.torch; "
            f"its optimizers are: {names}. Train with one of these, or leave out the callback."
        )
    return found


class Averages:
    """Parameters hold their averages between two events, which no `with` block can span."""

    def __init__(self) -> None:
        self._open: ExitStack | None = None

    @property
    def entered(self) -> bool:
        """Whether the parameters hold their averages now."""
        return self._open is not None

    def enter(self, optimizers: Sequence[Optimizer]) -> None:
        """Let the parameters hold their averages; once they do, nothing happens."""
        if self._open is not None:
            return
        with ExitStack() as stack:
            for optimizer in optimizers:
                stack.enter_context(optimizer.averaged())
                stack.callback(vars(optimizer).pop, "state_dict")
                vars(optimizer)["state_dict"] = partial(self._state_dict, optimizer, optimizers)
            self._open = stack.pop_all()

    def leave(self) -> None:
        """Give the parameters their trained values back; once they have them, nothing happens."""
        stack, self._open = self._open, None
        if stack is not None:
            stack.close()

    def _state_dict(self, optimizer: Optimizer, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
        """Return what a checkpoint that is saved during an evaluation has to hold."""
        # An optimizer gives no state away inside averaged().
        self.leave()
        try:
            return optimizer.state_dict()
        finally:
            self.enter(optimizers)


def finish(optimizers: Iterable[Optimizer]) -> None:
    """Close incomplete windows, then set the parameters to their averages for good."""
    for optimizer in optimizers:
        optimizer.flush()
        optimizer.finalize_variable_values()

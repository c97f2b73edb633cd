"""What an optimizer knows besides what Keras's own does."""

from __future__ import annotations

from typing import Any

from oneadam._exclusions import Exclusions
from oneadam._hyperparameters import Hyperparameters
from oneadam.keras._run import Engine, Run

Variable = Any


class Own:
    """Out of reach of Keras's tracking.

    Args:
        hyperparameters: the optimizer's.
    """

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.is_made = False
        self.exclusions = Exclusions()
        self.exempted: set[str] = set()
        """Exact names that were given here, not by a configuration."""
        self.excluded: list[Variable] = []
        """Exempt from weight decay; their names are known once the optimizer is built."""
        self.variables: list[Variable] = []
        self.keys: list[Any] = []
        """Of the variables."""
        self.keys_of_parts: tuple[list[Any], ...] = ()
        """Of those that Adam trains, and of those that are overwritten."""
        self.fitting: dict[Any, Any] = {}
        """What gradients that fit their variables were last, by the keys of these."""
        self.slots: Any = None
        self.short_names: dict[int, str] = {}
        """Of the variables beside others, without the paths of these."""
        self.numbers: Variable = None
        self.rate: Variable = None
        """The learning rate, or `NO_RATE`."""
        self.accumulators: dict[Any, Variable] = {}
        """Of variables that are overwritten, by their keys."""
        self.run: Run | None = None
        self.engine: Engine | None = None
        self.loss_scale: Variable = None
        """What a dynamic loss scale divides gradients by."""
        self.warned_of: set[tuple[str, ...]] = set()
        self.holds_averages = False
        """Whether the variables are their averages, for a block."""
        self.pending: dict[str, Any] | None = None
        """What was loaded before there were variables to load it into."""

    @property
    def accumulates(self) -> bool:
        """Whether an update takes several calls."""
        return (self.hyperparameters.gradient_accumulation_steps or 1) > 1

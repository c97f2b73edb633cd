"""A call that returns new values, and changes no variable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from oneadam.keras import _rows

Variable = Any
Tensor = Any


def apply(
    optimizer: Any,
    variables: Sequence[Variable],
    optimizer_variables: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    trainable_variables: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return values after a call of an optimizer, of its variables and of its own.

    Args:
        optimizer: of Keras.
        variables: that it was built on; some of them may be frozen.
        optimizer_variables: values of its own.
        grads: for all variables, or for those that are not frozen.
        trainable_variables: values of these.
    """
    some = [variable for variable in variables if variable.trainable]
    is_whole = not len(trainable_variables) == len(some) < len(variables)
    if is_whole or _rows.backend_name() == "tensorflow":  # which Keras refuses
        result: tuple[list[Tensor], list[Tensor]] = keras.optimizers.Optimizer.stateless_apply(
            optimizer, optimizer_variables, grads, trainable_variables
        )
        return result
    mine = optimizer.variables
    mapping = [*zip(some, trainable_variables, strict=True),
               *zip(mine, optimizer_variables, strict=True)]  # fmt: skip
    with keras.StatelessScope(state_mapping=mapping) as scope:
        optimizer.apply(grads, some)
    found = [list(map(scope.get_current_value, part)) for part in (some, mine)]
    return found[0], found[1]

"""Where a call of TensorFlow finds the copies of its variables: one, or one in each replica."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import tensorflow as tf

from oneadam.keras import _tensorflow_names as xp

Tensor = Any
Variable = Any


class Here:
    """Variables that have one copy."""

    @staticmethod
    def local(value: Any) -> Tensor:
        return value

    @staticmethod
    def update(variable: Variable, function: Callable[..., None], *arguments: Any) -> None:
        function(variable, *arguments)


class Everywhere(NamedTuple):
    """Variables that have a copy in each replica."""

    strategy: Any

    def local(self, value: Any) -> Tensor:
        return self.strategy.experimental_local_results(value)[0]

    def update(self, variable: Variable, function: Callable[..., None], *arguments: Any) -> None:
        self.strategy.extended.update(variable, function, args=arguments, group=False)


def summed(context: Any, tensors: list[Tensor | None]) -> list[Tensor | None]:
    """Return the sums of tensors over all replicas."""
    given = [tensor for tensor in tensors if tensor is not None]
    sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, given) if given else ())
    return [None if tensor is None else next(sums) for tensor in tensors]


def largest(context: Any, tensor: Tensor) -> Tensor:
    """Return the largest of what each replica has, as over the calls of a window."""
    every = context.all_gather(tensor[None], 0)
    return reduce(xp.maximum, tf.unstack(every, context.num_replicas_in_sync))

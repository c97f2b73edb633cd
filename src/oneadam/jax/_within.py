"""Our states somewhere in the state of whatever transformation they are a part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from oneadam.jax._state import AdamState

Tree = Any


def find(state: Tree, kind: type) -> list[Any]:
    """Return the states of a kind that are somewhere in a state."""
    known: list[Any] = []

    def looks(node: Any) -> bool:
        if isinstance(node, kind):
            known.append(node)
        return isinstance(node, kind)

    jax.tree.leaves(state, is_leaf=looks)
    return known


def found(state: Tree, kind: type) -> list[Any]:
    known = find(state, kind)
    if not known:
        raise TypeError(
            f"state must have {'an' if kind is AdamState else 'a'} {kind.__name__} in it, received"
            f" {type(state).__name__} without one; pass what init or update returned"
        )
    return known


def only(state: Tree, kind: type) -> Any:
    known = found(state, kind)
    if len(known) > 1:
        raise ValueError(
            f"state must have one {kind.__name__} in it, received {len(known)}; pass the part that"
            " is meant"
        )
    return known[0]


def in_each(state: Tree, kind: type, change: Callable[[Any], Any]) -> Tree:
    """Return a state in which those of a kind are changed, wherever they are."""

    def is_one(node: Any) -> bool:
        return isinstance(node, kind)

    return jax.tree.map(lambda node: change(node) if is_one(node) else node, state, is_leaf=is_one)

"""What a public module says of itself."""

from __future__ import annotations

import types
from collections.abc import Set


def check(module: types.ModuleType, helpers: Set[str] = frozenset()) -> None:
    """Hold a module to its docstring and to `__all__`, where helpers need not stand."""
    assert module.__doc__, f"{module.__name__} says not what it is"
    assert list(module.__all__) == sorted(module.__all__, key=lambda n: (not n.isupper(), n))
    assert untrue(module) - helpers == set()


def untrue(module: types.ModuleType) -> set[str]:
    """What `__all__` says and is not there, and what is there and `__all__` does not say."""
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, (types.FunctionType, type))
        and value.__module__.split(".")[0] == "oneadam"
    }
    listed = set(module.__all__)
    return (own - listed) | {name for name in listed if not hasattr(module, name)}

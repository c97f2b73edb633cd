"""Finding out whether dicts and lists still hold the same objects, thousands in microseconds."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import numpy as np

from oneadam._engines.cpu.compiled import compiled

_IS_CPYTHON = sys.implementation.name == "cpython" and ctypes.sizeof(ctypes.c_void_p) == 8
_OF_DICTS = ("int64", "int64*", "int64", "int64*", "int64*", "int64*", "int64*")
_OF_LISTS = ("int64", "int64", "int64*", "int64", "int64*", "int64*", "int64*")


class Contents:
    """What is in dicts and lists, all of which are kept alive, and known by their addresses.

    Args:
        dicts: whose values matter, and their order.
        lists: whose items matter.
    """

    def __init__(self, dicts: Sequence[dict[Any, Any]], lists: Sequence[list[Any]]) -> None:
        self._dicts, self._lists = list(dicts), list(lists)
        self._values = [list(one.values()) for one in self._dicts]
        self._items = list(map(list, self._lists))
        self._room, self._same = np.zeros(3, np.int64), np.zeros(1, np.int64)
        self._kept = [_addresses(self._dicts, self._values), _addresses(self._lists, self._items)]
        dicts_at, lists_at = ([array.ctypes.data for array in kept] for kept in self._kept)
        room, same = self._room.ctypes.data, self._same.ctypes.data
        self._of_dicts = (dicts_at[0], len(self._dicts), *dicts_at[1:], room, same)
        self._of_lists = (lists_at[0], len(self._lists), *lists_at[1:], same)

    def are_same(self) -> bool:
        """Return whether dicts and lists have the very objects that they had, and no others."""
        if not _IS_CPYTHON:
            return self._are_same_to_python()
        api = ctypes.pythonapi
        compiled("compare_lists", _OF_LISTS)(
            _address(api.PyList_Size), _address(api.PyList_GetItem), *self._of_lists
        )
        if not self._same[0]:
            return False
        compiled("compare_dicts", _OF_DICTS)(_address(api.PyDict_Next), *self._of_dicts)
        return bool(self._same[0])

    def _are_same_to_python(self) -> bool:
        return all(
            len(found) == len(known) and all(map(is_, found, known))
            for found, known in chain(
                zip((one.values() for one in self._dicts), self._values, strict=True),
                zip(self._lists, self._items, strict=True),
            )
        )


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _addresses(containers: list[Any], contents: list[list[Any]]) -> list[Any]:
    """Return the addresses of containers, where the contents of each begin, and of these."""
    return [
        np.array([id(one) for one in containers], np.int64),
        np.cumsum([0, *map(len, contents)]).astype(np.int64),
        np.array([id(one) for one in chain.from_iterable(contents)], np.int64),
    ]

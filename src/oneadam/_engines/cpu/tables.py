"""Arrays that stay where they are, so that kernels can be given their addresses at any time."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


class Table:
    """An array that is filled again and again, but never replaced."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.address: int = array.ctypes.data

"""Arrays that stay where they are, so that kernels can be given their addresses at any time."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Parameter = tuple[str, float]
"""What a kernel gets: the kind of a parameter and its value."""


class Table:
    """An array that is filled again and again, but never replaced."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.at: Parameter = (f"{array.dtype.name}*", array.ctypes.data)
        """Its address, as a parameter of a kernel."""

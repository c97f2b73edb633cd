"""Stretches of memory, and which gradients share some with what an update writes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from oneadam._engines.cpu.formats import C_BYTES
from oneadam._engines.gradients import ABSENT, LOOK_CLOSER, Gradients

Int64s = NDArray[np.int64]
Span = tuple[int, int]
"""The first address of something, and that after its last byte."""


class Spans:
    """The memory that an update writes, in ascending order.

    Args:
        spans: of the arrays, those without elements left out.
    """

    def __init__(self, spans: list[Span]) -> None:
        pairs = np.array(spans or [(0, 0)], np.int64)
        self._starts, ends = np.ascontiguousarray(pairs[np.argsort(pairs[:, 0], kind="stable")].T)
        # Strided arrays may interlace; an end counts for all that start before it.
        self._ends = np.maximum.accumulate(ends)
        self._separate: tuple[bytes, bytes] | None = None

    def keep_apart(
        self,
        gradients: Gradients,
        addresses: Int64s,
        sizes: Int64s,
        span: Callable[[int], Span],
        copy: Callable[[int], tuple[int, int]],
        *,
        is_odd: bool,
    ) -> None:
        """Have gradients copied that may share memory with these.

        Args:
            gradients: of a call.
            addresses: where they lie, as far as the kernels can take them.
            sizes: their numbers of elements.
            span: of the gradient with a number, for those that the kernels cannot take.
            copy: puts a copy in the place of the gradient with a number, and returns its address
                and its format.
            is_odd: whether there is a gradient of which an address does not tell all.
        """
        formats = gradients.formats
        if not is_odd and self._separate == (addresses.tobytes(), formats.tobytes()):
            return
        overlapping = self.shared(gradients, addresses, sizes, span)
        for row in overlapping:
            addresses[row], formats[row] = copy(row)
        self._separate = None if overlapping else (addresses.tobytes(), formats.tobytes())

    def shared(
        self,
        gradients: Gradients,
        addresses: Int64s,
        sizes: Int64s,
        span: Callable[[int], Span],
    ) -> list[int]:
        """Return which gradients may share memory with these.

        Args:
            gradients: of a call.
            addresses: where they lie, as far as the kernels can take them.
            sizes: their numbers of elements.
            span: of the gradient with a number, for those that the kernels cannot take.
        """
        formats = gradients.formats
        plain = (formats >= 0) & (formats < ABSENT)
        if plain.all():
            return self._sharing(addresses, addresses + sizes * C_BYTES[formats])
        starts, ends = addresses.copy(), addresses.copy()
        ends[plain] += sizes[plain] * C_BYTES[formats[plain]]
        for row in np.flatnonzero(formats == LOOK_CLOSER).tolist():
            starts[row], ends[row] = span(row)
        return self._sharing(starts, ends)

    def _sharing(self, starts: Int64s, ends: Int64s) -> list[int]:
        last = np.searchsorted(self._starts, ends, side="left") - 1
        # Before the first, there is none; what is absent or empty ends where it starts.
        shares = (self._ends[last] > starts) & (last >= 0) & (starts < ends)
        return np.flatnonzero(shares).tolist() if shares.any() else []

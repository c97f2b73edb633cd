"""Cutting variables into pieces for the kernels, and the pieces into shares for the threads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam._engines.cpu.tables import Table

Int64s = NDArray[np.int64]

# A piece's sum of squares is one number, so results depend on this but not on the threads.
PIECE = 16_384
# Enough elements to outweigh taking a share, few enough to even the threads out.
SHARE = 4 * PIECE


class Pieces(NamedTuple):
    """The pieces of some variables."""

    table: Table
    """int64 rows of (variable, first element, end)."""
    sums: Table
    """float64, a place for a number of each piece."""
    edges: Table
    """int64, where each share begins that a thread takes at once, and where the last one ends."""
    elements: int
    """Of all pieces together."""


def cut(rows: NDArray[np.intp], sizes: Int64s) -> Pieces:
    """Cut variables into pieces.

    Args:
        rows: their numbers.
        sizes: int64, their numbers of elements.
    """
    counts = -(-sizes // PIECE)
    firsts = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(firsts, counts)
    starts = within * PIECE
    ends = np.minimum(starts + PIECE, np.repeat(sizes, counts))
    table = np.stack([np.repeat(rows, counts), starts, ends], axis=1).astype(np.int64)
    done = np.cumsum(ends - starts)
    total = int(done[-1]) if len(done) else 0
    cuts = np.searchsorted(done, np.arange(SHARE, total, SHARE), side="left") + 1
    edges = np.unique(np.concatenate([[0], cuts, [len(table)]])).astype(np.int64)
    return Pieces(
        Table(np.ascontiguousarray(table)),
        Table(np.zeros(len(table))),
        Table(edges),
        total,
    )

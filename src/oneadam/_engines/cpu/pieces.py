"""Cutting variables into pieces for the kernels, and the pieces into shares for the threads."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]

# A piece's sum of squares is one number, so results depend on this but not on the threads.
PIECE = 16_384
# Enough elements to outweigh handing a share to a thread, few enough to even the threads out.
SHARE = 16 * PIECE
_REMEMBERED = 32


class Share(NamedTuple):
    """The pieces, first to last exclusively, that a thread takes at once."""

    first: int
    last: int


class Pieces(NamedTuple):
    """The pieces of some variables: int64 rows of (variable, first element, end)."""

    table: Int64s
    shares: list[Share]


class Cutter:
    """Cuts variables of given sizes, and remembers the cuts of the latest sets of variables."""

    def __init__(self, sizes: Int64s) -> None:
        self._sizes = sizes
        self._known: dict[bytes, Pieces] = {}

    def cut(self, rows: NDArray[np.intp]) -> Pieces:
        """Return the pieces of the variables numbered in `rows`, in their order."""
        key = rows.tobytes()
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = _cut(rows, self._sizes[rows])
        return known


def _cut(rows: NDArray[np.intp], sizes: Int64s) -> Pieces:
    counts = -(-sizes // PIECE)
    firsts = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(firsts, counts)
    starts = within * PIECE
    ends = np.minimum(starts + PIECE, np.repeat(sizes, counts))
    table = np.stack([np.repeat(rows, counts), starts, ends], axis=1).astype(np.int64)
    done = np.cumsum(ends - starts)
    total = int(done[-1]) if len(done) else 0
    cuts = np.searchsorted(done, np.arange(SHARE, total, SHARE), side="left") + 1
    edges = np.unique(np.concatenate([[0], cuts, [len(table)]])).tolist()
    return Pieces(np.ascontiguousarray(table), [Share(*pair) for pair in pairwise(edges)])

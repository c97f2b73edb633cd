"""Running a kernel on some variables, on all threads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from oneadam._engines.cpu import layout
from oneadam._engines.cpu.compiled import compiled
from oneadam._engines.cpu.formats import ABSENT_KIND
from oneadam._engines.cpu.pieces import Pieces
from oneadam._engines.cpu.tables import Table
from oneadam._engines.threads import Team

_FLOATS = (layout.LOSS_SCALE, layout.LIMIT, layout.FACTOR)


class Launch(NamedTuple):
    """Variables that a kernel takes at once, with the formats of their arrays."""

    pieces: Pieces
    param: str
    grad: str
    computed: str

    def of(self, array: object) -> str:
        """Return the format of an array of state, or of a number, that may be None."""
        return ABSENT_KIND if array is None else self.computed

    def run(
        self,
        team: Team,
        kernel: str,
        formats: tuple[str, ...],
        tables: dict[int, Table],
        numbers: dict[int, float | None],
        *,
        backwards: bool = False,
    ) -> None:
        """Run a kernel on all pieces.

        Args:
            team: the threads that do it.
            kernel: its name.
            formats: its markers.
            tables: by the words of the task that have their addresses.
            numbers: by the words that they are in; None for what the kernel does not read.
            backwards: begin with the last share.
        """
        pieces = self.pieces
        task = np.zeros(layout.WORDS, np.int64)
        task[layout.SHARES] = len(pieces.edges.array) - 1
        task[layout.BACKWARDS] = backwards
        tables = tables | {layout.EDGES: pieces.edges, layout.PIECES: pieces.table}
        for word, table in tables.items():
            task[word] = table.address
        for word, value in numbers.items():
            if value is not None:
                (task.view(np.float64) if word in _FLOATS else task)[word] = value
        team(compiled(kernel, ("int64*", *formats)), task.ctypes.data, pieces.elements)

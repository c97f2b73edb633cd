"""The rule in host memory, updated in place.

Variables whose memory is a plain run of elements go to the compiled kernels, all of one kind in
one launch; the others go one by one to an engine that takes them as they are. Which is which is
found out by the sight of the kind of arrays that they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oneadam._engines import Buffers, Options
from oneadam._engines.cpu import layout
from oneadam._engines.cpu.formats import ABSENT_KIND, FORMATS
from oneadam._engines.cpu.launch import Launch
from oneadam._engines.cpu.pieces import cut
from oneadam._engines.cpu.tables import Table
from oneadam._engines.gradients import ABSENT, Formats, Gradients
from oneadam._engines.threads import Team
from oneadam._plan import Scalars

Bools = NDArray[np.bool_]
Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

# Sums of squares outside of this may have lost their largest or their smallest terms.
_SMALLEST, _LARGEST = 1e-280, 1e300
_ENLARGING, _SHRINKING = 2.0**600, 2.0**-600

# Sets of variables and gradients whose launches are remembered.
_REMEMBERED = 32


class Sight(Protocol):
    """Finds out where arrays of one kind lie in memory, for the same variables in every call."""

    @property
    def formats(self) -> Formats:
        """The format of each variable; `LOOK_CLOSER` for one that the kernels cannot take."""

    @property
    def sizes(self) -> Int64s:
        """The number of elements of each variable."""

    @property
    def wide(self) -> Bools:
        """Which variables are computed in float64."""

    def place(self, table: Int64s) -> None:
        """Write the addresses of the state into its columns."""

    def look(self, grads: list[Any], closer: Callable[[int, Any], Any], table: Int64s) -> Gradients:
        """Find variables and gradients, and write their addresses into their columns."""


class Others(Protocol):
    """The rule on one variable that the kernels cannot take, in place."""

    def update(self, buffers: Buffers, s: Scalars, options: Options, /) -> None:
        """Take one update."""

    def average(self, buffers: Buffers, s: Scalars, options: Options, /) -> None:
        """Take a variable that sits the update out into its moving average."""

    def accumulate(self, buffers: Buffers, options: Options, /) -> None:
        """Add the gradient to its accumulator."""

    def squares(self, buffers: Buffers, options: Options, factor: float, /) -> float:
        """Return the sum of the squares of the gradient times `factor`, in float64."""


class Host:
    """The variables of an optimizer and its state, ready to be updated.

    Args:
        buffers: for each field a list of arrays, one for each variable; None for a field that
            is not used, and for `grad`. No two arrays overlap, and nobody else has the state.
        sight: of these arrays.
        others: the engine for the variables that are no plain run of elements.
        team: the threads that run the kernels.
    """

    def __init__(self, buffers: Buffers, sight: Sight, others: Others, team: Team) -> None:
        self._buffers = buffers
        self._sight = sight
        self._others = others
        self._team = team
        self._sizes, self._wide = sight.sizes, sight.wide
        self._table = Table(np.zeros((len(self._sizes), layout.COLUMNS), np.int64))
        sight.place(self._table.array)
        self._scalars = {
            computed: Table(np.zeros((len(self._sizes), len(Scalars._fields)), computed))
            for computed, is_used in (("float64", self._wide), ("float32", ~self._wide))
            if is_used.any()
        }
        self._stride = 0
        self._known: dict[bytes, tuple[list[Launch], list[int]]] = {}

    def look(self, grads: list[Any], closer: Callable[[int, Any], Any]) -> Gradients:
        """Find out where the variables and the gradients of a call lie in memory.

        Args:
            grads: one for each variable, of any kind.
            closer: called with a variable's number and its gradient where that is not a plain
                array of the variable's shape; returns an array of that shape, or None where
                there is no gradient, or raises.

        Raises:
            ValueError: a variable is no longer the array that it was.
        """
        return self._sight.look(grads, closer, self._table.array)

    def norms(self, gradients: Gradients, options: Options, *, accumulated: bool) -> Float64s:
        """Return the norm of each variable's unscaled gradient, or of its window's sum.

        A norm is finite if and only if all its elements are, save that a norm may be too large
        for float64 itself. Without a gradient it is that of
        the sum so far, or 0.
        """
        which = np.ones(len(self._wide), np.bool_) if accumulated else gradients.present
        sums = self._squares(gradients, options, which, 1.0, accumulated)
        norms: Float64s = np.sqrt(sums)
        # Squares of float32 always fit into float64; those of float64 may not.
        for lost, factor in (
            (~(sums <= _LARGEST), _SHRINKING),
            (sums < _SMALLEST, _ENLARGING),
        ):
            again = which & self._wide & lost
            if again.any():
                sums = self._squares(gradients, options, again, factor, accumulated)
                with np.errstate(over="ignore"):  # a norm may be too large for float64 itself
                    norms[again] = np.sqrt(sums[again]) / factor
        return norms

    def accumulate(self, gradients: Gradients, options: Options) -> None:
        """Add the gradients to the accumulators."""
        launches, odd = self._launches(gradients, gradients.present)
        for launch in launches:
            launch.run(
                self._team,
                "accumulate",
                (launch.grad, launch.computed, launch.of(options.loss_scale)),
                {layout.TABLE: self._table},
                {layout.LOSS_SCALE: options.loss_scale},
            )
        for row in odd:
            with np.errstate(all="ignore"):
                self._others.accumulate(self._row(gradients, row), options)

    def update(
        self,
        gradients: Gradients,
        scalars: Scalars,
        options: Options,
        *,
        participants: Bools,
        accumulated: bool,
    ) -> None:
        """Update the participants, and take all variables into their moving averages."""
        launches, odd = self._launches(gradients, participants)
        self._fill(scalars)
        # The norms were taken from the first share to the last, and the gradients of the last
        # are still in the cache.
        for launch in launches:
            launch.run(
                self._team,
                "update",
                (
                    launch.param,
                    launch.grad,
                    launch.computed if accumulated else ABSENT_KIND,
                    launch.computed,
                    launch.of(self._buffers.velocity_max),
                    launch.of(self._buffers.average),
                    launch.computed if options.decays else ABSENT_KIND,
                    launch.of(options.loss_scale),
                    launch.computed,
                ),
                {layout.TABLE: self._table, layout.SCALARS: self._scalars[launch.computed]},
                {
                    layout.LOSS_SCALE: options.loss_scale,
                    # An infinite limit changes nothing, and saves a kernel without one.
                    layout.LIMIT: math.inf if options.limit is None else options.limit,
                    layout.STRIDE: self._stride,
                    layout.OVERWRITE: options.overwrite,
                },
                backwards=True,
            )
        for row in odd:
            buffers = self._row(gradients, row, accumulated=accumulated)
            with np.errstate(all="ignore"):
                self._others.update(buffers, _row_of(scalars, row), options)
        if self._buffers.average is not None:
            self._average(gradients, scalars, options, ~participants)

    def _average(
        self, gradients: Gradients, scalars: Scalars, options: Options, which: Bools
    ) -> None:
        launches, odd = self._launches(gradients, which)
        for launch in launches:
            launch.run(
                self._team,
                "average",
                (launch.param, launch.computed),
                {layout.TABLE: self._table, layout.SCALARS: self._scalars[launch.computed]},
                {layout.STRIDE: self._stride, layout.OVERWRITE: options.overwrite},
            )
        for row in odd:
            with np.errstate(all="ignore"):
                self._others.average(self._row(gradients, row), _row_of(scalars, row), options)

    def _squares(
        self,
        gradients: Gradients,
        options: Options,
        which: Bools,
        factor: float,
        accumulated: bool,
    ) -> Float64s:
        launches, odd = self._launches(gradients, which)
        totals = np.zeros(len(which))
        for launch in launches:
            launch.run(
                self._team,
                "squares",
                (
                    launch.param,
                    launch.grad,
                    launch.computed if accumulated else ABSENT_KIND,
                    launch.of(options.loss_scale),
                    "float64",
                ),
                {layout.TABLE: self._table, layout.SUMS: launch.pieces.sums},
                {layout.LOSS_SCALE: options.loss_scale, layout.FACTOR: factor},
            )
            totals += np.bincount(
                launch.pieces.table.array[:, 0], launch.pieces.sums.array, len(which)
            )
        for row in odd:
            buffers = self._row(gradients, row, accumulated=accumulated)
            with np.errstate(all="ignore"):
                totals[row] = self._others.squares(buffers, options, factor)
        return totals

    def _fill(self, scalars: Scalars) -> None:
        """Write the scalars where the kernels read them, once where they are the same for all."""
        is_one = all(np.size(column) == 1 for column in scalars)
        self._stride = 0 if is_one else len(scalars)
        with np.errstate(all="ignore"):
            for table in self._scalars.values():
                rows = table.array[:1] if is_one else table.array
                for number, column in enumerate(scalars):
                    rows[:, number] = column

    def _launches(self, gradients: Gradients, which: Bools) -> tuple[list[Launch], list[int]]:
        """Sort the variables that take part into launches, and those for the other engine."""
        key = gradients.formats.tobytes() + which.tobytes()
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._sorted(gradients.formats, which)
        return known

    def _sorted(self, grads: Formats, which: Bools) -> tuple[list[Launch], list[int]]:
        params = self._sight.formats
        plain = which & (params >= 0) & (grads >= 0)
        kinds = params * (ABSENT + 1) + grads
        launches = []
        for kind in np.unique(kinds[plain]).tolist():
            rows = np.flatnonzero(plain & (kinds == kind))
            param, grad = divmod(kind, ABSENT + 1)
            launches.append(
                Launch(
                    cut(rows, self._sizes[rows]),
                    FORMATS[param],
                    ABSENT_KIND if grad == ABSENT else FORMATS[grad],
                    "float64" if FORMATS[param] == "float64" else "float32",
                )
            )
        return launches, np.flatnonzero(which & ~plain).tolist()

    def _row(self, gradients: Gradients, row: int, *, accumulated: bool = True) -> Buffers:
        arrays = [None if column is None else column[row] for column in self._buffers]
        buffers = Buffers(*arrays)._replace(grad=gradients.arrays[row])
        return buffers if accumulated else buffers._replace(accumulator=None)


def _row_of(scalars: Scalars, row: int) -> Scalars:
    columns = (np.atleast_1d(column) for column in scalars)
    return Scalars(*(float(column[row if len(column) > 1 else 0]) for column in columns))

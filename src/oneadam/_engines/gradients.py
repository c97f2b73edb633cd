"""The gradients of one call, as an engine for host memory sees them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneadam._engines.cpu.formats import FORMATS

Bools = NDArray[np.bool_]
Formats = NDArray[np.int8]

ABSENT = len(FORMATS)
"""The format of a gradient that is not there."""
LOOK_CLOSER = -1
"""The format of what the kernels cannot take."""


class Gradients(NamedTuple):
    """The gradients of one call."""

    arrays: list[Any]
    """One for each variable, or None. Holding them keeps their addresses good."""
    formats: Formats
    """Indices of `FORMATS`, `ABSENT`, or `LOOK_CLOSER`."""

    @property
    def present(self) -> Bools:
        """Which variables have a gradient."""
        present: Bools = self.formats != ABSENT
        return present

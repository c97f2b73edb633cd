"""The dtypes of NumPy arrays that the optimizer computes in."""

from __future__ import annotations

from typing import Any

import numpy as np


def compute_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of the computation and of the state for a variable's dtype."""
    return np.dtype(np.float64 if np.dtype(dtype).name == "float64" else np.float32)

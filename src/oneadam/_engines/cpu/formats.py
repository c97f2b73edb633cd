"""The formats that memory may have, by name, as the kernels and their callers know them.

A kernel is specialised by the format of each array that it is given, "absent" for one that is
not there.
"""

from __future__ import annotations

import platform

import numpy as np
from llvmlite import binding

ABSENT_KIND = "absent"


def _converts_half() -> bool:
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    return bool(binding.get_host_cpu_features().get("f16c"))


# Where the processor does not convert it, LLVM would call a function that nobody provides.
FORMATS = ("float32", "float64", "bfloat16", *(("float16",) if _converts_half() else ()))

_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
C_BYTES = np.array([_BYTES[name] for name in FORMATS])
"""The size of an element of each of `FORMATS`."""

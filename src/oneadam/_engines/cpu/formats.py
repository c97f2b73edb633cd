"""The formats that memory may have, by name, as the kernels and their callers know them.

A kernel is specialised by the format of each array that it is given, "absent" for one that is
not there.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import numpy as np
from llvmlite import binding

ABSENT_KIND = "absent"


def _converts_half() -> bool:
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    return bool(binding.get_host_cpu_features().get("f16c"))


# Where the processor does not convert it, LLVM would call a function that nobody provides.
FORMATS = ("float32", "float64", "bfloat16", *(("float16",) if _converts_half() else ()))

C_TYPES: dict[str, Any] = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "float16": ctypes.c_int16,
    "bfloat16": ctypes.c_uint16,
    "int64": ctypes.c_int64,
    ABSENT_KIND: ctypes.c_void_p,
    "int8*": ctypes.c_void_p,
    "int64*": ctypes.c_void_p,
    "float32*": ctypes.c_void_p,
    "float64*": ctypes.c_void_p,
}
"""How C passes a parameter of each kind: formats, numbers and addresses."""

C_BYTES = np.array([ctypes.sizeof(C_TYPES[name]) for name in FORMATS])
"""The size of an element of each of `FORMATS`."""

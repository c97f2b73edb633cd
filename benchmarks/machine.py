"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import oneadam

_PACKAGES = ("numpy", "numba", "llvmlite", "torch", "ml_dtypes", "jax", "optax", "keras")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PROCESSORS = Path("/proc/cpuinfo")


def described(threads: int) -> Iterator[str]:
    """Yield lines about the processor, its load, the system and the versions."""
    yield f"processor: {_processor()}, {os.cpu_count()} cores; {threads} threads per contestant"
    yield f"caches: {', '.join(_caches()) or 'unknown'}; huge pages: {_huge_pages()}"
    if hasattr(os, "getloadavg"):
        yield f"load before the first benchmark: {os.getloadavg()[0]:.2f}; it should be near 0"
    yield f"{platform.platform()}, Python {platform.python_version()}"
    yield f"oneadam {oneadam.__version__}, {', '.join(_versions())}"


def _versions() -> Iterator[str]:
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"


def _processor() -> str:
    if _PROCESSORS.exists():
        for line in _PROCESSORS.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _caches() -> Iterator[str]:
    for cache in sorted(_CACHES.glob("index*")):
        read = {
            name: (cache / name).read_text().strip()
            for name in ("level", "type", "size", "shared_cpu_list")
        }
        if read["type"] != "Instruction":
            yield f"L{read['level']} {read['size']} (cores {read['shared_cpu_list']})"


def _huge_pages() -> str:
    if not _HUGE_PAGES.exists():
        return "unknown"
    return _HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]

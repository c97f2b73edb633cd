"""Keeping compiled kernels on disk, so that only the first process on a machine compiles them.

Numba's own cache looks at the file that a kernel stands in and would not notice an edit of the
rule. Here an entry is valid only for the fingerprint of everything that is compiled into a
kernel: the code objects and constants of the modules as they are in this process, not as the
files may be by now.
"""

# The compiler's own types are untyped.
# mypy: ignore-errors

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import llvmlite
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from oneadam import __version__

_compiled_from: dict[FunctionType, list[ModuleType]] = {}
_CONSTANTS = (int, float, str, bytes, tuple)


def _code_of(value) -> CodeType | None:
    function = getattr(value, "py_func", None) or getattr(value, "_defn", None) or value
    return function.__code__ if isinstance(function, FunctionType) else None


def _described(code: CodeType) -> str:
    constants = [_described(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants))


def fingerprint(modules: list[ModuleType]) -> str:
    """Return a digest of the functions and the constants of the modules, as they are now."""
    digest = hashlib.sha256(llvmlite.__version__.encode())
    for module in modules:
        for name, value in sorted(vars(module).items()):
            if name.startswith("__"):
                continue
            code = _code_of(value)
            if code is not None:
                digest.update(f"{module.__name__}.{name} = {_described(code)}\n".encode())
            elif isinstance(value, _CONSTANTS):
                digest.update(f"{module.__name__}.{name} = {value!r}\n".encode())
            elif hasattr(value, "_fields"):
                digest.update(f"{module.__name__}.{name} = {value._fields!r}\n".encode())
    return digest.hexdigest()


def _folder() -> Path:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen) / "oneadam"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "oneadam" / __version__


class _Locator(_CacheLocator):
    def __init__(self, py_func, py_file) -> None:
        self._py_file = py_file
        self._name = py_func.__qualname__
        self._stamp = fingerprint(_compiled_from[py_func])

    def get_cache_path(self) -> str:
        return str(_folder())

    def get_source_stamp(self) -> str:
        return self._stamp

    def get_disambiguator(self) -> str:
        return self._name

    @classmethod
    def from_function(cls, py_func, py_file):
        return cls(py_func, py_file)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(FunctionCache):
    _impl_class = _Implementation


def remember(modules: list[ModuleType], *kernels) -> None:
    """Let kernels be kept on disk, where there is a folder to keep them in.

    Args:
        modules: all that the kernels are compiled from; call this at the end of the last one.
        kernels: Numba's dispatchers.
    """
    for kernel in kernels:
        _compiled_from[kernel.py_func] = modules
        cache = _Cache(kernel.py_func)
        try:
            cache._impl.locator.ensure_cache_path()
        except OSError:
            return
        kernel._cache = cache

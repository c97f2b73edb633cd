"""Kernels as functions to call: from this process, from the disk, or compiled now.

A kernel that has been compiled once on a machine is kept on disk as machine code, and a process
that finds all it needs there loads it without the compiler, which takes a second to import.

What is on disk is found by a fingerprint of everything that it was made from: the text of the
rule and of the kernels, the versions of the compilers, and the processor. Numba's own cache looks
only at the file that a kernel stands in and would not notice an edit of the rule.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from types import CodeType
from typing import Any, NamedTuple, cast

from llvmlite import binding

from oneadam import __version__
from oneadam._engines.cpu.formats import ABSENT_KIND

_KERNELS = "oneadam._engines.cpu.kernels"
_MODULES = {
    "inspect": "oneadam._engines.cpu.objects",
    "inspect_tensors": "oneadam._engines.cpu.exchange",
    "compare_dicts": "oneadam._engines.cpu.containers",
    "compare_lists": "oneadam._engines.cpu.containers",
}
"""Where each kernel stands, if not with the others."""
_KEEP_LOCK = tuple(_MODULES)
"""The kernels that read Python's objects, which nobody may change meanwhile."""

_HERE = Path(__file__).parent
_SOURCES = {
    "oneadam._rule": _HERE.parents[1] / "_rule.py",
    "oneadam._plan": _HERE.parents[1] / "_plan.py",
    **{f"{__package__}.{path.stem}": path for path in sorted(_HERE.glob("*.py"))},
}

_VALUES = {
    "int64": ("i64", ctypes.c_int64),
    "int8*": ("ptr", ctypes.c_void_p),
    "int64*": ("ptr", ctypes.c_void_p),
}
"""How LLVM and C call the parameters that are numbers and addresses."""
_MARKERS = {
    "float32": "float 0.0",
    "float64": "double 0.0",
    "float16": "i16 0",
    "bfloat16": "i16 0",
    ABSENT_KIND: "ptr null",
}
"""What LLVM passes for those that are formats, whose values mean nothing."""
_ENTRANCE = """
    declare i32 @"{kernel}"({types})
    define void @"{name}"({parameters}) {{
      %result = alloca ptr
      %error = alloca ptr
      call i32 @"{kernel}"({arguments})
      ret void
    }}
"""

Function = Callable[..., None]
"""A kernel without its markers, as a function of C; `address_of` tells where it is."""

_known: dict[tuple[str, tuple[str, ...]], Function] = {}
_lock = Lock()


if hasattr(os, "register_at_fork"):  # no child begins with half a kernel
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


class _Machine(NamedTuple):
    """Machine code and the name of the function in it."""

    symbol: str
    code: bytes


def _read_sources() -> dict[str, bytes]:
    return {module: path.read_bytes() for module, path in _SOURCES.items()}


# As they are when the rule is imported; what is compiled later is held against it.
_TEXTS = _read_sources()


def compiled(kernel: str, parameters: tuple[str, ...]) -> Function:
    """Return a kernel, specialised to kinds of parameters, as a function of numbers.

    Args:
        kernel: its name.
        parameters: the kind of each parameter. Those that are formats are not parameters of the
            function that is returned.
    """
    function = _known.get((kernel, parameters))
    if function is None:
        with _lock:
            function = _known.get((kernel, parameters))
            if function is None:
                function = _made(kernel, parameters)
                _known[kernel, parameters] = function
    return function


def address_of(function: Function) -> int:
    """Return the address of a compiled kernel."""
    return ctypes.cast(cast("Any", function), ctypes.c_void_p).value or 0


def _made(kernel: str, parameters: tuple[str, ...]) -> Function:
    path = _path(kernel, parameters)
    machine = None if path is None else _load(path)
    if machine is None:
        machine = _compile(kernel, parameters)
        if path is not None and _is_what_was_read():
            _save(path, machine)
    prototype = ctypes.PYFUNCTYPE if kernel in _KEEP_LOCK else ctypes.CFUNCTYPE
    types = [_VALUES[kind][1] for kind in parameters if kind in _VALUES]
    return prototype(None, *types)(_link(machine, parameters))


def _compile(kernel: str, parameters: tuple[str, ...]) -> _Machine:
    elements = importlib.import_module("oneadam._engines.cpu.elements")
    module = importlib.import_module(_MODULES.get(kernel, _KERNELS))
    dispatcher = getattr(module, kernel)
    signature = tuple(elements.TYPES[kind] for kind in parameters)
    dispatcher.compile(signature)
    result = dispatcher.overloads[signature]
    _, _, (code, _) = result.library.serialize_using_object_code()
    return _Machine(result.fndesc.llvm_func_name, code)


@cache
def _engine() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple().create_target_machine(jit=True)
    return binding.create_mcjit_compiler(binding.parse_assembly(""), target)


def _link(machine: _Machine, parameters: tuple[str, ...]) -> int:
    """Return the address of a kernel's entrance, a function of C that fills in the markers."""
    name = f"oneadam.{machine.symbol}"
    engine = _engine()
    engine.add_object_file(binding.ObjectFileRef.from_data(machine.code))
    engine.add_module(binding.parse_assembly(_entrance(machine.symbol, name, parameters)))
    engine.finalize_object()
    address: int = engine.get_function_address(name)
    return address


def _entrance(kernel: str, name: str, parameters: tuple[str, ...]) -> str:
    values, arguments = [], []
    for number, kind in enumerate(parameters):
        if kind in _VALUES:
            values.append(f"{_VALUES[kind][0]} %p{number}")
        arguments.append(values[-1] if kind in _VALUES else _MARKERS[kind])
    # By Numba's convention the addresses of a result and of an error come first.
    arguments = ["ptr %result", "ptr %error", *arguments]
    return _ENTRANCE.format(
        kernel=kernel,
        name=name,
        types=", ".join(argument.split()[0] for argument in arguments),
        parameters=", ".join(values),
        arguments=", ".join(arguments),
    )


@cache
def _fingerprint() -> str:
    """Return a digest of all that machine code depends on."""
    digest = hashlib.sha256()
    features = binding.get_host_cpu_features().flatten()
    for part in (
        *(version(package) for package in ("numba", "llvmlite")),
        sys.version,
        binding.get_default_triple(),
        binding.get_host_cpu_name(),
        features,
        *_TEXTS.values(),
    ):
        text = part if isinstance(part, bytes) else part.encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def _path(kernel: str, parameters: tuple[str, ...]) -> Path | None:
    folder = _folder()
    if folder is None:
        return None
    key = hashlib.sha256(f"{_fingerprint()} {parameters}".encode()).hexdigest()[:32]
    return folder / f"{kernel}-{key}.kernel"


def _folder() -> Path | None:
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "oneadam" / __version__
    except RuntimeError:  # a user without a home
        return None


def _load(path: Path) -> _Machine | None:
    """Return what is on disk, if it is there and whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, rest = content[:32], content[32:]
    if hashlib.sha256(rest).digest() != digest:
        return None
    symbol, _, code = rest.partition(b"\n")
    return _Machine(symbol.decode(), code)


def _save(path: Path, machine: _Machine) -> None:
    """Keep machine code on disk, where that can be written to."""
    rest = machine.symbol.encode() + b"\n" + machine.code
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(rest).digest() + rest)
        os.replace(temporary, path)


def _is_what_was_read() -> bool:
    """Return whether this process runs the sources that the fingerprint is of.

    An editor may have saved a file since, and Python may have loaded an older version of one.
    """
    try:
        unchanged = _read_sources() == _TEXTS
    except OSError:
        return False
    names = [name for name in _TEXTS if name in sys.modules and name != __name__]
    return unchanged and all(
        _described(name, vars(sys.modules[name])) == _described(name, _run(name)) for name in names
    )


def _run(name: str) -> dict[str, Any]:
    """Return what the text of a module defines."""
    module = vars(sys.modules[name])
    namespace = {key: value for key, value in module.items() if key.startswith("__")}
    exec(compile(_TEXTS[name], _SOURCES[name], "exec"), namespace)
    return namespace


def _described(name: str, namespace: dict[str, Any]) -> dict[str, str]:
    """Return the functions and the constants of a module as text."""
    described = {}
    for key, value in namespace.items():
        if key.startswith("__"):
            continue
        function = getattr(value, "py_func", None) or getattr(value, "_defn", None) or value
        code = getattr(function, "__code__", None)
        if code is not None and getattr(function, "__module__", None) == name:
            described[key] = _described_code(code)
        elif isinstance(value, (int, float, str, tuple)):
            described[key] = repr(value)
        elif isinstance(value, type) and hasattr(value, "_fields"):
            described[key] = repr(value._fields)
    return described


def _described_code(code: CodeType) -> str:
    constants = [_described_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, constants))

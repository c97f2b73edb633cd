"""Portable checkpoints: one safetensors file, the same for every door.

A file holds named arrays and, in its metadata, strings by name; `format` and `format_version`
among them are this module's own. It is written atomically and read without executing anything.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

__all__ = ["read", "write"]

_FORMAT = "oneadam"
_VERSION = 1


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
) -> None:
    """Write arrays to a file, atomically.

    Whatever happens on the way, `path` is the old file or the whole new one. The new file is
    written beside it under another name, forced to the disk and then renamed.

    Args:
        path: where to; the folder must exist.
        tensors: arrays by name, of any dtype that safetensors knows.
        metadata: strings by name; not `format` or `format_version`.

    Raises:
        TypeError: an array is not of numbers.
        ValueError: `metadata` uses a name of this module's own.
        OSError: the file cannot be written; the old one is untouched.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> write(path, {"kernel": np.ones((2, 3))}, {"epoch": "7"})
        >>> tensors, metadata = read(path)
        >>> tensors["kernel"].shape, metadata["epoch"]
        ((2, 3), '7')
    """
    own = {"format": _FORMAT, "format_version": str(_VERSION)}
    if own.keys() & metadata.keys():
        raise ValueError(
            f"metadata must not use the names {sorted(own)}, received {sorted(metadata)};"
            " choose others"
        )
    for name, tensor in tensors.items():
        dtype = np.asarray(tensor).dtype
        if dtype.kind in "OMmSU":
            raise TypeError(
                f"tensors[{name!r}] must be of numbers, received {dtype}; convert it, or put text"
                " into metadata"
            )
    target = Path(os.path.realpath(path))  # a link stays, and what it points to is replaced
    _remove_leftovers(target)
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    # A folder, because safetensors leaves temporary files of its own where it is stopped.
    folder = target.with_name(f"{_prefix(target)}{os.getpid()}.{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    try:
        written = folder / "checkpoint"
        written.touch()
        mode = written.stat().st_mode  # as the user's umask has it; safetensors is stricter
        _save(contiguous, written, {**metadata, **own})
        written.chmod(mode)
        _force_to_disk(written)
        os.replace(written, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _force_to_disk(target.parent)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read a file that `write` has written.

    Args:
        path: the file.

    Returns:
        The arrays by name, and the metadata by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged, not one of ours, or of a newer format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be an existing file, received {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            _check_format(metadata, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"path must be a whole checkpoint of oneadam, received {os.fspath(path)!r}, which is"
            f" truncated, damaged or of another kind ({error}); take an older checkpoint"
        ) from error
    return tensors, metadata


def _save(tensors: dict[str, NDArray[Any]], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"the checkpoint could not be written: {error}") from error


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_format(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"path must be a checkpoint of oneadam, received {os.fspath(path)!r}, a safetensors"
            " file that something else has written; its arrays can be read with the safetensors"
            " library and given to load_state_dict"
        )
    version = metadata.get("format_version", "")
    if not version.isdecimal() or int(version) > _VERSION:
        raise ValueError(
            f"path must be of format version {_VERSION} at most, received {os.fspath(path)!r} of"
            f" version {version or 'unknown'}; read it with a newer release of oneadam"
        )


def _prefix(target: Path) -> str:
    # Of a short and certain length, for names may be as long as a file system allows.
    name = hashlib.sha256(target.name.encode()).hexdigest()[:16]
    return f".{name}.{platform.node()[:64]}."


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary folders of processes of this machine that died while writing."""
    for leftover in target.parent.glob(f"{glob.escape(_prefix(target))}*.tmp"):
        process = leftover.name.removeprefix(_prefix(target)).split(".")[0]
        if process.isdecimal() and not _is_alive(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere asking would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

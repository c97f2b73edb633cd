"""The variables of a model: structures of arrays, their names, and what may be updated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tree = Any
"""A variable or gradient, or a dict, list or tuple of trees."""

_VARIABLE_DTYPES = ("float16", "bfloat16", "float32", "float64")
_NARROW_FLOATS = ("bfloat16", "float8", "float6", "float4")


def named_variables(variables: Tree) -> dict[str, Array]:
    """Return the variables of a structure by name: their keys, joined by a slash.

    Raises:
        TypeError, ValueError: something is not an array that can be updated in place.
    """
    named: dict[str, Array] = {}
    for name, leaf in leaves(variables):
        if name in named:
            raise ValueError(
                f"variables must have different names, received two called {name!r}; change a key"
            )
        named[name] = check_variable(name, leaf)
    _check_separate(named)
    return named


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Iterate over the leaves of a structure with their names."""
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from leaves(child, (*path, str(key)))
    elif isinstance(tree, (list, tuple)):
        for number, child in enumerate(tree):
            yield from leaves(child, (*path, str(number)))
    elif not path:
        raise TypeError(
            "variables must be a list, a dict or a nested one of NumPy arrays, received"
            f" {type(tree).__name__}; put a single array into a list"
        )
    else:
        yield "/".join(path), tree


def name_of(variable: Array, named: Mapping[str, Array]) -> str:
    """Return the name of one of the named variables, found by identity."""
    for name, array in named.items():
        if array is variable:
            return name
    raise ValueError(
        "var_list of exclude_from_weight_decay must hold variables of the optimizer, received an"
        f" array of shape {variable.shape} that is none; pass the very arrays, or names"
    )


def check_variable(name: str, variable: Any) -> Array:
    """Return the array itself, having checked that it can be updated in place."""
    if not isinstance(variable, np.ndarray) or isinstance(variable, np.ma.MaskedArray):
        raise TypeError(
            f"variable {name!r} must be a NumPy array without a mask, received"
            f" {type(variable).__name__}; make it one with numpy.array"
        )
    if variable.dtype.name not in _VARIABLE_DTYPES:
        raise TypeError(
            f"variable {name!r} must be of dtype {', '.join(_VARIABLE_DTYPES)}, received"
            f" {variable.dtype}; convert it, or leave it out"
        )
    if not variable.flags.writeable:
        raise ValueError(
            f"variable {name!r} must be writable, received a read-only array; make it writable"
            " or pass a copy"
        )
    if overlaps_itself(variable):
        raise ValueError(
            f"variable {name!r} must not overlap itself, received strides {variable.strides} for"
            f" shape {variable.shape}; pass a copy"
        )
    return variable


def overlaps_itself(array: Array) -> bool:
    """Return whether two elements may share memory, judged by the strides alone."""
    if array.size == 0:
        return False
    extent = array.itemsize
    axes = [(abs(step), n) for step, n in zip(array.strides, array.shape, strict=True) if n > 1]
    for step, n in sorted(axes):
        if step < extent:
            return True
        extent += step * (n - 1)
    return False


def _check_separate(named: Mapping[str, Array]) -> None:
    spans = sorted(
        (*np.lib.array_utils.byte_bounds(array), name)
        for name, array in named.items()
        if array.size
    )
    # Only arrays that start before the end of an earlier one can share memory with it.
    open_spans: list[tuple[int, str]] = []
    for start, end, name in spans:
        open_spans = [(other_end, other) for other_end, other in open_spans if other_end > start]
        for _, other in open_spans:
            if _share_memory(named[name], named[other]):
                raise ValueError(
                    f"variables must not share memory, received {other!r} and {name!r} that do;"
                    " pass a tied variable once, with the sum of its gradients"
                )
        open_spans.append((end, name))


def _share_memory(one: Array, other: Array) -> bool:
    if one.flags.c_contiguous and other.flags.c_contiguous:
        return True
    try:
        # The exact answer may take exponential time; arrays as odd as that count as overlapping.
        return np.shares_memory(one, other, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def takes_flat_lists(variables: Tree) -> bool:
    """Return whether a list of all gradients cannot be taken for a structure of them."""
    if isinstance(variables, Mapping):
        return True
    return not any(isinstance(child, (Mapping, list, tuple)) for child in variables)


def in_structure(grads: Tree, variables: Tree) -> list[Any]:
    """Return the gradients in a structure like that of the variables, in their order."""
    return list(_like(grads, variables, ()))


def _like(grads: Tree, variables: Tree, path: tuple[str, ...]) -> Iterator[Any]:
    if isinstance(variables, Mapping):
        _check_keys(grads, variables, path)
        for key, child in variables.items():
            yield from _like(grads[key], child, (*path, str(key)))
    elif isinstance(variables, (list, tuple)):
        if not isinstance(grads, (list, tuple)) or len(grads) != len(variables):
            received = f"{len(grads)}" if isinstance(grads, (list, tuple)) else type(grads).__name__
            raise ValueError(
                f"grads{_place(path)} must have as many gradients as there are variables,"
                f" {len(variables)}, received {received}; put None where there is none"
            )
        for number, child in enumerate(variables):
            yield from _like(grads[number], child, (*path, str(number)))
    else:
        yield grads


def _check_keys(grads: Tree, variables: Mapping[Any, Tree], path: tuple[str, ...]) -> None:
    if not isinstance(grads, Mapping):
        raise ValueError(
            f"grads{_place(path)} must be a dict with the keys of the variables, or a flat list of"
            f" all gradients, received {type(grads).__name__}"
        )
    missing = [key for key in variables if key not in grads]
    unknown = [key for key in grads if key not in variables]
    if missing or unknown:
        raise ValueError(
            f"grads{_place(path)} must have the keys of the variables; missing {missing}, unknown"
            f" {unknown}; put None where there is no gradient"
        )


def _place(path: tuple[str, ...]) -> str:
    return f"[{'/'.join(path)}]" if path else ""


def as_arrays(grads: list[Any], names: list[str]) -> list[Array | None]:
    """Return gradients as plain arrays, and None where there is none; may run foreign code."""
    return [
        grad if type(grad) is np.ndarray or grad is None else _as_array(grad, name)
        for grad, name in zip(grads, names, strict=True)
    ]


def check_gradient(grad: Array | None, name: str, shape: tuple[int, ...]) -> Array | None:
    """Return a gradient, or None, as it is, if it fits the variable of this name and shape."""
    if grad is None:
        return None
    if grad.dtype.kind != "f" and not grad.dtype.name.startswith(_NARROW_FLOATS):
        raise TypeError(
            f"the gradient of {name!r} must be of a real floating dtype, received {grad.dtype};"
            " convert it"
        )
    if grad.shape != shape:
        raise ValueError(
            f"the gradient of {name!r} must have the variable's shape {shape}, received"
            f" {grad.shape}; gradients are not broadcast"
        )
    return grad


def _as_array(grad: Any, name: str) -> Array:
    if isinstance(grad, np.ma.MaskedArray):
        raise TypeError(
            f"the gradient of {name!r} must not have a mask, received a masked array; fill it"
        )
    try:
        array = np.asarray(grad)
    except Exception as error:
        raise TypeError(
            f"the gradient of {name!r} must be an array, a tensor that NumPy can read or a list of"
            f" numbers, received {type(grad).__name__} ({error}); convert it to a NumPy array"
        ) from error
    # Numbers that are written down may all be whole.
    written_down = isinstance(grad, (list, tuple, int)) and array.dtype.kind in "iu"
    return array.astype(np.float64) if written_down else array

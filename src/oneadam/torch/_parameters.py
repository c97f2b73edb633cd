"""What may be a parameter of the optimizer and its gradient, and their local tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from oneadam._engines.torch.tensors import is_dense, overlaps_itself, span
from oneadam.torch import _sharding

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_parameter(name: str, param: Tensor) -> None:
    """Refuse a parameter that cannot be updated in place.

    Raises:
        TypeError: it is of a kind or dtype that the optimizer does not know.
        ValueError: it has no memory of its own that may be written.
    """
    if is_lazy(param):
        raise ValueError(
            f"parameter {name!r} must have a shape, received an uninitialized parameter of a lazy"
            " module; run the module once before making the optimizer"
        )
    if param.dtype not in DTYPES:
        raise TypeError(
            f"parameter {name!r} must be of dtype float16, bfloat16, float32 or float64, received"
            f" {param.dtype}; convert it, or leave it out"
        )
    if param.is_meta:
        raise ValueError(
            f"parameter {name!r} must have memory, received one on the meta device; materialize"
            " the model (to_empty) before making the optimizer"
        )
    if param.is_inference():
        raise ValueError(
            f"parameter {name!r} must be trainable, received a tensor made under"
            " torch.inference_mode(), which must not change; make the model outside of it, or"
            " clone the tensor"
        )
    _sharding.check_placements(name, param)
    _check_memory(name, _sharding.local(param))


def _check_memory(name: str, local: Tensor) -> None:
    wrapped: Any = local  # what the test below would make of its type cannot be said
    if is_traceable_wrapper_subclass(wrapped):
        raise TypeError(
            f"parameter {name!r} must be a plain tensor or a DTensor, received"
            f" {type(wrapped).__name__}; leave it out, or train it in a plain dtype"
        )
    if local.layout != torch.strided:
        raise TypeError(
            f"parameter {name!r} must be dense, received the layout {local.layout}; convert it with"
            " to_dense()"
        )
    if is_freed(local):
        raise ValueError(
            f"parameter {name!r} must have memory, received one whose storage was freed; bring it"
            " back before the step"
        )
    if overlaps_itself(local):
        raise ValueError(
            f"parameter {name!r} must not overlap itself, received strides {local.stride()} for"
            f" shape {tuple(local.shape)}, as an expanded tensor has; pass a contiguous copy"
        )


def check_separate(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Refuse tensors that share memory with one another, because each is written to.

    Args:
        names: what the tensors are called in the error.
        tensors: strided, the parts in this process.
    """
    spans = sorted(
        (str(tensor.device), *span(tensor), number)
        for number, tensor in enumerate(tensors)
        if tensor.numel()
    )
    open_spans: list[tuple[str, int, int]] = []
    for device, start, end, number in spans:
        open_spans = [one for one in open_spans if one[0] == device and one[1] > start]
        for _, _, other in open_spans:
            if _share_memory(tensors[number], tensors[other]):
                raise ValueError(
                    f"parameters and state must not share memory, received {names[other]!r} and"
                    f" {names[number]!r} that do; pass a tied parameter once, as"
                    " named_parameters() does, and copy values (copy_) in place of exchanging"
                    " memory"
                )
        open_spans.append((device, end, number))


def _share_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether tensors whose spans overlap have an element in common."""
    if one.device.type != "cpu" or (is_dense(one) and is_dense(other)):
        return True
    try:
        # The exact answer may take exponential time; what is as odd as that counts as sharing.
        return np.shares_memory(
            _as_bytes(one),
            _as_bytes(other),
            max_work=100_000,  # type: ignore[arg-type]
        )
    except np.exceptions.TooHardError:
        return True


def _as_bytes(tensor: Tensor) -> NDArray[Any]:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    array: NDArray[Any] = tensor.detach().view(integer).numpy()
    return array


def is_freed(tensor: Tensor) -> bool:
    """Return whether a tensor has elements and no memory for them."""
    return bool(tensor.numel()) and tensor.device.type == "cpu" and tensor.data_ptr() == 0


def local_gradient(name: str, param: Tensor, local: Tensor, grad: Any) -> Tensor:
    """Return a gradient as a strided tensor beside its parameter's local part.

    Args:
        name: the parameter's.
        param: the parameter.
        local: its local part.
        grad: a tensor, sparse or not, sharded like the parameter or in a way that can be changed
            to that.

    Raises:
        TypeError: it is of a dtype or kind that does not fit.
        ValueError: it is of another shape or on another device.
    """
    if not isinstance(grad, Tensor):
        raise TypeError(
            f"the gradient of {name!r} must be a tensor, received {type(grad).__name__}; assign"
            " the tensor itself to .grad"
        )
    if grad.shape != param.shape:
        raise ValueError(
            f"the gradient of {name!r} must have the parameter's shape {tuple(param.shape)},"
            f" received {tuple(grad.shape)}; gradients are not broadcast"
        )
    if not grad.is_floating_point():
        raise TypeError(
            f"the gradient of {name!r} must be of a real floating dtype, received {grad.dtype};"
            " convert it"
        )
    grad = _sharding.local_gradient(name, param, grad)
    if grad.device != local.device:
        raise ValueError(
            f"the gradient of {name!r} must be on its parameter's device {local.device}, received"
            f" one on {grad.device}; move it there"
        )
    if grad.layout != torch.strided:
        grad = grad.to_dense()
    plain: Tensor = grad.detach().resolve_neg()
    if is_freed(plain):
        if plain._is_zerotensor():
            return torch.zeros_like(local, dtype=plain.dtype)
        raise ValueError(
            f"the gradient of {name!r} must have memory, received one whose storage was freed;"
            " bring it back before the step, or set .grad to None"
        )
    return plain

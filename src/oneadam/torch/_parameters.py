"""What may be a parameter of the optimizer and its gradient, and their local tensors."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from oneadam._engines.torch.tensors import overlaps_itself, span
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
    if overlaps_itself(local):
        raise ValueError(
            f"parameter {name!r} must not overlap itself, received strides {local.stride()} for"
            f" shape {tuple(local.shape)}, as an expanded tensor has; pass a contiguous copy"
        )


def check_separate(names: Iterable[str], locals_: Iterable[Tensor]) -> None:
    """Refuse parameters that share memory with one another."""
    spans = sorted(
        (str(local.device), *span(local), name)
        for name, local in zip(names, locals_, strict=True)
        if local.numel() and is_in_memory(local)
    )
    for (device, _, end, name), (other_device, start, _, other) in pairwise(spans):
        # Strided ones may interlace; that is rare enough to be refused with the rest.
        if device == other_device and start < end:
            raise ValueError(
                f"parameters must not share memory, received {name!r} and {other!r} that do; pass a"
                " tied parameter once, as named_parameters() does"
            )


def is_in_memory(local: Tensor) -> bool:
    """Return whether a tensor has an address; those of a fake mode have none."""
    return type(local).__name__ != "FakeTensor"


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
    return plain

"""Parameters that are spread over processes, and sums over all their parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

Group = Any
"""A `torch.distributed.ProcessGroup`."""
Float64s = NDArray[np.float64]


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, the tensor itself if it is whole."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():
            return tensor.to_local()
    return tensor


def check_placements(name: str, param: Tensor) -> None:
    """Refuse a parameter whose parts have yet to be added up."""
    if isinstance(param, DTensor) and any(isinstance(p, Partial) for p in param.placements):
        raise ValueError(
            f"parameter {name!r} must be sharded or replicated, received the placements"
            f" {param.placements}; redistribute it"
        )


def local_gradient(name: str, param: Tensor, grad: Tensor) -> Tensor:
    """Return the part of a gradient that belongs to the local part of its parameter."""
    if isinstance(param, DTensor) != isinstance(grad, DTensor):
        raise TypeError(
            f"the gradient of {name!r} must be spread over the processes like its parameter,"
            f" received {type(grad).__name__} for {type(param).__name__}; distribute both alike"
        )
    if not isinstance(param, DTensor) or not isinstance(grad, DTensor):
        return grad
    if grad.device_mesh != param.device_mesh:
        raise ValueError(
            f"the gradient of {name!r} must be on its parameter's mesh {param.device_mesh},"
            f" received one on {grad.device_mesh}; distribute both alike"
        )
    if grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    return grad.to_local()


def like(value: Tensor, param: Tensor) -> Tensor:
    """Return a whole tensor spread over the processes like a parameter, without talking to them."""
    if not isinstance(param, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(
        value.to(param.device), param.device_mesh, param.placements, src_data_rank=None
    )


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; all processes that hold a part must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Sums:
    """Adds up over all processes what each has found out about its own parts.

    Each group of processes adds up once for all that is spread over it, so that a mesh with
    parameters sharded along one of its dimensions is asked once.

    Args:
        params: the parameters.
        process_group: over which plain parameters are spread, if they are.
    """

    def __init__(self, params: Sequence[Tensor], process_group: Group | None) -> None:
        kinds: dict[tuple[Group, ...], int] = {}
        self._kinds = np.array(
            [kinds.setdefault(_groups(p, process_group), len(kinds)) for p in params], np.intp
        )
        self._count = len(kinds)
        groups = dict.fromkeys(group for kind in kinds for group in kind)
        self._groups = [
            (group, [number for kind, number in kinds.items() if group in kind]) for group in groups
        ]

    @property
    def is_local(self) -> bool:
        """Whether this process has all there is to add up."""
        return not self._groups

    def of_each(self, values: Float64s) -> Float64s:
        """Return for each parameter the sum over its parts, given those of the parts here."""
        values = values.copy()
        for group, kinds in self._groups:
            rows = np.isin(self._kinds, kinds)
            values[rows] = _added_up(values[rows], group)
        return values

    def of_all(self, values: Float64s) -> float:
        """Return the sum over all parts of all parameters, given those of the parts here."""
        totals: Float64s = np.bincount(self._kinds, values, self._count).astype(np.float64)
        for group, kinds in self._groups:
            totals[kinds] = _added_up(totals[kinds], group)
        return float(totals.sum())

    def any(self, here: bool) -> bool:
        """Return whether something holds in any process that has a part."""
        for group, _ in self._groups:
            here = bool(_added_up(np.array([float(here)]), group)[0])
        return here


def _groups(param: Tensor, process_group: Group | None) -> tuple[Group, ...]:
    """Return the groups of processes over which the parts of a parameter are spread."""
    if not isinstance(param, DTensor):
        return () if process_group is None else (process_group,)
    mesh = param.device_mesh
    return tuple(
        mesh.get_group(dimension)
        for dimension, placement in enumerate(param.placements)
        if not placement.is_replicate()
    )


def _added_up(values: Float64s, group: Group) -> Float64s:
    device = torch.device("cpu")
    if dist.get_backend(group) == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    sums = torch.tensor(values, device=device)
    try:
        dist.all_reduce(sums, group=group)
    except RuntimeError as error:
        raise RuntimeError(
            f"the {dist.get_world_size(group)} processes of a sharded step must all take it,"
            " received no answer from one of them when the norms of the gradients were added up;"
            " nothing has changed in this process. Look for the one that has failed, and resume"
            " from the last checkpoint"
        ) from error
    result: Float64s = sums.cpu().numpy()
    return result

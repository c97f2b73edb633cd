"""Parameters that are spread over processes, and sums over all their parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

Group = Any
"""A `torch.distributed.ProcessGroup`."""


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
        process_group: over which plain parameters are spread, each whole in one process.
    """

    def __init__(self, params: Sequence[Tensor], process_group: Group | None) -> None:
        plain = _Kind(False, () if process_group is None else (process_group,))
        self._plain_groups = plain.groups
        # A process without parameters must take part all the same.
        kinds = {plain: 0}
        self._kinds = np.array(
            [kinds.setdefault(_kind(param) or plain, len(kinds)) for param in params], np.intp
        )
        self._count = len(kinds)
        groups = dict.fromkeys(group for kind in kinds for group in kind.groups)
        self._groups = [
            (group, [number for kind, number in kinds.items() if group in kind.groups])
            for group in groups
        ]

    @property
    def is_local(self) -> bool:
        """Whether this process has all there is to add up."""
        return not self._groups

    @property
    def has_all(self) -> bool:
        """Whether this process has a part of every parameter."""
        return not self._plain_groups

    def of_each(self, values: Any) -> Any:
        """Return for each parameter the sum over its parts, given those of the parts here.

        Args:
            values: float64, an array, or a tensor if the device is to keep them.
        """
        sums = _as_tensor(values).clone()
        for group, kinds in self._groups:
            # Kind 0 is whole where it is.
            rows = np.flatnonzero(np.isin(self._kinds, [kind for kind in kinds if kind]))
            if len(rows):
                sums[rows] = _added_up(sums[rows], group)
        return sums if isinstance(values, Tensor) else sums.numpy()

    def of_all(self, values: Any) -> Any:
        """Return the sum over all parts of all parameters, given those of the parts here."""
        here = _as_tensor(values)
        kinds_here = torch.from_numpy(self._kinds).to(here.device)
        totals = here.new_zeros(self._count).index_add_(0, kinds_here, here)
        for group, kinds in self._groups:
            totals[kinds] = _added_up(totals[kinds], group)
        return totals.sum() if isinstance(values, Tensor) else np.float64(totals.sum().item())

    def any(self, here: bool | Tensor) -> bool | Tensor:
        """Return whether something holds in any process that has a part.

        A bool is answered with a bool, a tensor with one on its device.
        """
        for group, _ in self._groups:
            flag = here.double() if isinstance(here, Tensor) else _flag(here)
            found = _added_up(flag, group) != 0.0
            here = found if isinstance(here, Tensor) else bool(found)
        return here


class _Kind(NamedTuple):
    """How parameters are spread."""

    is_split: bool
    """Whether each of them has parts in several processes."""
    groups: tuple[Group, ...]
    """The groups of processes over which they are spread."""


def _kind(param: Tensor) -> _Kind | None:
    """Return how a parameter is split, None for one that is whole."""
    if not isinstance(param, DTensor):
        return None
    mesh = param.device_mesh
    groups = (
        mesh.get_group(dimension)
        for dimension, placement in enumerate(param.placements)
        if not placement.is_replicate()
    )
    return _Kind(True, tuple(groups))


def is_first(params: Sequence[Tensor]) -> bool:
    """Return whether this process is the first of all that hold a part of parameters."""
    meshes = {param.device_mesh for param in params if isinstance(param, DTensor)}
    return not any(any(mesh.get_coordinate() or ()) for mesh in meshes)


def happened_anywhere(params: Sequence[Tensor], here: bool) -> bool:
    """Return whether something has happened in any process that holds a part of parameters."""
    for mesh in dict.fromkeys(p.device_mesh for p in params if isinstance(p, DTensor)):
        for dimension in range(mesh.ndim):
            here = bool(_added_up(_flag(here), mesh.get_group(dimension)))
    return here


def _as_tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(values)


def _flag(here: bool) -> Tensor:
    return torch.tensor(float(here), dtype=torch.float64, device="cpu")


def _added_up(values: Tensor, group: Group) -> Tensor:
    sums = values.clone()
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and "gloo" not in str(dist.get_backend(group)):
        sums = sums.to(accelerator)
    try:
        dist.all_reduce(sums, group=group)
    except RuntimeError as error:
        raise RuntimeError(
            f"the {dist.get_world_size(group)} processes of a sharded step must all take it,"
            " received no answer from one of them when they compared their gradients; nothing has"
            " changed in this process. Look for the one that has failed, and resume from the last"
            " checkpoint"
        ) from error
    return sums.to(values.device)

"""Parameters to step with, and what is held beside them: the oracle, and snapshots to the bit."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch
from oracle import Oracle, flat
from tolerances import allowed, spacing, unit
from torch import Tensor
from torch.nn import Parameter

GROUP_CONFIG = {"lr": "learning_rate", "eps": "epsilon"}
EVERYTHING: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.1,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 3,
    "gradient_accumulation_steps": 3,
}
"""All options that keep state, at once."""
OF_THE_OPTIMIZER = ("calls", "updates", "accumulated_calls", "skipped_calls")


class BesideError(AssertionError):
    """What was held beside says otherwise."""


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor's values as an array of its own, bfloat16 included."""
    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return plain.numpy().copy()


def parameters(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Parameter]:
    """Parameters with normal values."""
    source = torch.Generator().manual_seed(1000 + seed)
    return [Parameter(torch.randn(shape, generator=source).to(dtype)) for shape in shapes]


def alike(params: Iterable[Tensor]) -> list[Parameter]:
    """Copies of parameters, with the same strides."""
    copies = []
    for param in params:
        copy = torch.empty_strided(param.shape, param.stride(), dtype=param.dtype)
        copies.append(Parameter(copy.copy_(param.detach()), param.requires_grad))
    return copies


def gradients(params: Iterable[Tensor], seed: int) -> list[Tensor]:
    """Gradients for parameters: those of one element always have the same sign."""
    signs = torch.Generator().manual_seed(7)
    source = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(p.shape, generator=signs).sign()
            * (0.5 + torch.rand(p.shape, generator=source))
        ).to(p.dtype)
        for p in params
    ]


def give(params: Iterable[Tensor], seed: int, scale: float = 1.0) -> None:
    """Sets the gradients of parameters, depending on their shapes and the seed alone."""
    params = list(params)
    for param, grad in zip(params, gradients(params, seed), strict=True):
        param.grad = grad * scale


def train(
    optimizer: Any, params: Iterable[Tensor], seeds: Iterable[int], scale: float = 1.0
) -> None:
    """Takes one step for each seed."""
    params = list(params)
    for seed in seeds:
        give(params, seed, scale)
        optimizer.step()


def parameters_of(optimizer: Any) -> list[Tensor]:
    """All parameters of an optimizer."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def spacings(
    found: Iterable[Tensor], wanted: Iterable[Tensor], start: Iterable[Tensor] | None = None
) -> float:
    """The largest distance of elements, in float32 spacings at the largest magnitude they had.

    Args:
        found: tensors.
        wanted: of the same shapes.
        start: where they were before; elements went straight from there.
    """
    wanted = list(wanted)
    largest = 0.0
    for three in zip(found, wanted, wanted if start is None else start, strict=True):
        one, other, before = (np.atleast_1d(array_of(t).astype(np.float64)) for t in three)
        if one.shape != other.shape:
            raise BesideError(f"shapes {one.shape} and {other.shape} differ")
        # Where a value comes near zero, its step is what is rounded.
        reach = np.maximum(np.maximum(np.abs(other), np.abs(before)), 2.0**-3)
        off = np.abs(one - other) / spacing(reach, "float32")
        off[~np.isfinite(one) | ~np.isfinite(other)] = math.inf
        largest = max(largest, float(off.max(initial=0.0)))
    return largest


def snapshot(optimizer: Any, params: Sequence[Tensor] | None = None) -> dict[str, Any]:
    """Everything that a step could change, to the last bit, by name."""
    params = parameters_of(optimizer) if params is None else params
    taken: dict[str, Any] = {}
    for number, param in enumerate(params):
        taken[f"{number}"] = described(param)
        for key, value in optimizer.state.get(param, {}).items():
            taken[f"{number}/{key}"] = described(value)
    for number, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key != "params":
                taken[f"group {number}/{key}"] = described(value)
    return taken


def described(value: Any) -> Any:
    """A tensor's shape, dtype and bits; anything else as it is written."""
    if isinstance(value, Tensor):
        return tuple(value.shape), str(value.dtype), array_of(value).tobytes()
    return repr(value)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuses two snapshots that differ.

    Raises:
        BesideError: with the names of what differs.
    """
    names = [n for n in {**one, **other} if n not in one or n not in other or one[n] != other[n]]
    if names:
        raise BesideError(f"these differ: {names}")


@contextmanager
def unchanged(optimizer: Any, params: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Holds a block to changing nothing at all."""
    before = snapshot(optimizer, params)
    yield
    same(before, snapshot(optimizer, params))


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict after being saved and loaded as nothing but data."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@contextmanager
def warned(*words: str) -> Iterator[None]:
    """Expects one warning that has these words, or none where there are no words.

    Raises:
        BesideError: there was another number of warnings, or a word is missing.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(warning.message) for warning in caught]
    if len(texts) != bool(words) or not all(word in text for text in texts for word in words):
        raise BesideError(f"expected a warning with {words}, received {texts}")


class Beside:
    """An optimizer, and for each of its groups an oracle with the group's configuration.

    Args:
        optimizer: before its first step.
        config: of the optimizer, by the names of the definition.
        groups: for each group what it has for itself, by the names of groups.
    """

    def __init__(
        self, optimizer: Any, config: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
    ) -> None:
        self.optimizer = optimizer
        self.oracles: list[Oracle] = []
        self.signs: list[float] = []
        self.largest: list[np.ndarray] = []
        for own in groups:
            self.add(config, own)

    def add(self, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Takes the optimizer's next group under observation."""
        merged = {**config, **{GROUP_CONFIG.get(key, key): value for key, value in own.items()}}
        if "betas" in merged:
            merged["beta_1"], merged["beta_2"] = merged.pop("betas")
        self.signs.append(-1.0 if merged.pop("maximize", False) else 1.0)
        params = self.optimizer.param_groups[len(self.oracles)]["params"]
        arrays = {str(number): array_of(param) for number, param in enumerate(params)}
        oracle = Oracle(arrays, **merged)
        if self.oracles:
            oracle.calls = self.oracles[0].calls
            oracle.updates = self.oracles[0].updates
        self.oracles.append(oracle)
        self.largest += [np.abs(np.array(flat(array))) for array in arrays.values()]

    def step(self) -> None:
        """Takes a step with the gradients that the parameters have, on both sides."""
        for oracle, group, sign in zip(
            self.oracles, self.optimizer.param_groups, self.signs, strict=True
        ):
            given = {
                str(number): None
                if p.grad is None
                else sign * array_of(p.grad.to_dense()).astype(float)
                for number, p in enumerate(group["params"])
            }
            if any(gradient is not None for gradient in given.values()):
                oracle.call(given)
            else:
                oracle.calls += 1
                oracle.updates += 1
        self.optimizer.step()
        self.check()

    def check(self) -> None:
        """Compares all parameters with their oracles.

        Raises:
            BesideError: naming group, parameter and the distance.
        """
        position = 0
        for number, (oracle, group) in enumerate(
            zip(self.oracles, self.optimizer.param_groups, strict=True)
        ):
            for key, param in enumerate(group["params"]):
                self._compare(f"group {number}, parameter {key}", position, param, oracle, str(key))
                position += 1

    def _compare(self, place: str, position: int, param: Tensor, oracle: Oracle, key: str) -> None:
        found, wanted = np.array(flat(array_of(param))), np.array(oracle.values[key])
        reach = self.largest[position] = np.maximum(self.largest[position], np.abs(wanted))
        dtype = oracle.dtypes[key]
        clipped = oracle.clipnorm is not None
        limit = allowed("value", dtype, oracle.updates, 2 * clipped)
        # Where a value comes near zero, its step is what is rounded.
        reach = np.maximum(reach, 2.0**-6)
        off = np.abs(found - wanted) / spacing(reach, unit("value", dtype))
        off[np.isnan(found) & np.isnan(wanted)] = 0.0
        if off.size and not off.max() <= limit:
            raise BesideError(f"{place} is {off.max():.3g} spacings off, {limit:.3g} are allowed")

"""Small real data, small models, and an account of training that no trainer keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from oneadam.cli import digits

MOMENTUM = 0.8
RECIPE: dict[str, Any] = {
    "learning_rate": 0.01,
    "weight_decay": 0.01,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": MOMENTUM,
    "gradient_accumulation_steps": 2,
}
"""Everything at once; see `averages_of` for what it must come to."""

Values = dict[str, Tensor]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: small models wait for others longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Data(NamedTuple):
    """Handwritten digits: float32 images of 64 pixels, and int64 labels."""

    training: TensorDataset
    held_out: TensorDataset


def data(count: int | None = None) -> Data:
    """The digits; the first `count` of those to train on."""
    loaded = digits.load()
    training, held_out = (
        TensorDataset(torch.from_numpy(e.images[:n]), torch.from_numpy(e.labels[:n]))
        for e, n in ((loaded.training, count), (loaded.held_out, None))
    )
    return Data(training, held_out)


def network(seed: int = 0, hidden: int = 16) -> nn.Sequential:
    """A two-layer perceptron, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def values(module: nn.Module) -> Values:
    """A copy of the parameters by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def accuracy(module: nn.Module, dataset: TensorDataset) -> float:
    """The share of the digits that are recognised."""
    images, labels = dataset.tensors
    with torch.no_grad():
        return float((module(images).argmax(1) == labels).float().mean())


def averages_of(history: Iterable[Values], momentum: float = MOMENTUM) -> Values:
    """The exponential moving average of the parameters after each update, in float64."""
    average: Values = {}
    for entry in history:
        for name, value in entry.items():
            wide = value.double()
            average[name] = momentum * average.get(name, wide) + (1 - momentum) * wide
    assert average, "there has been no update"
    return average


def differing(one: Values, other: Values) -> list[str]:
    """The names of what is not the same to the last bit."""
    assert one.keys() == other.keys()
    assert one
    return [name for name in one if not torch.equal(one[name], other[name])]


def far(one: Values, other: Values, tolerance: float = 2e-6) -> list[str]:
    """The names of what is further apart than rounding takes values of about 1."""
    assert one.keys() == other.keys()
    assert one
    return [
        name
        for name in one
        if not torch.allclose(one[name].double(), other[name].double(), rtol=0, atol=tolerance)
    ]


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    """Everything in a nested state by its path, for comparing two of them."""
    if isinstance(state, dict):
        items: Iterable[tuple[Any, Any]] = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return {path: state}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= leaves(value, f"{path}/{key}")
    return found


def unlike(one: Any, other: Any) -> list[str]:
    """The paths at which two nested states are not the same to the last bit."""
    here, there = leaves(one), leaves(other)
    assert here
    return [
        path
        for path in sorted(here.keys() | there.keys())
        if path not in here or path not in there or not _same(here[path], there[path])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


class History:
    """The parameters after each update, as `look` finds them; to be called after every batch."""

    def __init__(self, module: nn.Module, updates: Callable[[], int]) -> None:
        self._module = module
        self._updates = updates
        self._seen = updates()
        self.after: list[Values] = []

    def look(self) -> None:
        """Take down the parameters if there has been an update since."""
        if self._updates() != self._seen:
            self._seen = self._updates()
            self.after.append(values(self._module))

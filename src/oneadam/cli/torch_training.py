"""The demo's training with PyTorch: a module, autograd, and the optimizer as torch's users call it.

No other module of the command imports PyTorch.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from oneadam.cli import progress
from oneadam.cli.digits import Digits, Examples
from oneadam.cli.network import Floats, initial_parameters
from oneadam.cli.progress import Tensors
from oneadam.cli.recipe import Recipe
from oneadam.cli.training import arguments
from oneadam.torch import Adam

_COUNTERS = ("calls", "updates", "accumulated_calls", "skipped_calls")


class Training:
    """The network, from the weights that NumPy's starts from, and its optimizer."""

    def __init__(self, recipe: Recipe, digits: Digits) -> None:
        # In a network this small, further threads only wait for each other.
        torch.set_num_threads(1)
        layers = initial_parameters(recipe.seed)
        self._model = nn.Sequential(
            OrderedDict(
                hidden=_linear(**layers["hidden"]),
                rectifier=nn.ReLU(),
                output=_linear(**layers["output"]),
            )
        )
        self.optimizer = Adam(self._model.named_parameters(), **arguments(recipe, digits))
        self.optimizer.exclude_from_weight_decay(var_names=["bias"])

    def step(self, batch: Examples) -> float:
        """Make one call with the gradients of a batch, and return its loss before."""
        self.optimizer.zero_grad()
        logits = self._model(torch.tensor(batch.images))
        loss = nn.functional.cross_entropy(logits, torch.tensor(batch.labels))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, examples: Examples) -> float:
        """Return the share of examples whose digit is recognised."""
        recognised = self._model(torch.tensor(examples.images)).argmax(dim=1)
        return float((recognised.numpy() == examples.labels).mean())

    def tensors(self) -> Tensors:
        """Return all that has to be kept to continue later, by name."""
        saved = self.optimizer.state_dict()
        (group,) = saved["param_groups"]
        state = {
            f"{group['param_names'][row]}/{slot}": value.numpy()
            for row, own in saved["state"].items()
            for slot, value in own.items()
        }
        counters = {name: torch.tensor(group[name]).numpy() for name in _COUNTERS}
        weights = {name: value.numpy() for name, value in self._model.state_dict().items()}
        return progress.joined(weights=weights, optimizer={**state, **counters})

    def restore(self, tensors: Tensors) -> None:
        """Take over what `tensors` returned, or raise ValueError where it does not fit."""
        weights = progress.part(tensors, "weights")
        own = progress.part(self.tensors(), "weights")
        progress.check_alike(weights, own)
        saved = self.optimizer.state_dict()
        (group,) = saved["param_groups"]
        kept = progress.part(tensors, "optimizer")
        group.update({name: int(kept.pop(name)) for name in _COUNTERS if name in kept})
        for name, value in kept.items():
            parameter, _, slot = name.rpartition("/")
            if parameter in own:
                row = group["param_names"].index(parameter)
                saved["state"].setdefault(row, {})[slot] = torch.from_numpy(value)
        with warnings.catch_warnings():
            # What it would warn of, the check below refuses.
            warnings.simplefilter("ignore")
            self.optimizer.load_state_dict(saved)
        self._model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
        progress.check_alike(tensors, self.tensors())


def _linear(kernel: Floats, bias: Floats) -> nn.Linear:
    """Return a layer with NumPy's weights; torch has outputs first."""
    layer = nn.Linear(*kernel.shape)
    values: dict[str, Any] = {"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)}
    layer.load_state_dict(values)
    return layer

"""The torch door behind the interface of the NumPy door, for the tests that all doors share.

Parameters are tensors over the memory of the arrays, so that what happens to them is seen there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch

from oneadam import torch as door

KEYS = {
    "exp_avg": "momentum",
    "exp_avg_sq": "velocity",
    "max_exp_avg_sq": "velocity_hat",
    "average": "average",
    "gradient_accumulator": "gradient_accumulator",
    "step": "updates",
}


def tensor_over(array: np.ndarray) -> torch.Tensor:
    """A tensor over an array's memory, bfloat16 included."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def leaves(structure: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """The leaves of nested dicts and lists by name, as the NumPy door names them."""
    items = structure.items() if isinstance(structure, Mapping) else enumerate(structure)
    found: dict[str, Any] = {}
    for key, child in items:
        name = (*path, str(key))
        if isinstance(child, (Mapping, list, tuple)):
            found |= leaves(child, name)
        else:
            found["/".join(name)] = child
    return found


class Adam:
    """`oneadam.torch.Adam`, made when its parameters are known."""

    def __init__(self, **config: Any) -> None:
        self.config = config
        self.excluded: dict[str, Any] = {}
        self.assigned: list[Any] = []

    def exclude_from_weight_decay(self, **excluded: Any) -> None:
        self.excluded = excluded

    def build(self, structure: Any) -> None:
        arrays = leaves(structure)
        self.arrays = arrays
        self.parameters = {name: torch.nn.Parameter(tensor_over(a)) for name, a in arrays.items()}
        for parameter in self.parameters.values():
            parameter.grad_dtype = None  # any
        self.optimizer = self.made()
        if self.excluded:
            self.optimizer.exclude_from_weight_decay(**self.excluded)

    def made(self) -> Any:
        return door.Adam(self.parameters.items(), **self.config)

    def apply(self, gradients: Any) -> None:
        given = list(leaves(gradients).values())
        for parameter, gradient in zip(self.parameters.values(), given, strict=True):
            parameter.grad = None if gradient is None else tensor_over(gradient)
        self.optimizer.step()

    def finalize_variable_values(self, arrays: list[np.ndarray]) -> None:
        wanted = {id(array) for array in arrays}
        names = [name for name, array in self.arrays.items() if id(array) in wanted]
        self.optimizer.finalize_variable_values([self.parameters[name] for name in names])

    def state_dict(self) -> dict[str, np.ndarray]:
        saved = self.optimizer.state_dict()
        group = saved["param_groups"][0]
        state = {
            f"{self.config.get('name', 'adam')}/{name}": np.array(group[name])
            for name in ("calls", "updates", "accumulated_calls", "skipped_calls")
        }
        for number, name in enumerate(group["param_names"]):
            own = saved["state"].get(number, self.empty(name))
            for key, what in KEYS.items():
                if key in own:
                    state[f"{name}/{what}"] = own[key].numpy()
        return state

    def empty(self, name: str) -> dict[str, torch.Tensor]:
        """What the state is before the first step, when there is none yet."""
        config, array = self.config, self.arrays[name]
        dtype = torch.float64 if array.dtype == np.float64 else torch.float32
        wanted = {
            "exp_avg": True,
            "exp_avg_sq": True,
            "max_exp_avg_sq": config.get("amsgrad"),
            "average": config.get("use_ema"),
            "gradient_accumulator": (config.get("gradient_accumulation_steps") or 1) > 1,
        }
        return {
            k: torch.zeros(array.shape, dtype=dtype) for k, is_kept in wanted.items() if is_kept
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)

    @property
    def learning_rate(self) -> float:
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.optimizer.learning_rate = value


class LossScaleOptimizer(Adam):
    """`oneadam.torch.LossScaleOptimizer` around a door."""

    def __init__(self, inner: Adam, **settings: Any) -> None:
        super().__init__(**inner.config)
        self.settings = settings

    def made(self) -> Any:
        return door.LossScaleOptimizer(super().made(), **self.settings)

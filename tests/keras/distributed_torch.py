"""What is asked of Keras on PyTorch in each of two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from oneadam.keras import Adam

FULL: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.1,
    "global_clipnorm": 0.5,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 2,
    "gradient_accumulation_steps": 2,
}
Facts = dict[str, Any]


def model() -> Any:
    keras.utils.set_random_seed(4)
    layers = [keras.layers.Dense(16, "tanh", name="hidden"), keras.layers.Dense(8, name="last")]
    return keras.Sequential([keras.Input((8,)), *layers], name="net")


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 8)).astype(np.float32)
    return x, (x @ rng.normal(size=(8, 8))).astype(np.float32)


def optimizer_for(trained: Any) -> Any:
    optimizer = Adam(0.01, name="adam", **FULL)
    optimizer.build(trained.trainable_variables)
    return optimizer


def train(trained: Any, optimizer: Any, of: int, rank: int, steps: range, *, called: Any) -> None:
    """Take calls with this process's part of each batch, as Keras's guide has it."""
    x, y = data()
    for step in steps:
        batch = slice(16 * step + 16 // of * rank, 16 * step + 16 // of * (rank + 1))
        predicted = called(torch.from_numpy(x[batch]))
        loss = keras.losses.MeanSquaredError()(torch.from_numpy(y[batch]), predicted)
        trained.zero_grad()
        loss.backward()
        variables = trained.trainable_weights
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in variables], variables)


def numbers(trained: Any, optimizer: Any) -> dict[str, np.ndarray]:
    values = {v.path: v.value.detach().numpy() for v in trained.trainable_variables}
    return {**values, **optimizer.state_dict()}


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Return how far apart tensors are, in spacings of float32 at each one's largest magnitude."""
    assert one.keys() == other.keys()
    found = [0.0]
    for name, a in one.items():
        largest = max(float(np.abs(a).max()), float(np.finfo(np.float32).tiny))
        gap = np.abs(a.astype(np.float64) - other[name]).max() / np.spacing(np.float32(largest))
        found.append(float(gap))
    return max(found)


def join(folder: str, rank: int) -> None:
    store = dist.FileStore(str(Path(folder, "store")), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)


def in_parallel(folder: str, rank: int) -> Facts:
    """Train in this process with the other one, save on the way, and compare with one alone."""
    alone = model()
    single = optimizer_for(alone)
    train(alone, single, 1, 0, range(5), called=alone)
    single.flush()

    trained = model()
    optimizer = optimizer_for(trained)
    parallel = DistributedDataParallel(trained)
    train(trained, optimizer, 2, rank, range(3), called=parallel)
    # In the middle of a window, by one process for both.
    path = Path(folder, "adam.safetensors")
    if rank == 0:
        optimizer.save(path)
    dist.barrier()
    resumed = optimizer_for(trained)
    resumed.load(path)
    facts = {"same": apart(optimizer.state_dict(), resumed.state_dict())}
    train(trained, resumed, 2, rank, range(3, 5), called=parallel)
    resumed.flush()
    found = numbers(trained, resumed)
    every: list[Any] = [None, None]
    dist.all_gather_object(every, {name: array.tobytes() for name, array in found.items()})
    return facts | {
        "apart": apart(numbers(alone, single), found),
        "alike": every[0] == every[1],
        "counts": [resumed.calls, resumed.updates],
    }

"""A resumed run is bit-identical to one that was never interrupted."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from ml_dtypes import bfloat16

from oneadam.numpy import Adam, LossScaleOptimizer
from oneadam.schedules import CosineDecay

CALLS = 11
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "learning_rate": 0.1,
        "amsgrad": True,
        "weight_decay": 0.01,
        "global_clipnorm": 1.0,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "gradient_accumulation_steps": 3,
        "loss_scale_factor": 8.0,
        "on_nonfinite": "skip",
    },
    "schedule": {"learning_rate": CosineDecay(0.1, 10, warmup_target=0.2, warmup_steps=3)},
}

Variables = dict[str, np.ndarray]


def fresh() -> Variables:
    rng = np.random.default_rng(0)
    return {
        "wide": rng.normal(size=(3, 4)),
        "kernel": rng.normal(size=(5, 2)).astype(np.float32),
        "narrow": rng.normal(size=7).astype(bfloat16),
    }


def grads(call: int) -> dict[str, Any]:
    rng = np.random.default_rng(100 + call)
    made = {name: rng.normal(size=array.shape) for name, array in fresh().items()}
    if call == 6:
        made["kernel"][0] = np.inf
    return made if call % 4 else {**made, "wide": None}


def made(config: str, wrapped: bool) -> Any:
    optimizer = Adam(**CONFIGS[config])
    if wrapped and optimizer.get_config()["loss_scale_factor"] is None:
        return LossScaleOptimizer(optimizer, dynamic_growth_steps=3)
    return optimizer


def is_scheduled(optimizer: Any) -> bool:
    config = optimizer.get_config()
    return not isinstance(config.get("inner_optimizer", config)["learning_rate"], float)


def trained(optimizer: Any, variables: Variables, calls: range) -> None:
    optimizer.build(variables)
    for call in calls:
        if call == 5 and not is_scheduled(optimizer):
            optimizer.learning_rate = 0.05
        optimizer.apply(grads(call))


def contents(optimizer: Any, variables: Variables) -> dict[str, tuple[Any, ...]]:
    everything = {**optimizer.state_dict(), **{f"of {n}": a for n, a in variables.items()}}
    return {name: (array.dtype.str, array.tobytes()) for name, array in everything.items()}


def by_state_dict(optimizer: Any, variables: Variables, config: str, wrapped: bool, _: Path) -> Any:
    kept = {name: array.copy() for name, array in variables.items()}
    again = made(config, wrapped)
    again.build(kept)
    again.load_state_dict(optimizer.state_dict())
    return again, kept


def by_file(optimizer: Any, variables: Variables, config: str, wrapped: bool, folder: Path) -> Any:
    optimizer.save(folder / "state")
    kept = {name: array.copy() for name, array in variables.items()}
    again = made(config, wrapped)
    again.build(kept)
    again.load(folder / "state")
    return again, kept


def by_pickle(optimizer: Any, variables: Variables, *_: Any) -> Any:
    return pickle.loads(pickle.dumps((optimizer, variables)))


def by_copy(optimizer: Any, variables: Variables, *_: Any) -> Any:
    return copy.deepcopy((optimizer, variables))


@pytest.mark.filterwarnings("ignore:no gradient in this call")
@pytest.mark.parametrize("carry", [by_state_dict, by_file, by_pickle, by_copy])
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
@pytest.mark.parametrize("config", CONFIGS)
def test_saved_at_any_call(
    config: str, wrapped: bool, carry: Callable[..., Any], tmp_path: Path
) -> None:
    whole, variables = made(config, wrapped), fresh()
    trained(whole, variables, range(CALLS))
    wanted = contents(whole, variables)
    for position in range(CALLS):
        optimizer, parts = made(config, wrapped), fresh()
        trained(optimizer, parts, range(position))
        again, resumed = carry(optimizer, parts, config, wrapped, tmp_path)
        trained(again, resumed, range(position, CALLS))
        assert contents(again, resumed) == wanted, f"saved after {position} calls"


@pytest.mark.filterwarnings("ignore:no gradient in this call")
def test_a_lost_update_count_would_be_noticed() -> None:
    optimizer, variables = made("plain", False), fresh()
    trained(optimizer, variables, range(5))
    state = optimizer.state_dict()
    state["kernel/updates"] = np.array(1)
    again, kept = made("plain", False), {n: a.copy() for n, a in variables.items()}
    again.build(kept)
    again.load_state_dict(state)
    trained(optimizer, variables, range(5, 6))
    trained(again, kept, range(5, 6))
    assert contents(again, kept) != contents(optimizer, variables)


def test_in_a_fresh_process(tmp_path: Path) -> None:
    code = """
    import sys
    import numpy as np
    from oneadam.numpy import Adam
    folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    weights = [np.ones(5, np.float32)]
    optimizer = Adam(0.1, use_ema=True, gradient_accumulation_steps=2, global_clipnorm=1.0)
    optimizer.build(weights)
    if first:
        weights[0][:] = np.load(folder + "/weights.npy")
        optimizer.load(folder + "/state")
    for call in range(first, last):
        optimizer.apply([np.random.default_rng(call).normal(size=5)])
    np.save(folder + "/weights.npy", weights[0])
    optimizer.save(folder + "/state")
    print(weights[0].tobytes().hex(), optimizer.state_dict()["0/average"].tobytes().hex())
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    wanted = processes.run(code, whole, 0, 7)
    processes.run(code, parts, 0, 3)
    assert processes.run(code, parts, 3, 7) == wanted

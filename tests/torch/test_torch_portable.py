"""The portable format: by name, the same as the NumPy door's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beside import (
    EVERYTHING,
    alike,
    array_of,
    give,
    parameters,
    same,
    snapshot,
    spacings,
    train,
    unchanged,
    warned,
)
from safetensors import safe_open
from torch.nn import Parameter

import oneadam.numpy
from oneadam.schedules import ExponentialDecay
from oneadam.torch import Adam, LossScaleOptimizer

NAMES = ("kernel", "bias")
Named = list[tuple[str, Parameter]]


def named(seed: int = 0, dtype: torch.dtype = torch.float32) -> Named:
    return list(zip(NAMES, parameters((2, 3), (3,), seed=seed, dtype=dtype), strict=True))


def only(params: Named) -> list[Parameter]:
    return [param for _, param in params]


def copies(params: Named) -> Named:
    return [(name, copy) for (name, _), copy in zip(params, alike(only(params)), strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("config", [{}, EVERYTHING], ids=["bare", "all"])
@pytest.mark.parametrize("calls", [1, 5])
def test_a_resumed_run_is_the_same_to_the_bit(
    tmp_path: Path, config: dict[str, Any], dtype: torch.dtype, calls: int
) -> None:
    params = named(dtype=dtype)
    optimizer = Adam(params, lr=0.05, **config)
    train(optimizer, only(params), range(calls))
    optimizer.save(tmp_path / "adam.safetensors")
    others = copies(params)[::-1]
    resumed = Adam(others, lr=0.7, **config)
    resumed.load(tmp_path / "adam.safetensors")
    train(optimizer, only(params), range(calls, calls + 7))
    for seed in range(calls, calls + 7):
        give([p for _, p in reversed(others)], seed)
        resumed.step()
    same(snapshot(optimizer, only(params)), snapshot_of(resumed, others[::-1], optimizer))


def snapshot_of(optimizer: Adam, params: Named, like: Adam) -> dict[str, Any]:
    taken = snapshot(optimizer, only(params))
    taken["group 0/param_names"] = repr(like.param_groups[0]["param_names"])
    return taken


@pytest.mark.parametrize("direction", ["to torch", "from torch"])
@pytest.mark.parametrize("config", [{}, EVERYTHING], ids=["bare", "all"])
def test_between_this_door_and_numpys(
    tmp_path: Path, config: dict[str, Any], direction: str
) -> None:
    params = named()
    arrays = {name: array_of(param) for name, param in params}
    ours, theirs = Adam(params, lr=0.05, **config), oneadam.numpy.Adam(0.05, **config)
    theirs.build(arrays)

    def step(seed: int, *, torch_too: bool = True, numpy_too: bool = True) -> None:
        give(only(params), seed)
        if numpy_too:
            theirs.apply({name: array_of(p.grad) for name, p in params})
        if torch_too:
            ours.step()

    path = tmp_path / "adam.safetensors"
    for seed in range(5):
        step(seed, torch_too=direction == "from torch", numpy_too=direction == "to torch")
    if direction == "from torch":
        ours.save(path)
        theirs.load(path)
        for name, param in params:
            arrays[name][...] = array_of(param)
    else:
        theirs.save(path)
        ours.load(path)
        for name, param in params:
            param.data.copy_(torch.from_numpy(arrays[name]))
    for seed in range(5, 12):
        step(seed)
    assert (ours.calls, ours.updates) == (theirs.calls, theirs.updates)
    assert spacings(only(params), [torch.from_numpy(arrays[n]) for n in NAMES]) <= 16


def test_a_file_has_the_names_that_the_definition_has(tmp_path: Path) -> None:
    params = named()
    optimizer = Adam(params, name="mine", **EVERYTHING)
    train(optimizer, only(params), range(4))
    optimizer.save(tmp_path / "adam.safetensors")
    parts = ("momentum", "velocity", "velocity_hat", "average", "gradient_accumulator", "updates")
    with safe_open(tmp_path / "adam.safetensors", "np") as file:
        names = set(file.keys())
        for name, param in params:
            for part in parts:
                assert f"{name}/{part}" in names
            assert file.get_tensor(f"{name}/momentum").shape == tuple(param.shape)
        assert {f"mine/{n}" for n in ("calls", "updates", "learning_rate")} <= names
        assert int(file.get_tensor("mine/calls")) == 4
        assert json.loads(json.dumps(file.metadata()))


class TestLearningRates:
    """Which learning rate holds after loading."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        params = named()
        optimizer = Adam(params, lr=0.05)
        train(optimizer, only(params), range(3))
        optimizer.save(tmp_path / "adam.safetensors")
        return tmp_path / "adam.safetensors"

    def test_the_saved_one(self, path: Path) -> None:
        optimizer = Adam(named(), lr=0.3)
        optimizer.load(path)
        assert optimizer.param_groups[0]["lr"] == 0.05

    def test_the_configured_one_if_wanted(self, path: Path) -> None:
        optimizer = Adam(named(), lr=0.3)
        optimizer.load(path, keep_learning_rate=True)
        assert optimizer.param_groups[0]["lr"] == optimizer.learning_rate == 0.3

    @pytest.mark.parametrize("rate", [ExponentialDecay(0.1, 2, 0.5), lambda: 0.3], ids=range(2))
    @pytest.mark.parametrize("keep", [False, True])
    def test_a_schedule_stays(self, path: Path, rate: Any, keep: bool) -> None:
        params = named()
        optimizer = Adam(params, lr=rate)
        with warned(*([] if keep else ["learning_rate"])):
            optimizer.load(path, keep_learning_rate=keep)
        wanted = rate(3) if isinstance(rate, ExponentialDecay) else rate()
        assert optimizer.learning_rate == wanted
        train(optimizer, only(params), [0])
        assert optimizer.param_groups[0]["lr"] == wanted

    def test_those_of_groups_stay(self, tmp_path: Path) -> None:
        params = named()
        groups = [{"params": [p], "lr": lr} for p, lr in zip(params, (0.1, 0.2), strict=True)]
        optimizer = Adam(groups)
        train(optimizer, only(params), range(3))
        optimizer.save(tmp_path / "groups.safetensors")
        optimizer.load(tmp_path / "groups.safetensors")
        train(optimizer, only(params), range(2))
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
        assert optimizer.learning_rate == 0.1

    def test_a_tensor(self, path: Path) -> None:
        params = named()
        rate = torch.tensor(0.25)
        optimizer = Adam(params, lr=rate)
        optimizer.save(path.parent / "tensor.safetensors")
        optimizer.load(path, keep_learning_rate=True)
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
        assert optimizer.learning_rate == 0.25
        optimizer.load(path)
        assert optimizer.param_groups[0]["lr"] is rate
        assert optimizer.learning_rate == pytest.approx(0.05)
        train(optimizer, only(params), [0])


class TestMisfits:
    """What does not fit is refused as a whole, what is optional is said."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        params = named()
        optimizer = Adam(params)
        train(optimizer, only(params), range(3))
        optimizer.save(tmp_path / "adam.safetensors")
        return tmp_path / "adam.safetensors"

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ([("kernel", (2, 3)), ("offset", (3,))], "offset"),
            ([("kernel", (3, 2)), ("bias", (3,))], "kernel"),
            ([("kernel", (2, 3))], "bias"),
        ],
    )
    def test_are_refused(self, path: Path, params: Any, message: str) -> None:
        tensors = parameters(*[shape for _, shape in params])
        optimizer = Adam(list(zip([name for name, _ in params], tensors, strict=True)))
        train(optimizer, tensors, range(2))
        with unchanged(optimizer), pytest.raises(ValueError, match=message):
            optimizer.load(path)

    def test_other_names_can_be_given(self, path: Path) -> None:
        for names in ({"bias": "offset"}, lambda name: name.replace("bias", "offset")):
            params = [("kernel", p) if p.ndim == 2 else ("offset", p) for _, p in named()]
            optimizer = Adam(params)
            optimizer.load(path, names)
            assert int(optimizer.state[params[1][1]]["step"]) == 3

    def test_an_average_switched_on_later(self, path: Path) -> None:
        params = named()
        optimizer = Adam(params, use_ema=True)
        with warned("afresh", "average"):
            optimizer.load(path)
        train(optimizer, only(params), [0])
        assert torch.equal(optimizer.state[params[0][1]]["average"], params[0][1])

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        optimizer = Adam(named())
        with pytest.raises(FileNotFoundError):
            optimizer.load(tmp_path / "none")
        (tmp_path / "other").write_bytes(b"something else entirely")
        with unchanged(optimizer), pytest.raises(ValueError, match="other"):
            optimizer.load(tmp_path / "other")
        with pytest.raises(OSError, match="folder"):
            optimizer.save(tmp_path / "no folder" / "adam")

    def test_the_loss_scale_is_kept_and_left_out(self, path: Path) -> None:
        params = named()
        optimizer = LossScaleOptimizer(Adam(params), initial_scale=4.0, dynamic_growth_steps=2)
        with warned("afresh", "loss_scale"):
            optimizer.load(path)
        train(optimizer, only(params), range(3))
        assert optimizer.scale == 8.0
        optimizer.save(path)
        again = LossScaleOptimizer(Adam(named()), initial_scale=2.0, dynamic_growth_steps=2)
        again.load(path)
        assert again.scale == 8.0
        train(again, only([*zip(NAMES, again.param_groups[0]["params"], strict=True)]), [0])
        assert again.scale == 16.0  # its counter too
        plain = Adam(named())
        with warned("left out", "loss_scale"):
            plain.load(path)

    def test_frozen_parameters_have_nothing_to_load(self, tmp_path: Path) -> None:
        params = named()
        params[1][1].requires_grad_(False)
        optimizer = Adam(params)
        train(optimizer, [params[0][1]], range(3))
        optimizer.save(tmp_path / "adam.safetensors")
        again = copies(params)
        resumed = Adam(again)
        resumed.load(tmp_path / "adam.safetensors")
        train(resumed, [again[0][1]], [3])
        assert again[1][1] not in resumed.state


def test_saving_before_the_first_step(tmp_path: Path) -> None:
    params = named()
    optimizer = Adam(params, **EVERYTHING)
    optimizer.save(tmp_path / "adam.safetensors")
    resumed = Adam(copies(params), **EVERYTHING)
    resumed.load(tmp_path / "adam.safetensors")
    others = resumed.param_groups[0]["params"]
    train(optimizer, only(params), range(4))
    train(resumed, others, range(4))
    same(snapshot(optimizer), snapshot(resumed))
    assert np.isfinite(array_of(others[0])).all()

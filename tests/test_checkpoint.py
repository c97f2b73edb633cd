"""Checkpoints go by name, are checked before anything is written, and are never half a file."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from safetensors.numpy import save_file
from snapshots import unchanged

from oneadam import checkpoint
from oneadam.numpy import Adam, LossScaleOptimizer
from oneadam.schedules import CosineDecay

KILLS = 200


def variables() -> dict[str, np.ndarray]:
    return {"kernel": np.ones((2, 3), np.float32), "bias": np.full(3, 2.0, np.float32)}


def trained(weights: Any = None, **config: Any) -> Adam:
    optimizer = Adam(**config)
    optimizer.build(variables() if weights is None else weights)
    for call in range(3):
        rng = np.random.default_rng(call)
        optimizer.apply({n: rng.normal(size=a.shape) for n, a in optimizer.variables.items()})
    return optimizer


def built(weights: Any = None, **config: Any) -> Adam:
    optimizer = Adam(**config)
    optimizer.build(variables() if weights is None else weights)
    return optimizer


def same(one: Adam, other: Adam) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def test_state_follows_names_not_positions(tmp_path: Path) -> None:
    optimizer = trained()
    optimizer.save(tmp_path / "state")
    turned = dict(reversed(variables().items()))
    again = built(turned)
    again.load(tmp_path / "state")
    assert list(again.variables) == ["bias", "kernel"]
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda s: s.pop("kernel/momentum"), "missing: kernel/momentum"),
        (lambda s: s.pop("adam/calls"), "missing: adam/calls"),
        (lambda s: s.update({"extra/momentum": np.zeros(3)}), "unexpected: extra/momentum"),
        (lambda s: s.update({"bias/velocity": np.zeros(4, np.float32)}), r"bias/velocity .*\(4,\)"),
        (lambda s: s.update({"bias/velocity": np.zeros(3)}), "bias/velocity .*float64"),
        (lambda s: s.update({"adam/calls": np.array(-1)}), "adam/calls must be >= 0"),
        (lambda s: s.update({"adam/learning_rate": np.array(np.nan)}), "learning_rate"),
    ],
)
def test_a_mismatch_is_named_and_changes_nothing(damage: Any, named: str) -> None:
    state = trained().state_dict()
    damage(state)
    optimizer = trained(use_ema=True)
    with unchanged(optimizer, optimizer.variables.values()), pytest.raises(ValueError, match=named):
        optimizer.load_state_dict(state)


def test_parts_that_only_one_side_has_are_told() -> None:
    with pytest.warns(UserWarning, match=r"started afresh.*kernel/average") as caught:
        built(use_ema=True).load_state_dict(trained().state_dict())
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"left out.*kernel/velocity_hat"):
        built().load_state_dict(trained(amsgrad=True).state_dict())
    with pytest.warns(UserWarning, match=r"started afresh.*bias/velocity_hat"):
        built(amsgrad=True).load_state_dict(trained().state_dict())
    optimizer = built()
    with pytest.warns(UserWarning, match=r"left out.*gradient_accumulator"):
        optimizer.load_state_dict(trained(gradient_accumulation_steps=2).state_dict())
    optimizer.apply([np.ones((2, 3)), np.ones(3)])
    assert optimizer.updates == 2
    with pytest.warns(UserWarning, match=r"left out.*adam/learning_rate"):
        built(learning_rate=CosineDecay(0.1, 10)).load_state_dict(trained().state_dict())
    with pytest.warns(UserWarning, match=r"started afresh.*adam/loss_scale"):
        LossScaleOptimizer(built()).load_state_dict(trained().state_dict())


def test_the_saved_learning_rate_wins_unless_told_otherwise(tmp_path: Path) -> None:
    trained(learning_rate=0.25).save(tmp_path / "state")
    optimizer = built(learning_rate=0.5)
    optimizer.load(tmp_path / "state", keep_learning_rate=True)
    assert optimizer.learning_rate == 0.5
    optimizer.load(tmp_path / "state")
    assert optimizer.learning_rate == 0.25


@pytest.mark.parametrize("names", [{"kernel": "w"}, lambda name: {"kernel": "w"}.get(name, name)])
def test_variables_may_be_renamed(names: Any, tmp_path: Path) -> None:
    optimizer = trained()
    optimizer.save(tmp_path / "state")
    again = built({"w": variables()["kernel"], "bias": variables()["bias"]}, name="other")
    again.load(tmp_path / "state", names)
    state = again.state_dict()
    np.testing.assert_array_equal(state["w/momentum"], optimizer.state_dict()["kernel/momentum"])
    assert state["other/calls"] == 3


@pytest.mark.parametrize("names", [{"no": "w"}, lambda name: "same", {"kernel": "bias"}])
def test_renaming_that_cannot_be_meant_is_refused(names: Any, tmp_path: Path) -> None:
    trained().save(tmp_path / "state")
    optimizer = built()
    with unchanged(optimizer, []), pytest.raises(ValueError, match="names must"):
        optimizer.load(tmp_path / "state", names)


def test_files_that_are_no_whole_checkpoints_are_refused(tmp_path: Path) -> None:
    path, optimizer = tmp_path / "state", built()
    trained().save(path)
    whole = path.read_bytes()
    for length in sorted({*range(64), *range(64, len(whole), 97), len(whole) - 1}):
        path.write_bytes(whole[:length])
        with unchanged(optimizer, []), pytest.raises(ValueError, match="path must be"):
            optimizer.load(path)
    rng = random.Random(7)
    for _ in range(20):
        path.write_bytes(rng.randbytes(500))
        with pytest.raises(ValueError, match="path must be"):
            optimizer.load(path)
    save_file({"x": np.ones(3)}, path)
    with pytest.raises(ValueError, match="something else has written"):
        optimizer.load(path)
    save_file({"x": np.ones(3)}, path, {"format": "oneadam", "format_version": "2"})
    with pytest.raises(ValueError, match="newer release"):
        optimizer.load(path)
    checkpoint.write(path, {"x": np.ones(3)}, {})
    with pytest.raises(ValueError, match="an optimizer has saved"):
        optimizer.load(path)
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError):
            optimizer.load(missing)


def test_what_cannot_be_written_down_does_not_keep_a_state_from_being_saved(tmp_path: Path) -> None:
    optimizer = trained(learning_rate=lambda: 0.1)
    optimizer.save(tmp_path / "state")
    again = built(learning_rate=lambda: 0.1)
    again.load(tmp_path / "state")
    assert same(optimizer, again)
    assert "config" not in checkpoint.read(tmp_path / "state")[1]
    with pytest.raises(ValueError, match="learning_rate"):
        optimizer.get_config()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    optimizer = trained()
    optimizer.save(tmp_path / "state")
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(OSError):
        optimizer.save(tmp_path / "no folder" / "state")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        optimizer.save(tmp_path / "folder")
    assert (tmp_path / "state").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "state"]


def test_killed_at_any_moment_a_save_leaves_a_whole_file(tmp_path: Path) -> None:
    path, numbers, struck, seed = tmp_path / "state", [], 0, random.randrange(2**32)
    print(f"moments drawn with seed {seed}")
    moments = random.Random(seed)
    for kill in range(KILLS):
        pid = os.fork()
        if not pid:
            _save_until_killed(path, 1000 * kill)
        _wait_for_a_save(path, 1000 * kill)
        time.sleep(moments.uniform(0.0, 0.004))
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        tensors, told = checkpoint.read(path)
        found = {float(tensors[n].flat[0]) for n in ("0/momentum", "0/velocity", "1/momentum")}
        assert len(found) == 1, "a mixture of two states"
        assert all((tensors[n] == tensors[n].flat[0]).all() for n in ("0/momentum", "0/velocity"))
        assert told["optimizer"] == "adam"
        numbers.append(found.pop())
        struck += len(list(tmp_path.iterdir())) > 1
    assert len(set(numbers)) == KILLS
    assert struck, "no kill has struck while a file was being written"
    trained().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def _save_until_killed(path: Path, first: int) -> None:
    weights = [np.zeros(20_000, np.float32), np.zeros(3)]
    optimizer = Adam()
    optimizer.build(weights)
    tensors = optimizer.state_dict()
    for number in range(first, first + 1_000_000):
        for name in ("0/momentum", "0/velocity", "1/momentum"):
            tensors[name].fill(number)
        optimizer.load_state_dict(tensors)
        optimizer.save(path)


def _wait_for_a_save(path: Path, least: int) -> None:
    end = time.monotonic() + processes.LIMIT
    while time.monotonic() < end:
        if path.exists() and checkpoint.read(path)[0]["1/momentum"].flat[0] >= least:
            return
        time.sleep(0.0005)
    raise AssertionError(f"no checkpoint within {processes.LIMIT} s")

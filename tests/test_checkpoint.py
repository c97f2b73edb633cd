"""Saved state: by name, all or nothing, and whole whatever happens while it is written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import processes
import pytest
from safetensors.numpy import save_file
from snapshots import bits, unchanged

from oneadam import checkpoint
from oneadam.numpy import Adam, LossScaleOptimizer
from oneadam.schedules import CosineDecay

FULL: dict[str, Any] = {
    "learning_rate": 0.1,
    "amsgrad": True,
    "use_ema": True,
    "gradient_accumulation_steps": 3,
}
SHAPES = {"layer/kernel": (3, 4), "layer/bias": (4,), "scale": ()}


def variables(shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in (shapes or SHAPES).items()}


def gradients(of: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """By name, whatever the order."""
    return {
        name: np.random.default_rng((seed, *name.encode())).normal(size=v.shape).astype(np.float32)
        for name, v in of.items()
    }


def trained(
    config: dict[str, Any] | None = None, calls: int = 4, of: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, np.ndarray], Adam]:
    """An optimizer that has taken some calls, the last ones in an open window if there is one."""
    own = variables() if of is None else of
    optimizer = Adam(**(FULL if config is None else config))
    optimizer.build(own)
    for seed in range(calls):
        optimizer.apply(gradients(own, seed))
    return own, optimizer


def fresh(config: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], Adam]:
    return trained(config, 0)


def same_state(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit, in any order."""
    return bits(one, []) == bits(other, [])


@contextmanager
def told(*patterns: str) -> Iterator[None]:
    """Expect one warning that says all this; none without patterns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert len(caught) == bool(patterns), [str(one.message) for one in caught]
    for pattern in patterns:
        assert re.search(pattern, str(caught[0].message)), caught[0].message
    if caught:
        assert caught[0].filename == __file__, "the warning does not name the caller's line"


# By name.


@pytest.mark.parametrize("calls", [0, 1, 3, 4])
def test_everything_comes_back(calls: int, tmp_path: Path) -> None:
    own, optimizer = trained(calls=calls)
    optimizer.save(tmp_path / "run")
    for way in ("file", "dict", "pickled dict"):
        other, resumed = trained({**FULL, "learning_rate": 0.5}, 2)
        for name, values in own.items():
            other[name][...] = values
        with told():
            if way == "file":
                resumed.load(str(tmp_path / "run"))
            elif way == "dict":
                resumed.load_state_dict(optimizer.state_dict())
            else:
                resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
        assert same_state(resumed, optimizer)
        assert resumed.learning_rate == 0.1
        assert (resumed.calls, resumed.updates) == (optimizer.calls, optimizer.updates)
        for seed in range(7):
            optimizer.apply(gradients(own, seed))
            resumed.apply(gradients(other, seed))
        assert bits(resumed, other.values()) == bits(optimizer, own.values())
        optimizer.load(tmp_path / "run")
        own, optimizer = trained(calls=calls)


def test_the_file_can_be_read_by_anybody(tmp_path: Path) -> None:
    _, optimizer = trained()
    optimizer.save(tmp_path / "run")
    tensors, told_by_file = checkpoint.read(tmp_path / "run")
    state = optimizer.state_dict()
    assert tensors.keys() == state.keys()
    for name, array in state.items():
        assert tensors[name].tobytes() == array.tobytes(), name
        assert tensors[name].dtype == array.dtype
    for variable, shape in SHAPES.items():
        assert tensors[f"{variable}/momentum"].shape == shape
    assert {"velocity", "velocity_hat", "average", "gradient_accumulator"} <= {
        name.rpartition("/")[2] for name in tensors
    }
    described = json.loads(told_by_file["variables"])
    assert described["layer/kernel"] == {"shape": [3, 4], "dtype": "float32"}
    assert json.loads(told_by_file["config"]) == optimizer.get_config()
    assert told_by_file["optimizer"] == "adam"
    assert Adam.from_config(json.loads(told_by_file["config"])).learning_rate == 0.1


def test_the_order_of_the_variables_does_not_matter(tmp_path: Path) -> None:
    shapes = {"a": (3,), "b": (3,), "c": (3,)}
    own, optimizer = trained(of=variables(shapes))
    optimizer.save(tmp_path / "run")
    turned, resumed = trained(of=dict(reversed(variables(shapes).items())), calls=0)
    for name, values in own.items():
        turned[name][...] = values
    resumed.load(tmp_path / "run")
    assert same_state(resumed, optimizer)
    # Momenta that had changed places would show.
    momenta = {name: optimizer.state_dict()[f"{name}/momentum"].tobytes() for name in shapes}
    assert len(set(momenta.values())) == 3
    for seed in range(5):
        optimizer.apply(gradients(own, seed))
        resumed.apply(gradients(turned, seed))
    for name in shapes:
        assert own[name].tobytes() == turned[name].tobytes()


def test_the_optimizers_name_may_differ_in_files(tmp_path: Path) -> None:
    _, optimizer = trained({**FULL, "name": "first"})
    optimizer.save(tmp_path / "run")
    _, second = fresh({**FULL, "name": "second"})
    second.load(tmp_path / "run")
    assert second.calls == optimizer.calls
    assert second.state_dict()["second/calls"] == 4


def test_names_that_could_be_taken_for_others() -> None:
    odd = {"a": (2,), "a/momentum": (2,), "a/a": (2,), "momentum": (2,), "": (2,), "é ü/✓": (2,)}
    _own, optimizer = trained(of=variables(odd))
    _other, resumed = trained(of=variables(odd), calls=0)
    resumed.load_state_dict(optimizer.state_dict())
    assert same_state(resumed, optimizer)
    assert len(optimizer.state_dict()) == len(odd) * 8 + 5
    with pytest.raises(ValueError, match="adam"):
        Adam().build({"adam": np.ones(3)})
    Adam(name="other").build({"adam": np.ones(3)})


RENAMED = {"encoder/kernel": (3, 4), "encoder/bias": (4,), "scale": ()}


@pytest.mark.parametrize(
    "names",
    [
        {"layer/kernel": "encoder/kernel", "layer/bias": "encoder/bias"},
        lambda name: name.replace("layer", "encoder"),
    ],
    ids=["mapping", "function"],
)
def test_variables_can_be_renamed(names: Any, tmp_path: Path) -> None:
    _, optimizer = trained()
    optimizer.save(tmp_path / "run")
    _, renamed = trained(of=variables(RENAMED), calls=1)
    with told():
        renamed.load(tmp_path / "run", names=names)
    before, after = optimizer.state_dict(), renamed.state_dict()
    assert after["adam/calls"] == before["adam/calls"]
    for old, new in zip(SHAPES, RENAMED, strict=True):
        for slot in ("momentum", "velocity", "average", "updates", "in_window"):
            assert after[f"{new}/{slot}"].tobytes() == before[f"{old}/{slot}"].tobytes()


def test_names_may_be_swapped(tmp_path: Path) -> None:
    shapes = {"a": (3,), "b": (3,)}
    _, optimizer = trained(of=variables(shapes))
    optimizer.save(tmp_path / "run")
    _, swapped = trained(of=variables(shapes), calls=0)
    swapped.load(tmp_path / "run", names={"a": "b", "b": "a"})
    before, after = optimizer.state_dict(), swapped.state_dict()
    assert after["a/momentum"].tobytes() == before["b/momentum"].tobytes()
    assert after["b/momentum"].tobytes() == before["a/momentum"].tobytes()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"nothing": "layer/kernel"}, "nothing"),
        ({"layer/kernel": "scale"}, "different names"),
        (lambda name: "same", "different names"),
        ({"layer/kernel": "elsewhere"}, "elsewhere/momentum"),
        (None, "encoder/kernel/momentum"),
    ],
)
def test_renaming_that_does_not_fit_changes_nothing(names: Any, said: str, tmp_path: Path) -> None:
    _, optimizer = trained()
    optimizer.save(tmp_path / "run")
    own, renamed = trained(of=variables(RENAMED), calls=2)
    with unchanged(renamed, own.values()), pytest.raises(ValueError, match=said):
        renamed.load(tmp_path / "run", names=names)


# Mismatches are listed, and nothing has changed.


def _without(part: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(part)


def _with(part: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.__setitem__(part, value)


NUMBERS = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("layer/kernel/momentum"), "missing: layer/kernel/momentum"),
        (_without("scale/velocity"), "missing: scale/velocity"),
        (_without("scale/updates"), "missing: scale/updates"),
        (_without("adam/calls"), "missing: adam/calls"),
        (_with("layer/other/momentum", NUMBERS), "unexpected: layer/other/momentum"),
        (_with("adam/unheard_of", np.array(1)), "unexpected: adam/unheard_of"),
        (_with("layer/kernel/momentum", NUMBERS.T), r"layer/kernel/momentum.*\(4, 3\).*\(3, 4\)"),
        (_with("layer/kernel/momentum", NUMBERS[0]), r"layer/kernel/momentum.*\(4,\)"),
        (_with("layer/kernel/average", NUMBERS[:1]), r"layer/kernel/average.*\(1, 4\)"),
        (_with("layer/kernel/velocity", NUMBERS.astype(np.float64)), "velocity.*float64"),
        (_with("layer/kernel/velocity", NUMBERS.astype(np.float16)), "velocity.*float16"),
        (_with("layer/kernel/velocity", NUMBERS.tolist()), "velocity.*float64"),
        (_with("layer/kernel/velocity", None), "velocity"),
        (_with("layer/kernel/velocity", "text"), "velocity"),
        (_with("adam/calls", np.array([1])), "adam/calls"),
        (_with("adam/calls", np.array(1.5)), "adam/calls"),
        (_with("adam/calls", np.array(-1)), "adam/calls"),
        (_with("adam/updates", np.array(-3)), "adam/updates"),
        (_with("scale/updates", np.array(-3)), "scale/updates"),
        (_with("adam/learning_rate", np.array(-1.0)), "learning_rate"),
        (_with("adam/learning_rate", np.array(np.nan)), "learning_rate"),
    ],
)
def test_mismatches_are_listed_and_nothing_changes(
    change: Callable[[dict[str, Any]], None], said: str
) -> None:
    state: dict[str, Any] = dict(trained(calls=5)[1].state_dict())
    change(state)
    kept = {name: np.array(value).tobytes() for name, value in state.items()}
    own, optimizer = trained(calls=2)
    with unchanged(optimizer, own.values()), pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(state)
    assert {name: np.array(value).tobytes() for name, value in state.items()} == kept


def test_all_mismatches_are_listed_at_once() -> None:
    state = dict(trained()[1].state_dict())
    del state["scale/momentum"]
    state["more/momentum"] = NUMBERS
    state["layer/kernel/velocity"] = NUMBERS.T
    with pytest.raises(ValueError, match="missing: scale/momentum") as caught:
        fresh()[1].load_state_dict(state)
    message = str(caught.value)
    assert "unexpected: more/momentum" in message
    assert "layer/kernel/velocity" in message
    assert "nothing was loaded" in message


def test_a_long_list_is_cut() -> None:
    many = variables({f"v{number}": (1,) for number in range(5000)})
    with pytest.raises(ValueError, match="more") as caught:
        fresh()[1].load_state_dict(trained({}, 0, many)[1].state_dict())
    assert len(str(caught.value)) < 2000


def test_loading_needs_variables(tmp_path: Path) -> None:
    _, optimizer = trained()
    optimizer.save(tmp_path / "run")
    for action in (
        lambda: Adam().load(tmp_path / "run"),
        lambda: Adam().load_state_dict(optimizer.state_dict()),
        lambda: Adam().save(tmp_path / "other"),
        lambda: Adam().state_dict(),
    ):
        with pytest.raises(RuntimeError, match="build"):
            action()
    assert os.listdir(tmp_path) == ["run"]


# Optional parts.


def moved(config: dict[str, Any], state: dict[str, np.ndarray], *said: str) -> Adam:
    """An optimizer of this configuration that has taken over a state."""
    _, optimizer = fresh(config)
    with told(*said):
        optimizer.load_state_dict(state)
    assert optimizer.calls == state["adam/calls"]
    return optimizer


PLAIN = {"learning_rate": 0.1}
AFRESH, LEFT_OUT = "started afresh, because .*", "left out, because .*"


@pytest.mark.parametrize(
    ("option", "slot"),
    [
        ({"use_ema": True}, "average"),
        ({"amsgrad": True}, "velocity_hat"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulator"),
    ],
)
def test_optional_parts_may_come_and_go(option: dict[str, Any], slot: str) -> None:
    without, with_ = trained(PLAIN)[1].state_dict(), trained({**PLAIN, **option})[1].state_dict()
    later = moved({**PLAIN, **option}, without, AFRESH + f"layer/bias/{slot}")
    assert not later.state_dict()[f"layer/kernel/{slot}"].any()
    earlier = moved(PLAIN, with_, LEFT_OUT + f"layer/bias/{slot}")
    assert f"layer/kernel/{slot}" not in earlier.state_dict()
    for name in ("layer/kernel/momentum", "scale/velocity", "scale/updates"):
        assert later.state_dict()[name].tobytes() == without[name].tobytes()
        assert earlier.state_dict()[name].tobytes() == with_[name].tobytes()


def test_an_average_switched_on_later_starts_at_the_variable() -> None:
    own, plain = trained(PLAIN)
    for lacking in ("all", "arrays"):
        _, source = trained({**PLAIN, "use_ema": True})
        state = plain.state_dict() if lacking == "all" else source.state_dict()
        if lacking == "arrays":  # somebody has saved space
            state = {name: a for name, a in state.items() if not name.endswith("/average")}
        own, later = fresh({**PLAIN, "use_ema": True})
        with told(AFRESH + "average"):
            later.load_state_dict(state)
        with later.averaged():
            assert all((values == 1.0).all() for values in own.values())
        later.apply(gradients(own))
        for name, values in own.items():
            assert later.state_dict()[f"{name}/average"].tobytes() == values.tobytes(), lacking


def test_a_window_that_is_left_out_is_left_out_whole() -> None:
    _, source = trained({**PLAIN, "gradient_accumulation_steps": 3}, 5)
    state = source.state_dict()
    assert state["adam/accumulated_calls"] == 2
    own, optimizer = fresh(PLAIN)
    with told(LEFT_OUT + "gradient_accumulator"):
        optimizer.load_state_dict(state)
    optimizer.flush()
    assert optimizer.updates == 1
    optimizer.apply(gradients(own))
    assert (optimizer.calls, optimizer.updates) == (6, 2)
    assert all((state[f"{name}/updates"] == 1) for name in own)


def test_a_window_that_is_missing_starts_afresh_whole() -> None:
    config = {**PLAIN, "gradient_accumulation_steps": 3}
    _, source = trained(config, 5)
    state = {
        name: array
        for name, array in source.state_dict().items()
        if not name.endswith("gradient_accumulator")
    }
    own, optimizer = fresh(config)
    with told(AFRESH + "gradient_accumulator"):
        optimizer.load_state_dict(state)
    wanted, plain = trained(config, 3)
    for name, values in wanted.items():
        own[name][...] = values
    # Two of the three calls are gone with their sum: the window is empty, not two thirds full.
    for seed in range(3):
        optimizer.apply(gradients(own, seed))
        plain.apply(gradients(wanted, seed))
    for name, values in wanted.items():
        assert own[name].tobytes() == values.tobytes()


@pytest.mark.parametrize(("saved", "here"), [(4, 2), (4, 3), (4, 8), (2, 3)])
def test_a_window_of_another_length_goes_on(saved: int, here: int) -> None:
    _, source = trained({**PLAIN, "gradient_accumulation_steps": saved}, saved - 1)
    own, optimizer = fresh({**PLAIN, "gradient_accumulation_steps": here})
    with told():
        optimizer.load_state_dict(source.state_dict())
    missing = max(here - (saved - 1), 1)
    for call in range(missing):
        assert optimizer.updates == 0
        optimizer.apply(gradients(own, saved - 1 + call))
    assert optimizer.updates == 1
    # Adam's first step is the learning rate, so the mean shows in the momentum.
    divisor = max(here, saved)
    total = sum(gradients(own, seed)["scale"] for seed in range(saved - 1 + missing))
    momentum = optimizer.state_dict()["scale/momentum"]
    np.testing.assert_allclose(momentum, 0.1 * total / divisor, rtol=1e-5)


def test_the_learning_rate_is_the_saved_one_unless_the_user_says_so(tmp_path: Path) -> None:
    _, optimizer = trained(PLAIN)
    optimizer.learning_rate = 0.025
    optimizer.save(tmp_path / "run")
    for keep, rate in ((False, 0.025), (True, 0.5)):
        for way in ("file", "dict"):
            _, resumed = fresh({"learning_rate": 0.5})
            with told():
                if way == "file":
                    resumed.load(tmp_path / "run", keep_learning_rate=keep)
                else:
                    resumed.load_state_dict(optimizer.state_dict(), keep_learning_rate=keep)
            assert resumed.learning_rate == rate
            assert resumed.state_dict()["adam/learning_rate"] == rate


def test_a_schedule_in_place_of_a_number_and_the_other_way_round() -> None:
    schedule = CosineDecay(0.2, 100)
    number, scheduled = trained(PLAIN)[1].state_dict(), trained({"learning_rate": schedule})[1]
    assert "adam/learning_rate" not in scheduled.state_dict()
    resumed = moved({"learning_rate": schedule}, number, LEFT_OUT + "adam/learning_rate")
    assert resumed.learning_rate == schedule(4)
    resumed = moved(PLAIN, scheduled.state_dict(), AFRESH + "adam/learning_rate")
    assert resumed.learning_rate == 0.1
    _, resumed = fresh({"learning_rate": schedule})
    with told():
        resumed.load_state_dict(number, keep_learning_rate=True)
    assert resumed.learning_rate == schedule(4)


def test_a_loss_scale_may_come_and_go(tmp_path: Path) -> None:
    def scaled() -> LossScaleOptimizer:
        optimizer = LossScaleOptimizer(Adam(**PLAIN), 64.0, 2)
        optimizer.build(variables())
        return optimizer

    with_ = scaled()
    for seed in range(3):
        with_.apply(gradients(with_.variables, seed))
    with_.save(tmp_path / "run")
    assert with_.scale == 128.0
    resumed = scaled()
    with told():
        resumed.load(tmp_path / "run")
    assert same_state(resumed, with_)
    assert resumed.scale == 128.0
    moved(PLAIN, with_.state_dict(), LEFT_OUT + "adam/loss_scale")
    _, without = trained(PLAIN)
    resumed = scaled()
    with told(AFRESH + "adam/loss_scale"):
        resumed.load_state_dict(without.state_dict())
    assert resumed.scale == 64.0
    for wrong in (-1.0, 0.0, np.nan, np.inf, 0.25):
        state = {**with_.state_dict(), "adam/loss_scale": np.array(wrong)}
        with unchanged(resumed, []), pytest.raises(ValueError, match=r"loss.scale"):
            resumed.load_state_dict(state)


# Files that are no checkpoints.


def small(path: Path) -> bytes:
    """The bytes of a small checkpoint, written to a path."""
    _, optimizer = trained(PLAIN, 1, {"w": np.ones(2, np.float32)})
    optimizer.save(path)
    return path.read_bytes()


def refused(path: Path, said: str | None = None, kind: type[Exception] = ValueError) -> None:
    """Hold loading a file to being refused, naming the file, with nothing changed."""
    own, optimizer = trained(PLAIN, 2, {"w": np.ones(2, np.float32)})
    with unchanged(optimizer, own.values()), pytest.raises(kind, match=said) as caught:
        optimizer.load(path)
    assert str(path) in str(caught.value)


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "run"
    whole = small(path)
    _, optimizer = trained(PLAIN, 2, {"w": np.ones(2, np.float32)})
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated, damaged or of another kind"):
            checkpoint.read(path)
    for length in (0, 4, 8, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "truncated")
    path.write_bytes(whole)
    optimizer.load(path)
    path.write_bytes(whole + b"\0")
    refused(path)


def test_damaged_headers_are_refused_or_read_but_never_worse(tmp_path: Path) -> None:
    path = tmp_path / "run"
    whole = small(path)
    header = int.from_bytes(whole[:8], "little")
    _, optimizer = trained(PLAIN, 2, {"w": np.ones(2, np.float32)})
    state, read = optimizer.state_dict(), 0
    for place in range(8 + header):
        for damage in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[place] ^= damage
            path.write_bytes(damaged)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    optimizer.load(path)
            except ValueError:
                assert bits(optimizer, []) == bits_of(state), place
            else:
                read += 1
                optimizer.load_state_dict(state)
    # A changed character in the configuration is none of load's business.
    assert read < header


def bits_of(state: dict[str, np.ndarray]) -> tuple[Any, ...]:
    return tuple((n, a.dtype.name, a.shape, a.tobytes()) for n, a in sorted(state.items()))


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(1), tmp_path / "run"
    for size in (1, 7, 8, 9, 100, 10_000):
        for _ in range(5):
            path.write_bytes(rng.bytes(size))
            refused(path, "truncated, damaged")


FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("{}"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"w/momentum": [1.0, 2.0]})),
    "NumPy": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', }"),
    "zip": lambda path: path.write_bytes(b"PK\x03\x04\x14\x00\x00\x00\x08\x00w.npy" * 9),
    "huge header": lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
    "empty header": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"{}"),
    "safetensors": lambda path: save_file({"w/momentum": np.ones(2, np.float32)}, path),
    "of another format": lambda path: save_file({"w": np.ones(2)}, path, {"format": "pt"}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    FOREIGN[kind](path)
    refused(path, "checkpoint of oneadam")


class Bomb:
    def __reduce__(self) -> Any:
        return os.abort, ()


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path, "checkpoint of oneadam")
    for wrong in (np.array([Bomb()], object), np.zeros(2, "M8[s]"), np.array(["text"])):
        with pytest.raises((ValueError, TypeError), match=str(wrong.dtype)[:5]):
            checkpoint.write(path, {"bomb": wrong}, {})
    refused(path, "checkpoint of oneadam")
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("version", ["2", "10", "99999999999999999999", "", "new", "-1", "1.5"])
def test_newer_formats_are_refused(version: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    small(path)
    tensors, _ = checkpoint.read(path)
    save_file(tensors, path, {"format": "oneadam", "format_version": version})
    refused(path, "version")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"optimizer": "adam"},
        {"optimizer": "adam", "variables": "{"},
        {"optimizer": "adam", "variables": "5"},
        {"optimizer": "adam", "variables": "null"},
        {"optimizer": "adam", "variables": "[[1]]"},
    ],
)
def test_checkpoints_of_something_else_are_refused(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    checkpoint.write(path, {"w/momentum": np.ones(2, np.float32)}, metadata)
    refused(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing", kind=FileNotFoundError)
    refused(tmp_path, kind=FileNotFoundError)
    refused(tmp_path / "missing" / "run", kind=FileNotFoundError)


# Writing.


def test_any_array_can_be_written(tmp_path: Path) -> None:
    arrays = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "strided": np.arange(10, dtype=np.float32)[::-3],
        "byte-swapped": np.arange(4, dtype=">f4"),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 3), np.float16),
        "bool": np.array([True, False]),
        "int": np.array([-1, 2**62]),
        "bytes": np.array([1, 255], np.uint8),
        "bfloat16": np.array([1.5, -2], ml_dtypes.bfloat16),
        "broadcast": np.broadcast_to(np.float32(2), (3,)),
        "nan": np.array([np.nan, np.inf, -0.0]),
    }
    checkpoint.write(tmp_path / "arrays", arrays, {"über": "ß", "empty": ""})
    found, metadata = checkpoint.read(tmp_path / "arrays")
    assert metadata["über"] == "ß"
    assert metadata["empty"] == ""
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert found[name].dtype == native.dtype, name
        assert found[name].shape == native.shape, name
        assert found[name].tobytes() == native.tobytes(), name


def test_nothing_can_be_written_too(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "nothing", {}, {})
    assert checkpoint.read(tmp_path / "nothing")[0] == {}


def test_the_formats_own_names_are_kept_free(tmp_path: Path) -> None:
    for name in ("format", "format_version"):
        with pytest.raises(ValueError, match=name):
            checkpoint.write(tmp_path / "run", {}, {name: "mine"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["run", "run*[x]?.st", ".hidden", "a b", "ü.safetensors"])
def test_names_of_files(name: str, tmp_path: Path) -> None:
    for _ in range(2):
        small(tmp_path / name)
        assert os.listdir(tmp_path) == [name]


def test_saving_where_the_program_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, optimizer = trained()
    optimizer.save("run")
    optimizer.load("run")
    assert os.listdir() == ["run"]


def test_a_file_gets_the_permissions_that_others_get(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        small(tmp_path / "run")
        (tmp_path / "other").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    whole = small(path)
    _, optimizer = trained()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    for module, name in ((os, "replace"), (os, "fsync"), (checkpoint, "save_file")):
        for failure, error in ((full, OSError), (interrupted, KeyboardInterrupt)):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, failure)
                with pytest.raises(error):
                    optimizer.save(path)
            assert path.read_bytes() == whole
            assert os.listdir(tmp_path) == ["run"]
    with pytest.raises(OSError, match="missing"):
        optimizer.save(tmp_path / "missing" / "run")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        optimizer.save(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "run"]


# Killed while saving.


KILLED = """
    import os, random, signal, sys, time
    import numpy as np
    import oneadam
    from oneadam import checkpoint
    from oneadam.numpy import Adam

    path, kills, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    folder, own = os.path.dirname(path), os.path.basename(path)
    oneadam.set_num_threads(1)
    rng = random.Random(7)

    def filled(number):
        # Everything that is saved says the same number, so that a mixture would show.
        optimizer = Adam(use_ema=True, gradient_accumulation_steps=2)
        optimizer.build([np.ones(60_000, np.float32), np.ones(7, np.float32)])
        state = optimizer.state_dict()
        for name, array in state.items():
            if array.dtype != bool:
                state[name] = np.full_like(array, number)
        optimizer.load_state_dict(state)
        return optimizer, state

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def stage(number):
        # The moments between which a save can be cut off.
        real = checkpoint.save_file
        def half(tensors, file, metadata):
            real(tensors, file, metadata)
            os.truncate(file, os.path.getsize(file) // 2)
            die()
        replace = os.replace
        def renamed(*args):
            replace(*args)
            die()
        module, name, action = [
            (checkpoint, "save_file", die), (checkpoint, "save_file", half), (os, "fsync", die),
            (os, "replace", die), (os, "replace", renamed),
        ][number % 5]
        setattr(module, name, action)

    def child(last):
        optimizer, state = filled(last)
        ready.write(b"."), ready.flush()
        if way == "stages":
            stage(last)
        while True:
            last += 1
            for name, array in state.items():
                if array.dtype != bool:
                    array[...] = last
            optimizer.load_state_dict(state)
            optimizer.save(path)

    def seen():
        tensors, _ = checkpoint.read(path)
        numbers = {float(n) for a in tensors.values() if a.dtype != bool for n in np.unique(a)}
        assert len(numbers) == 1, f"a mixture of {numbers}"
        assert tensors["0/momentum"].shape == (60_000,)
        return int(numbers.pop())

    last, leftovers, moved = 0, 0, 0
    filled(0)[0].save(path)
    for kill in range(kills):
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            os.close(reading)
            ready = os.fdopen(writing, "wb")
            try:
                child(kill if way == "stages" else last)
            finally:
                os._exit(9)
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        if way != "stages":
            time.sleep(rng.uniform(0.0, 0.012))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        number = seen()
        if way != "stages":
            assert number >= last, f"the file went back from {last} to {number}"
        moved += number != last
        last = number
        leftovers += len(os.listdir(folder)) > 1
    filled(last)[0].save(path)
    assert os.listdir(folder) == [own], os.listdir(folder)
    assert seen() == last
    print(moved, leftovers)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
@pytest.mark.parametrize(("way", "kills"), [("anywhere", 200), ("stages", 10)])
def test_kills_leave_the_old_file_or_the_new_one(way: str, kills: int, tmp_path: Path) -> None:
    moved, leftovers = map(int, processes.run(KILLED, tmp_path / "run", kills, way).split())
    # Else no kill fell into a save, or no save was ever finished.
    assert leftovers >= kills // 20
    assert moved >= kills // 20 if way == "anywhere" else moved == kills // 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_leftovers_of_living_processes_and_files_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "run"
    small(path)
    code = """
    import os, signal, sys
    import numpy as np
    from oneadam import checkpoint
    checkpoint.save_file = lambda *a: os.kill(os.getpid(), int(sys.argv[2]))
    checkpoint.write(sys.argv[1], {"a": np.ones(3)}, {})
    """
    stopped = processes.start(code, path, int(signal.SIGSTOP))
    try:
        os.waitpid(stopped.pid, os.WUNTRACED)
        others = [name for name in os.listdir(tmp_path) if name != "run"]
        assert len(others) == 1
        mine = [f".run.elsewhere.{stopped.pid}.abc.tmp", ".other.tmp", "run.tmp", ".run.tmp"]
        for name in mine:
            (tmp_path / name).touch()
        small(path)
        assert sorted(os.listdir(tmp_path)) == sorted(["run", *others, *mine])
    finally:
        stopped.kill()
        stopped.communicate()
    small(path)
    assert sorted(os.listdir(tmp_path)) == sorted(["run", *mine])

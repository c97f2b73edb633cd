"""Whatever memory the arrays have: a step works exactly, or is refused before it writes."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import processes
import pytest
from snapshots import bits, taken, unchanged

from oneadam.numpy import Adam, LossScaleOptimizer

FULL: dict[str, Any] = {
    "learning_rate": 0.1,
    "amsgrad": True,
    "weight_decay": 0.1,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
    "loss_scale_factor": 4.0,
}
CONFIGS = [{}, FULL]
REFUSALS = (TypeError, ValueError)


@contextmanager
def quiet() -> Iterator[None]:
    """Let pass what NumPy says of changes in place, and we of gradients that are None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fresh(count: int = 2, size: int = 12) -> list[np.ndarray]:
    """Plain variables, no two alike."""
    return [np.linspace(-1, i + 1, size, dtype=np.float32) for i in range(count)]


def gradients(variables: list[Any], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=np.shape(v)).astype(np.float32) for v in variables]


def built(variables: list[Any], config: dict[str, Any] | None = None, calls: int = 2) -> Adam:
    """An optimizer that has taken some calls."""
    optimizer = Adam(**(config or {}))
    optimizer.build(variables)
    for seed in range(calls):
        optimizer.apply(gradients(variables, seed))
    return optimizer


def stepped_plainly(
    start: list[Any], grads: list[list[Any]], config: dict[str, Any]
) -> tuple[Any, ...]:
    """The bits that plain copies of variables and gradients give."""
    variables = [np.array(v, np.asarray(v).dtype.newbyteorder("="), order="C") for v in start]
    optimizer = Adam(**config)
    optimizer.build(variables)
    for call in grads:
        native = [None if g is None else np.asarray(g).dtype.newbyteorder("=") for g in call]
        copies = [
            None if g is None else np.array(g, dtype, order="C")
            for g, dtype in zip(call, native, strict=True)
        ]
        optimizer.apply(copies)
    return bits(optimizer, variables)


def assert_exact(variables: list[Any], grads: list[list[Any]], config: dict[str, Any]) -> None:
    """Hold steps on odd arrays to the bits that plain ones give."""
    wanted = stepped_plainly(variables, grads, config)
    identities = [id(v) for v in variables]
    optimizer = Adam(**config)
    optimizer.build(variables)
    for call in grads:
        optimizer.apply(call)
    assert bits(optimizer, variables) == wanted
    assert [id(v) for v in optimizer.variables.values()] == identities


# What odd memory a variable of three rows and four columns can have.


def read_write_map(tmp_path: Path) -> np.ndarray:
    return np.memmap(tmp_path / "variable", np.float32, "w+", shape=(3, 4))


def copy_on_write_map(tmp_path: Path) -> np.ndarray:
    read_write_map(tmp_path).flush()
    return np.memmap(tmp_path / "variable", np.float32, "c", shape=(3, 4))


def matrix(tmp_path: Path) -> np.ndarray:
    class Matrix(np.ndarray):
        pass

    return np.zeros((3, 4), np.float32).view(Matrix)


def shifted(tmp_path: Path) -> np.ndarray:
    return np.zeros(3 * 4 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(3, 4)


def with_metadata(tmp_path: Path) -> np.ndarray:
    return np.zeros((3, 4), np.dtype(np.float32, metadata={"unit": "m"}))


ODD: dict[str, Callable[[Path], np.ndarray]] = {
    "transposed": lambda _: np.zeros((4, 3), np.float32).T,
    "every other": lambda _: np.zeros((6, 8), np.float32)[::2, ::2],
    "backwards": lambda _: np.zeros((3, 4), np.float32)[::-1, ::-1],
    "axes swapped": lambda _: np.zeros((4, 2, 3), np.float32)[:, 0, :].T,
    "byte-swapped": lambda _: np.zeros((3, 4), ">f4"),
    "byte-swapped double": lambda _: np.zeros((3, 4), ">f8"),
    "byte-swapped half": lambda _: np.zeros((3, 4), ">f2"),
    "misaligned": shifted,
    "field of records": lambda _: np.zeros((3, 4), [("a", "u1"), ("b", "f4")])["b"],
    "dtype with metadata": with_metadata,
    "memory map": read_write_map,
    "copy-on-write map": copy_on_write_map,
    "subclass": matrix,
    "rows of one column": lambda _: np.zeros((3, 1, 4), np.float32)[:, 0],
    "on a bytearray": lambda _: np.frombuffer(bytearray(48), np.float32).reshape(3, 4),
    "bfloat16 backwards": lambda _: np.zeros((3, 4), ml_dtypes.bfloat16)[::-1],
}


@pytest.mark.parametrize("config", CONFIGS, ids=["bare", "full"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_variables_and_gradients_work_exactly(
    kind: str, config: dict[str, Any], tmp_path: Path
) -> None:
    variable = ODD[kind](tmp_path)
    rng = np.random.default_rng(1)
    variable[...] = rng.normal(size=(3, 4))
    other = np.ones(5, np.float32)
    calls = []
    for _ in range(4):
        odd = ODD[kind](tmp_path / "..") if "map" not in kind else variable.copy()
        odd[...] = rng.normal(size=(3, 4))
        calls.append([odd, rng.normal(size=5)])
    assert_exact([variable, other], calls, config)


@pytest.mark.parametrize("config", CONFIGS, ids=["bare", "full"])
def test_a_memory_map_reaches_its_file(config: dict[str, Any], tmp_path: Path) -> None:
    variable = read_write_map(tmp_path)
    optimizer = built([variable], config, calls=4)
    variable.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "variable", np.float32), variable.ravel())
    assert variable.any()
    assert optimizer.variables["0"] is variable


@pytest.mark.parametrize("config", CONFIGS, ids=["bare", "full"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1, 1)])
def test_empty_and_scalar_variables(shape: tuple[int, ...], config: dict[str, Any]) -> None:
    variables = [np.full(shape, 0.5, np.float32), np.ones(3, np.float32)]
    grads = [[np.full(shape, 0.3, np.float32), np.ones(3, np.float32)] for _ in range(4)]
    assert_exact(variables, grads, config)
    alone = [np.full(shape, 0.5, np.float32)]
    optimizer = built(alone, config, calls=4)
    assert optimizer.calls == 4
    assert np.isfinite(alone[0]).all()


def test_no_variables_at_all() -> None:
    for nothing in ([], {}, {"layer": {}}):
        optimizer = Adam()
        optimizer.build(nothing)
        optimizer.apply(nothing)
        assert optimizer.state_dict()["adam/calls"] == 0


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def overlapping_itself() -> np.ndarray:
    return np.lib.stride_tricks.as_strided(np.zeros(10, np.float32), (4, 3), (4, 4))


REFUSED: dict[str, Callable[[], Any]] = {
    "read-only": lambda: read_only(np.zeros(3, np.float32)),
    "read-only, on bytes": lambda: np.frombuffer(bytes(12), np.float32),
    "broadcast": lambda: np.broadcast_to(np.zeros(1, np.float32), (3,)),
    "stride zero, writable": lambda: np.lib.stride_tricks.as_strided(
        np.zeros(1, np.float32), (3,), (0,)
    ),
    "overlapping itself": overlapping_itself,
    "objects": lambda: np.zeros(3, object),
    "integers": lambda: np.zeros(3, np.int32),
    "booleans": lambda: np.zeros(3, bool),
    "complex": lambda: np.zeros(3, np.complex64),
    "long double": lambda: np.zeros(3, np.longdouble),
    "dates": lambda: np.zeros(3, "M8[s]"),
    "text": lambda: np.zeros(3, "U3"),
    "records": lambda: np.zeros(3, [("a", "f4")]),
    "float8": lambda: np.zeros(3, ml_dtypes.float8_e4m3fn),
    "masked": lambda: np.ma.zeros(3, np.float32),
    "scalar": lambda: np.float32(1.0),
    "number": lambda: 1.0,
    "numbers": lambda: "text",
    "nothing": lambda: None,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_variables_that_cannot_be_updated_are_refused_by_name(kind: str) -> None:
    good = np.ones(3, np.float32)
    optimizer = Adam()
    with pytest.raises(REFUSALS, match="bad"):
        optimizer.build({"good": good, "bad": REFUSED[kind]()})
    with pytest.raises(REFUSALS, match="bad"):
        optimizer.apply({"good": good, "bad": good}, {"good": good, "bad": REFUSED[kind]()})
    assert (good == 1).all()
    optimizer.build({"good": good})


def test_a_read_only_map_is_refused(tmp_path: Path) -> None:
    read_write_map(tmp_path).flush()
    variable = np.memmap(tmp_path / "variable", np.float32, "r", shape=(3, 4))
    with pytest.raises(ValueError, match="writable"):
        Adam().build([variable])


# Memory that is shared.


def test_variables_that_share_memory_are_refused() -> None:
    base = np.zeros(20, np.float32)
    square = np.zeros((4, 4), np.float32)
    pairs = [
        (base, base),
        (base, base[:]),
        (base[:11], base[10:]),
        (base[5:6], base),
        (base[::2], base[4:5]),
        (square, square.T),
        (square[:, :3], square[2:, 2:]),
        (base, base.view(np.float64)),
        (base[::3], base[::2]),
    ]
    for one, other in pairs:
        for order in ((one, other), (other, one)):
            with pytest.raises(ValueError, match="share memory"):
                Adam().build({"one": order[0], "between": np.zeros(2), "other": order[1]})
        assert not base.any()


@pytest.mark.parametrize("config", CONFIGS, ids=["bare", "full"])
def test_neighbours_and_interlaced_views_are_no_overlap(config: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    for cut in (
        lambda base: [base[:7], base[7:]],
        lambda base: [base[::2], base[1::2]],
        lambda base: [base[::3], base[1::3], base[2::3]],
        lambda base: [base[::-2], base[-2::-2]],
        lambda base: [base[:12].reshape(3, 4)[:, :2], base[:12].reshape(3, 4)[:, 2:]],
        lambda base: [base[:6], base[6:6], base[6:]],
    ):
        variables = cut(rng.normal(size=18).astype(np.float32))
        grads = [[rng.normal(size=v.shape).astype(np.float32) for v in variables] for _ in range(4)]
        assert_exact(variables, grads, config)


def test_thousands_of_views_of_one_array_are_told_apart_quickly() -> None:
    base = np.zeros(20_000, np.float32)
    variables = [base[2 * i : 2 * i + 2] for i in range(10_000)]
    Adam().build(variables)
    variables[7777] = base[5001:5003]
    with pytest.raises(ValueError, match=r"share memory.*'(2500|7777)' and '(2501|7777)'"):
        Adam().build(variables)


@pytest.mark.parametrize("config", CONFIGS, ids=["bare", "full"])
def test_gradients_may_share_memory_with_variables(config: dict[str, Any]) -> None:
    def shared(variables: list[np.ndarray]) -> list[list[Any]]:
        one, other = variables
        return [
            [one, other],
            [other, one],
            [one[::-1], one],
            [other.reshape(3, 4).T.reshape(12), None],
            [one, one],
            [np.broadcast_to(one[3:4], (12,)), other[::-1]],
            [np.lib.stride_tricks.as_strided(one, (12,), (0,)), other],
            [np.ma.getdata(one), one.view()],
        ]

    for number in range(8):
        apart = fresh()
        copies = [[None if g is None else g.copy() for g in call] for call in shared(apart)]
        del copies  # each call is compared by itself, for the variables move
        variables, others = fresh(), fresh()
        one, two = built(variables, config), built(others, config)
        aliased = shared(variables)[number]
        plain = [None if g is None else np.array(g) for g in shared(others)[number]]
        with quiet():
            one.apply(aliased)
            two.apply(plain)
        assert bits(one, variables) == bits(two, others), number


@pytest.mark.parametrize("config", CONFIGS, ids=["bare", "full"])
def test_gradients_between_the_elements_of_a_variable(config: dict[str, Any]) -> None:
    base = np.arange(24, dtype=np.float32)
    grads = base[1::2]
    kept = grads.copy()
    assert_exact([base[::2]], [[grads]] * 4, config)
    np.testing.assert_array_equal(grads, kept)


def test_one_array_may_be_the_gradient_of_several_variables() -> None:
    variables, grad = fresh(3), np.full(12, 0.5, np.float32)
    grad.setflags(write=False)
    assert_exact(variables, [[grad, grad, grad]] * 3, FULL)
    assert (grad == 0.5).all()


@pytest.mark.parametrize("config", CONFIGS, ids=["bare", "full"])
def test_gradients_are_never_written(config: dict[str, Any]) -> None:
    variables = fresh()
    grads = gradients(variables)
    for grad in grads:
        grad.setflags(write=False)
    kept = [grad.copy() for grad in grads]
    optimizer = built(variables, config)
    for _ in range(3):
        optimizer.apply(grads)
    assert all(g.tobytes() == k.tobytes() for g, k in zip(grads, kept, strict=True))


def test_states_of_two_optimizers_are_their_own() -> None:
    variables = fresh()
    one, other = built(variables, FULL), built(fresh(), FULL)
    with unchanged(other, []):
        for _ in range(3):
            one.apply(gradients(variables))
    saved = one.state_dict()
    for array in saved.values():
        array[...] = 77
    with unchanged(one, variables):
        for array in saved.values():
            array[...] = 88
    loaded = other.state_dict()
    other.load_state_dict(loaded)
    with unchanged(other, []):
        for array in loaded.values():
            array[...] = 99


# What changes after the build.


def _made_read_only(variables: list[np.ndarray]) -> None:
    variables[1].setflags(write=False)


def _grown(variables: list[np.ndarray]) -> None:
    variables[1].resize(1_000_000, refcheck=False)


def _shrunk(variables: list[np.ndarray]) -> None:
    variables[1].resize(3, refcheck=False)


def _emptied(variables: list[np.ndarray]) -> None:
    variables[1].resize(0, refcheck=False)


def _reshaped(variables: list[np.ndarray]) -> None:
    with quiet():
        variables[1].shape = (3, 4)


def _retyped(variables: list[np.ndarray]) -> None:
    with quiet():
        variables[1].dtype = np.int32


def _swapped(variables: list[np.ndarray]) -> None:
    with quiet():
        variables[1].dtype = np.dtype(">f4")


def _restrided(variables: list[np.ndarray]) -> None:
    with quiet():
        variables[1].strides = (0,)


CHANGES = [
    _made_read_only, _grown, _shrunk, _emptied, _reshaped, _retyped, _swapped, _restrided,
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=["bare", "full"])
@pytest.mark.parametrize("change", CHANGES)
def test_variables_changed_in_place_are_refused(
    change: Callable[[list[np.ndarray]], None], config: dict[str, Any]
) -> None:
    variables = fresh(3)
    optimizer = built(variables, config, calls=3)
    grads = gradients(variables)
    change(variables)
    for given in (grads, gradients(variables), [grads[0], None, grads[2]]):
        with quiet(), unchanged(optimizer, variables), pytest.raises(REFUSALS, match="'1'"):
            optimizer.apply(given)


@pytest.mark.parametrize("change", [_made_read_only, _grown, _shrunk, _retyped])
def test_changed_variables_are_refused_everywhere(
    change: Callable[[list[np.ndarray]], None],
) -> None:
    variables = fresh(3)
    optimizer = built(variables, FULL, calls=3)
    assert optimizer.state_dict()["adam/accumulated_calls"] == 1
    change(variables)
    with unchanged(optimizer, variables), pytest.raises(REFUSALS):
        optimizer.flush()
    with unchanged(optimizer, variables), pytest.raises(REFUSALS):
        optimizer.finalize_variable_values()
    with unchanged(optimizer, variables), pytest.raises(REFUSALS), optimizer.averaged():
        pass


@pytest.mark.parametrize("odd", ["transposed", "every other", "misaligned", "byte-swapped"])
def test_odd_variables_changed_in_place_are_refused(odd: str, tmp_path: Path) -> None:
    for change in (
        lambda v: v.setflags(write=False),
        lambda v: setattr(v, "dtype", np.dtype(np.int32)),
        lambda v: setattr(v, "strides", (0, 0)),
    ):
        variables = [np.ones(3, np.float32), ODD[odd](tmp_path)]
        optimizer = built(variables)
        grads = gradients(variables)
        with quiet():
            change(variables[1])
        with unchanged(optimizer, variables), pytest.raises(REFUSALS, match="'1'"):
            optimizer.apply(grads)


def test_a_change_that_is_undone_is_forgiven() -> None:
    variables, others = fresh(), fresh()
    optimizer, other = built(variables, FULL, calls=3), built(others, FULL, calls=3)
    variables[0].setflags(write=False)
    with pytest.raises(ValueError, match="'0'"):
        optimizer.apply(gradients(variables))
    variables[0].setflags(write=True)
    kept = variables[1].copy()
    # Large enough for the memory to move; back to the old size it lies elsewhere.
    variables[1].resize(3_000_000, refcheck=False)
    variables[1].resize(12, refcheck=False)
    np.testing.assert_array_equal(variables[1], kept)
    for seed in range(3):
        optimizer.apply(gradients(variables, seed))
        other.apply(gradients(others, seed))
    assert bits(optimizer, variables) == bits(other, others)


def test_moved_variables_are_still_told_from_gradients() -> None:
    variables = [np.ones(500_000, np.float32), np.ones(3, np.float32)]
    others = [v.copy() for v in variables]
    optimizer, other = built(variables, calls=1), built(others, calls=1)
    variables[0].resize(40_000_000, refcheck=False)
    variables[0].resize(500_000, refcheck=False)
    optimizer.apply([variables[0][::-1], variables[1]])
    other.apply([others[0][::-1].copy(), others[1].copy()])
    assert bits(optimizer, variables) == bits(other, others)


def test_the_structure_may_change_after_the_build_without_harm() -> None:
    for structure, added in (
        ({"a": np.ones(3, np.float32)}, {"b": np.ones(3, np.float32)}),
        ({"a": np.ones(3, np.float32)}, {"a": np.ones(3, np.float32)}),
        ({"a": np.ones(3, np.float32)}, {"a": np.ones((7, 7, 7), np.float64)}),
    ):
        optimizer = built_dict(structure)
        structure.update(added)
        grads = {name: np.ones(array.shape, np.float32) for name, array in structure.items()}
        _refused_or_harmless(optimizer, structure, grads)
    variables = [np.ones(3, np.float32)]
    optimizer = built(variables)
    variables.append(np.ones(4, np.float32))
    _refused_or_harmless(optimizer, variables, gradients(variables))
    variables = fresh(3)
    optimizer = built(variables)
    kept = list(variables)
    del variables[0]
    _refused_or_harmless(optimizer, kept, gradients(variables))


def built_dict(structure: dict[str, np.ndarray]) -> Adam:
    optimizer = Adam()
    optimizer.build(structure)
    optimizer.apply({name: np.ones_like(array) for name, array in structure.items()})
    return optimizer


def _refused_or_harmless(optimizer: Adam, structure: Any, grads: Any) -> None:
    """A structure that is no longer the optimizer's: a clear error, nothing changed."""
    arrays = structure.values() if isinstance(structure, dict) else structure
    with unchanged(optimizer, [*arrays, *optimizer.variables.values()]):
        try:
            optimizer.apply(grads)
        except REFUSALS:
            return
        pytest.fail("a call with gradients for other variables than those built on was taken")


# Gradients, and code of the user's that runs in the middle of a call.


class Sly:
    """A gradient that does something when it is converted."""

    def __init__(self, action: Callable[[], object], content: np.ndarray) -> None:
        self.action, self.content = action, content

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.action()
        return self.content


@pytest.mark.parametrize("change", [_made_read_only, _retyped])
def test_variables_changed_while_gradients_are_converted(
    change: Callable[[list[np.ndarray]], None],
) -> None:
    variables = fresh(3)
    optimizer = built(variables, FULL, calls=3)
    grads: list[Any] = gradients(variables)
    grads[0] = Sly(lambda: change(variables), grads[0])
    before = taken(optimizer, [variables[0], variables[2]])
    with pytest.raises(REFUSALS, match="'1'"):
        optimizer.apply(grads)
    assert taken(optimizer, [variables[0], variables[2]]) == before


@pytest.mark.parametrize("change", [_made_read_only, _retyped])
def test_variables_changed_while_callables_are_evaluated(
    change: Callable[[list[np.ndarray]], None],
) -> None:
    variables, armed = fresh(3), []

    def rate() -> float:
        if armed:
            change(variables)
        return 0.1

    optimizer = built(variables, {**FULL, "learning_rate": rate}, calls=3)
    grads = gradients(variables)
    armed.append(True)
    state = {name: array.tobytes() for name, array in optimizer.state_dict().items()}
    kept = variables[0].tobytes(), variables[2].tobytes()
    with pytest.raises(REFUSALS, match="'1'"):
        optimizer.apply(grads)
    assert {name: array.tobytes() for name, array in optimizer.state_dict().items()} == state
    assert (variables[0].tobytes(), variables[2].tobytes()) == kept


MOVED_WHILE_CALLED = """
    import sys
    import numpy as np
    from oneadam.numpy import Adam

    def move():
        # Small enough for the freed memory to be handed out again: a write there is a crime.
        variable.resize(4_000_000, refcheck=False)
        witnesses.extend(np.zeros(1000, np.float32) for _ in range(50))

    class Sly:
        def __array__(self, dtype=None, copy=None):
            move()
            return np.ones(1000, np.float32)

    armed, witnesses = [], []
    variable = np.ones(1000, np.float32)
    optimizer = Adam(lambda: 0.1 if not armed else move() or 0.1)
    optimizer.build([np.ones(1000, np.float32), variable])
    grads = [np.ones(1000, np.float32), np.ones(1000, np.float32)]
    optimizer.apply(grads)
    if sys.argv[1] == "gradient":
        grads[0] = Sly()
    else:
        armed.append(True)
    try:
        optimizer.apply(grads)
    except ValueError as error:
        assert "'1'" in str(error), error
        print("refused")
    else:
        print("written")
    assert not any(witness.any() for witness in witnesses), "memory of somebody else was written"
"""


@pytest.mark.parametrize("by", ["gradient", "learning rate"])
def test_variables_moved_in_the_middle_of_a_call(by: str) -> None:
    assert processes.run(MOVED_WHILE_CALLED, by) == "refused\n"


def test_gradients_that_exist_only_for_the_call() -> None:
    variables, others = [np.zeros(300_000, np.float32)], [np.zeros(300_000, np.float32)]
    optimizer, other = Adam(**FULL), Adam(**FULL)
    optimizer.build(variables)
    other.build(others)
    for seed in range(4):
        grad = gradients(variables, seed)[0]
        # Nobody else holds the array that this makes.
        optimizer.apply([Sly(lambda: None, grad.astype(np.float64) * 1.0)])
        gc.collect()
        other.apply([grad.astype(np.float64)])
    assert bits(optimizer, variables) == bits(other, others)


def test_variables_live_as_long_as_the_optimizer() -> None:
    optimizer = built(fresh(3, 100_000), FULL, calls=2)
    gc.collect()
    junk = [np.full(100_000, np.nan, np.float32) for _ in range(6)]
    optimizer.apply([np.ones(100_000, np.float32)] * 3)
    optimizer.apply([np.ones(100_000, np.float32)] * 3)
    assert all(np.isnan(array).all() for array in junk)
    assert all(np.isfinite(array).all() for array in optimizer.variables.values())


BAD_GRADIENTS: dict[str, Callable[[], Any]] = {
    "objects": lambda: np.ones(12, object),
    "integers": lambda: np.ones(12, np.int64),
    "booleans": lambda: np.ones(12, bool),
    "complex": lambda: np.ones(12, np.complex128),
    "text": lambda: np.full(12, "1.0"),
    "dates": lambda: np.ones(12, "M8[s]"),
    "records": lambda: np.ones(12, [("a", "f4")]),
    "masked": lambda: np.ma.ones(12, np.float32),
    "longer": lambda: np.ones(13, np.float32),
    "shorter": lambda: np.ones(11, np.float32),
    "broadcastable": lambda: np.ones(1, np.float32),
    "a column": lambda: np.ones((12, 1), np.float32),
    "two-dimensional": lambda: np.ones((3, 4), np.float32),
    "scalar": lambda: np.float32(1.0),
    "number": lambda: 1.0,
    "ragged": lambda: [[1.0], [2.0, 3.0]],
    "list with None": lambda: [1.0] * 11 + [None],
    "complex list": lambda: [1j] * 12,
    "dict": lambda: {"a": 1},
    "object": object,
    "failing": lambda: Sly(lambda: 1 / 0, np.ones(12)),
    "lying": lambda: Sly(lambda: None, "no array"),
    "class": lambda: np.ndarray,
}


@pytest.mark.parametrize("config", CONFIGS, ids=["bare", "full"])
@pytest.mark.parametrize("kind", BAD_GRADIENTS)
def test_gradients_that_do_not_fit_are_refused(kind: str, config: dict[str, Any]) -> None:
    for calls in (0, 2, 3):
        variables = fresh(3)
        optimizer = built(variables, config, calls=calls)
        grads: list[Any] = gradients(variables)
        grads[1] = BAD_GRADIENTS[kind]()
        with unchanged(optimizer, variables), pytest.raises(REFUSALS, match="'1'"):
            optimizer.apply(grads)
        with unchanged(optimizer, variables), pytest.raises(REFUSALS, match="'1'"):
            optimizer.apply_gradients(zip(grads, variables, strict=True))


def test_a_loss_scale_keeps_its_promise_too() -> None:
    variables = fresh(3)
    optimizer = LossScaleOptimizer(Adam(use_ema=True), initial_scale=8.0)
    optimizer.build(variables)
    optimizer.apply(gradients(variables))
    _made_read_only(variables)
    with unchanged(optimizer, variables), pytest.raises(ValueError, match="'1'"):
        optimizer.apply(gradients(variables))
    variables[1].setflags(write=True)
    for bad in (np.ones(5, np.float32), np.ones(12, np.int32)):
        with unchanged(optimizer, variables), pytest.raises(REFUSALS, match="'1'"):
            optimizer.apply([*gradients(variables)[:1], bad, variables[2]])


# Copies.


def test_copies_have_memory_of_their_own() -> None:
    variables = fresh(3)
    optimizer = built(variables, FULL, calls=3)
    for duplicate in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        copied_variables, copied = duplicate((variables, optimizer))
        assert bits(copied, copied_variables) == bits(optimizer, variables)
        assert all(a is b for a, b in zip(copied.variables.values(), copied_variables, strict=True))
        with unchanged(optimizer, variables):
            copied.apply(gradients(variables))
            copied.apply(gradients(variables))
        assert bits(copied, copied_variables) != bits(optimizer, variables)


@pytest.mark.parametrize("kind", ["transposed", "backwards", "byte-swapped", "misaligned"])
def test_copies_of_odd_variables(kind: str, tmp_path: Path) -> None:
    variables = [np.ones(3, np.float32), ODD[kind](tmp_path)]
    optimizer = built(variables, FULL, calls=3)
    copied_variables, copied = pickle.loads(pickle.dumps((variables, optimizer)))
    for seed in range(3):
        optimizer.apply(gradients(variables, seed))
        copied.apply(gradients(variables, seed))
    assert bits(optimizer, variables) == bits(copied, copied_variables)


def test_a_pickle_on_memory_that_must_not_be_written() -> None:
    variables = fresh(3)
    optimizer = built(variables, FULL, calls=3)
    buffers: list[pickle.PickleBuffer] = []
    said = pickle.dumps((variables, optimizer), protocol=5, buffer_callback=buffers.append)
    assert buffers
    frozen = [bytes(buffer.raw()) for buffer in buffers]
    kept = [bytes(bytearray(piece)) for piece in frozen]
    copied_variables, copied = pickle.loads(said, buffers=frozen)
    with pytest.raises(REFUSALS):
        copied.apply(gradients(variables))
    assert frozen == kept
    # The variables alone writable: the state is still not.
    for number, array in enumerate(copied_variables):
        assert not array.flags.writeable, number
    own = pickle.loads(said, buffers=[bytearray(piece) for piece in frozen])
    for seed in range(3):
        optimizer.apply(gradients(variables, seed))
        own[1].apply(gradients(variables, seed))
    assert bits(*own[::-1]) == bits(optimizer, variables)


def test_state_on_memory_that_must_not_be_written() -> None:
    variables = fresh(1)
    optimizer = built(variables)
    buffers: list[pickle.PickleBuffer] = []
    said = pickle.dumps(optimizer, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    # The variable on a bytearray, everything else on bytes.
    given = [bytearray(b) if bytes(b) == variables[0].tobytes() else bytes(b) for b in raw]
    assert sum(isinstance(piece, bytearray) for piece in given) == 1
    kept = [bytes(bytearray(piece)) for piece in given if isinstance(piece, bytes)]
    copied = pickle.loads(said, buffers=given)
    with suppress(REFUSALS):
        copied.apply(gradients(variables))
    assert [piece for piece in given if isinstance(piece, bytes)] == kept, "bytes were written to"


def test_two_optimizers_may_take_turns_on_the_same_variables() -> None:
    variables = fresh()
    one, other = built(variables, calls=1), built(variables, FULL, calls=2)
    with unchanged(other, []):
        one.apply(gradients(variables))
    with unchanged(one, []):
        other.apply(gradients(variables))


def test_the_snapshot_sees_every_change() -> None:
    variables = [np.zeros(20, np.float32)[::2], np.ones(3, np.float32)]
    optimizer = built(variables, FULL, calls=3)

    def poke_gap() -> None:
        variables[0].base[1] = 1.0

    def poke() -> None:
        variables[1][2] = np.nextafter(variables[1][2], np.float32(2))

    def negate_zero() -> None:
        variables[0].base[3] = -0.0

    def call() -> None:
        optimizer.apply([np.zeros(10, np.float32), None])

    def rate() -> None:
        optimizer.learning_rate = 0.25

    with quiet():
        for change in (poke_gap, poke, negate_zero, call, rate):
            with pytest.raises(AssertionError), unchanged(optimizer, variables):
                change()

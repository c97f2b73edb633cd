"""The portable format: by name, the same as that of the other doors, in both directions."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scenarios import ByCalls
from tolerances import allowed

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402
from jax_cases import call, made, same, trained  # noqa: E402

import oneadam.numpy  # noqa: E402
from oneadam import checkpoint  # noqa: E402
from oneadam.jax import (  # noqa: E402
    AdamState,
    adam,
    averaged,
    load,
    load_state_dict,
    loss_scale,
    metrics,
    save,
    set_learning_rate,
    state_dict,
)
from oneadam.schedules import ExponentialDecay  # noqa: E402

Tree = Any
Saved = dict[str, np.ndarray]

PLAIN: dict[str, Any] = {"learning_rate": 0.1}
FULL: dict[str, Any] = {
    "learning_rate": 0.05,
    "amsgrad": True,
    "weight_decay": 0.1,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 3,
    "gradient_accumulation_steps": 3,
}
AVERAGED = {**PLAIN, "use_ema": True}
WINDOW = {**PLAIN, "gradient_accumulation_steps": 3}
SCALE = {"initial_scale": 2.0**6, "dynamic_growth_steps": 4}
AFRESH, LEFT_OUT = "started afresh, because .*", "left out, because .*"
NAMES = ("encoder/0/bias", "encoder/0/kernel", "gain")


def tree(seed: int, size: float = 1.0) -> dict[str, Any]:
    """Parameters, or gradients for them, as arrays of NumPy."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return np.asarray(rng.choice([-1, 1], shape) * rng.uniform(0.5, 1, shape) * size, "f4")

    return {"encoder": [{"bias": array(3), "kernel": array(2, 3)}], "gain": array()}


def device(arrays: Tree) -> Tree:
    return jax.tree.map(jnp.array, arrays)


def gradients(since: int, to: int) -> list[Tree]:
    """Some above and some below a norm of 1, and the state of each call its own."""
    return [device(tree(100 + n, 10.0 ** (n % 3 - 1))) for n in range(since, to)]


def fresh(config: dict[str, Any]) -> tuple[Any, Tree, Any]:
    """A transformation, parameters and their state."""
    transformation, params = made(config), device(tree(0))
    return transformation, params, transformation.init(params)


def after(config: dict[str, Any], calls: int) -> tuple[Any, Tree, Any]:
    transformation, params, _ = fresh(config)
    return transformation, *trained(transformation, params, gradients(0, calls))


def saved_after(config: dict[str, Any], calls: int = 4) -> Saved:
    """What a run has to save."""
    transformation, params, state = after(config, calls)
    return state_dict(transformation, state, params)


@contextlib.contextmanager
def told(*patterns: str) -> Iterator[None]:
    """Expect one warning that says all this, at the line of the caller; none without patterns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert len(caught) == bool(patterns), [str(one.message) for one in caught]
    for pattern in patterns:
        assert re.search(pattern, str(caught[0].message)), caught[0].message
    assert all(one.filename == __file__ for one in caught), "not the line of the caller"


def equal(one: Saved, other: Saved) -> None:
    """Hold two saved states to each other, to the bit."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert isinstance(array, np.ndarray), name
        assert isinstance(other[name], np.ndarray), name
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), (name, array, other[name])


def near(one: Saved, other: Saved, updates: int) -> None:
    """Hold two saved states to each other within what two doors may come to."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        if array.dtype != np.float32:
            assert array == other[name] or name.endswith("learning_rate"), name
        else:
            what = name.rpartition("/")[2]
            # Each door rounds for itself, a clipped mean of a window included.
            limit = 2 * allowed(what, "float32", updates, preparation=6)
            unit = np.spacing(np.abs(array).max(initial=np.finfo(np.float32).tiny))
            assert np.abs(array - other[name]).max(initial=0) <= limit * unit, name


def test_the_comparisons_find_what_differs() -> None:
    saved = saved_after(FULL, 5)
    for name in ("gain/momentum", "encoder/0/kernel/average", "adam/calls", "gain/in_window"):
        other = {**saved, name: saved[name].copy()}
        if other[name].dtype == np.float32:
            other[name].flat[0] += np.spacing(other[name].flat[0])
        else:
            other[name][...] = not other[name]
        with pytest.raises(AssertionError):
            equal(saved, other)
        if name == "gain/momentum":
            near(saved, other, 1)
            other[name][...] *= np.float32(1.0 + 1e-4)
        if name != "encoder/0/kernel/average":
            with pytest.raises(AssertionError):
                near(saved, other, 1)
    with pytest.raises(AssertionError):
        near(saved, {**saved, "more": np.array(1)}, 1)


def opened(name: str) -> Any:
    """Another door, behind the interface of NumPy's."""
    if name == "numpy":
        return oneadam.numpy
    pytest.importorskip("torch")
    import torch_as_numpy

    return torch_as_numpy


class Run:
    """A run in another door."""

    def __init__(self, door: Any, config: dict[str, Any], scale: dict[str, Any] | None) -> None:
        self.arrays = tree(0)
        self.optimizer = door.Adam(**config)
        if scale is not None:
            self.optimizer = door.LossScaleOptimizer(self.optimizer, **scale)
        self.optimizer.build(self.arrays)

    def go_on(self, grads: list[Tree]) -> None:
        for each in grads:
            self.optimizer.apply(jax.tree.map(lambda leaf: np.array(leaf), each))

    def saved(self, path: Path) -> Saved:
        self.optimizer.save(path)
        return checkpoint.read(path)[0]


@pytest.mark.parametrize("scale", [None, SCALE], ids=["plain", "scaled"])
@pytest.mark.parametrize("config", [PLAIN, FULL], ids=["bare", "full"])
@pytest.mark.parametrize("name", ["numpy", "torch"])
class TestOtherDoors:
    """Runs that go on elsewhere, from the middle of a window if there is one."""

    CALLS, MORE = 5, 7

    def ours(self, config: dict[str, Any], scale: dict[str, Any] | None) -> Any:
        inner = made(config)
        return inner if scale is None else scaled(inner)

    def test_go_on_here(
        self, name: str, config: dict[str, Any], scale: dict[str, Any] | None, tmp_path: Path
    ) -> None:
        theirs = Run(opened(name), config, scale)
        theirs.go_on(gradients(0, self.CALLS))
        file = theirs.saved(tmp_path / "run")
        ours, params = self.ours(config, scale), device(theirs.arrays)
        with told():
            state = load(tmp_path / "run", ours, ours.init(params), params)
        equal(state_dict(ours, state, params), file)
        theirs.go_on(gradients(self.CALLS, self.CALLS + self.MORE))
        more = gradients(self.CALLS, self.CALLS + self.MORE)
        params, state = trained(ours, params, more, state)
        self.agree(theirs.saved(tmp_path / "run"), state_dict(ours, state, params))
        self.agree(named(theirs.arrays), named(params))

    def test_go_on_there(
        self, name: str, config: dict[str, Any], scale: dict[str, Any] | None, tmp_path: Path
    ) -> None:
        ours, params = self.ours(config, scale), device(tree(0))
        params, state = trained(ours, params, gradients(0, self.CALLS))
        save(tmp_path / "run", ours, state, params)
        file = state_dict(ours, state, params)
        equal(checkpoint.read(tmp_path / "run")[0], file)
        theirs = Run(opened(name), config, scale)
        for path, array in named(theirs.arrays).items():
            array[...] = named(params)[path]
        with told():
            theirs.optimizer.load(tmp_path / "run")
        equal(theirs.saved(tmp_path / "again"), file)
        more = gradients(self.CALLS, self.CALLS + self.MORE)
        theirs.go_on(more)
        params, state = trained(ours, params, more, state)
        self.agree(theirs.saved(tmp_path / "run"), state_dict(ours, state, params))
        self.agree(named(theirs.arrays), named(params))

    def agree(self, theirs: Saved, ours: Saved) -> None:
        values = {f"{name}/value": array for name, array in theirs.items() if name in NAMES}
        if values:
            theirs, ours = values, {f"{name}/value": np.asarray(ours[name]) for name in ours}
        near(theirs, ours, self.CALLS + self.MORE)


_scaled: dict[Any, Any] = {}


def scaled(inner: Any) -> Any:
    """A loss scale around a transformation, always the same one."""
    return _scaled.setdefault(inner, loss_scale(inner, **SCALE))


def named(arrays: Tree) -> Saved:
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


@pytest.mark.parametrize("calls", [0, 1, 5])
@pytest.mark.parametrize("way", ["file", "dict"])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, way: str, calls: int) -> None:
    transformation, params, state = after(FULL, calls)
    # A state that was used before, and of which nothing may be left.
    _, _, used = after(FULL, 2)
    if way == "file":
        save(tmp_path / "run", transformation, state, params)
        resumed = load(str(tmp_path / "run"), transformation, used, params)
    else:
        saved = state_dict(transformation, state, params)
        resumed = load_state_dict(transformation, used, params, saved)
    wanted = trained(transformation, params, gradients(calls, calls + 7), state)
    found = trained(transformation, params, gradients(calls, calls + 7), resumed)
    same(wanted[0], found[0])
    for part in ("momentum", "velocity", "velocity_hat", "average", "gradient_accumulator"):
        same(getattr(wanted[1], part), getattr(found[1], part))
    equal(*(state_dict(transformation, run[1], run[0]) for run in (wanted, found)))


def test_narrow_parameters_have_wide_state(tmp_path: Path) -> None:
    transformation, params, _ = fresh(FULL)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    params, state = trained(transformation, params, gradients(0, 5))
    save(tmp_path / "run", transformation, state, params)
    saved, described = checkpoint.read(tmp_path / "run")
    assert saved["gain/momentum"].dtype == np.float32
    assert '"bfloat16"' in described["variables"]
    resumed = load(tmp_path / "run", transformation, transformation.init(params), params)
    same(resumed.momentum, state.momentum)
    one, other = (
        trained(transformation, params, gradients(5, 9), each) for each in (state, resumed)
    )
    same(one[0], other[0])


def test_names_are_the_paths_of_the_parameters() -> None:
    saved = saved_after({**FULL, "name": "mine"}, 1)
    parts = ("momentum", "velocity", "velocity_hat", "average", "averaged",
             "gradient_accumulator", "in_window", "updates")  # fmt: skip
    own = ("calls", "updates", "accumulated_calls", "skipped_calls", "learning_rate")
    assert set(saved) == {f"{n}/{p}" for n in NAMES for p in parts} | {f"mine/{p}" for p in own}


def test_what_is_saved_is_nobodys_memory() -> None:
    transformation, params, state = after(FULL, 4)
    saved = state_dict(transformation, state, params)
    kept = {name: array.copy() for name, array in saved.items()}
    donating = jax.jit(lambda g, s: transformation.update(g, s, params)[1], donate_argnums=1)
    donating(gradients(0, 1)[0], state)
    equal(saved, kept)
    own = {name: array.copy() for name, array in kept.items()}
    loaded = load_state_dict(transformation, transformation.init(params), params, own)
    for array in own.values():
        array[...] = 0
    equal(state_dict(transformation, loaded, params), kept)


class TestLearningRates:
    """Which learning rate holds after loading."""

    def test_numbers_stay_what_they_were_written_as(self) -> None:
        for rate in (0.01, 0.1, 3e-4, 1e-5, 7.0):
            transformation, params, state = fresh({"learning_rate": rate})
            saved = state_dict(transformation, state, params)
            assert saved["adam/learning_rate"] == rate  # the state has float32
            assert saved["adam/learning_rate"].dtype == np.float64
            other, _, began = fresh({"learning_rate": 0.5})
            loaded = load_state_dict(other, began, params, saved)
            assert state_dict(other, loaded, params)["adam/learning_rate"] == rate
            other = set_learning_rate(state, 0.3)
            assert state_dict(transformation, other, params)["adam/learning_rate"] == 0.3

    @pytest.mark.parametrize("way", ["file", "dict"])
    @pytest.mark.parametrize(("keep", "rate"), [(False, 0.025), (True, 0.5)])
    def test_the_saved_one_unless_the_user_says_so(
        self, tmp_path: Path, way: str, keep: bool, rate: float
    ) -> None:
        transformation, params, state = after(PLAIN, 2)
        state = set_learning_rate(state, 0.025)
        save(tmp_path / "run", transformation, state, params)
        other, _, began = fresh({"learning_rate": 0.5})
        with told():
            if way == "file":
                found = load(tmp_path / "run", other, began, params, keep_learning_rate=keep)
            else:
                saved = state_dict(transformation, state, params)
                found = load_state_dict(other, began, params, saved, keep_learning_rate=keep)
        assert metrics(found)["learning_rate"] == np.float32(rate)

    @pytest.mark.parametrize("schedule", [ExponentialDecay(0.1, 2, 0.5), ByCalls(0.3, 0.2)])
    def test_a_schedule_stays(self, schedule: Any) -> None:
        number, params = saved_after(PLAIN, 3), device(tree(0))
        scheduled = adam(schedule)
        with told(LEFT_OUT + "adam/learning_rate"):
            state = load_state_dict(scheduled, scheduled.init(params), params, number)
        with told():
            load_state_dict(
                scheduled, scheduled.init(params), params, number, keep_learning_rate=True
            )
        _, state = call(scheduled, gradients(3, 4)[0], state, params)
        assert metrics(state)["learning_rate"] == pytest.approx(schedule(3), rel=1e-6)
        back, _, began = fresh(PLAIN)
        saved = state_dict(scheduled, state, params)
        assert "adam/learning_rate" not in saved
        with told(AFRESH + "adam/learning_rate"):
            state = load_state_dict(back, began, params, saved)
        assert metrics(state)["learning_rate"] == np.float32(0.1)


class TestOptionalParts:
    """They may come and go, and it is said which do."""

    @pytest.mark.parametrize(
        ("option", "slot"),
        [
            ({"use_ema": True}, "average"),
            ({"amsgrad": True}, "velocity_hat"),
            ({"gradient_accumulation_steps": 3}, "gradient_accumulator"),
        ],
    )
    def test_come_and_go(self, option: dict[str, Any], slot: str) -> None:
        without, with_ = saved_after(PLAIN), saved_after({**PLAIN, **option})
        transformation, params, state = fresh({**PLAIN, **option})
        with told(AFRESH + f"encoder/0/bias/{slot}"):
            state = load_state_dict(transformation, state, params, without)
        later = state_dict(transformation, state, params)
        assert not later[f"gain/{slot}"].any()
        transformation, params, state = fresh(PLAIN)
        with told(LEFT_OUT + f"encoder/0/bias/{slot}"):
            state = load_state_dict(transformation, state, params, with_)
        earlier = state_dict(transformation, state, params)
        for name in ("gain/momentum", "encoder/0/kernel/velocity", "gain/updates", "adam/calls"):
            assert later[name].tobytes() == without[name].tobytes()
            assert earlier[name].tobytes() == with_[name].tobytes()

    def test_an_average_switched_on_later_starts_at_the_parameter(self) -> None:
        transformation, params, state = fresh(AVERAGED)
        with told(AFRESH + "average"):
            state = load_state_dict(transformation, state, params, saved_after(PLAIN))
        same(averaged(state, params), params)
        params, state = call(transformation, gradients(4, 5)[0], state, params)
        same(state.average, params)

    def test_an_average_that_only_some_have_is_the_parameter_for_the_others(self) -> None:
        saved = saved_after(AVERAGED)
        saved |= {"gain/averaged": np.array(False), "gain/average": np.zeros((), np.float32)}
        transformation, params, state = fresh(AVERAGED)
        state = load_state_dict(transformation, state, params, saved)
        same(state.average["gain"], params["gain"])
        assert np.array_equal(averaged(state, params)["encoder"][0]["bias"],
                              saved["encoder/0/bias/average"])  # fmt: skip
        assert all(state_dict(transformation, state, params)[f"{n}/averaged"] for n in NAMES)

    def test_a_window_that_is_left_out_or_lacking_is_so_whole(self) -> None:
        saved = saved_after(WINDOW, 5)
        assert saved["adam/accumulated_calls"] == 2
        transformation, params, state = fresh(PLAIN)
        with told(LEFT_OUT + "gradient_accumulator"):
            state = load_state_dict(transformation, state, params, saved)
        assert state.accumulated_calls == 0
        transformation, params, state = fresh(WINDOW)
        lacking = {n: a for n, a in saved.items() if not n.endswith("gradient_accumulator")}
        with told(AFRESH + "gradient_accumulator"):
            state = load_state_dict(transformation, state, params, lacking)
        assert state.accumulated_calls == 0
        assert not state_dict(transformation, state, params)["gain/in_window"]

    def test_a_longer_window_closes_at_the_next_call(self) -> None:
        saved = saved_after({**PLAIN, "gradient_accumulation_steps": 5}, 4)
        transformation, params, state = fresh(WINDOW)
        with told():
            state = load_state_dict(transformation, state, params, saved)
        _, state = call(transformation, gradients(4, 5)[0], state, params)
        assert metrics(state)["updates"] == 1
        mean = np.mean([np.asarray(each["gain"]) for each in gradients(0, 5)])
        assert np.asarray(state.momentum["gain"]) == pytest.approx(0.1 * mean, rel=1e-5)

    def test_a_loss_scale_comes_and_goes(self) -> None:
        params, without = device(tree(0)), saved_after(PLAIN)
        with_ = scaled(made(PLAIN))
        with told(AFRESH + "adam/loss_scale"):
            state = load_state_dict(with_, with_.init(params), params, without)
        assert metrics(state)["loss_scale"] == 64.0
        broken = jax.tree.map(lambda leaf: leaf * jnp.inf, params)
        _, state = trained(with_, params, [broken, *gradients(0, 3), broken, broken], state)
        saved = state_dict(with_, state, params)
        assert saved["adam/loss_scale"] == 8.0
        assert saved["adam/loss_scale_skipped_in_a_row"] == 2
        assert saved["adam/skipped_calls"] == 3
        _, again = trained(with_, params, gradients(0, 3), with_.init(params))
        again = load_state_dict(with_, again, params, saved)
        equal(state_dict(with_, again, params), saved)
        assert metrics(again)["skipped_calls"] == 3
        plain, _, began = fresh(PLAIN)
        with told(LEFT_OUT + "adam/loss_scale"):
            found = load_state_dict(plain, began, params, saved)
        assert metrics(found)["skipped_calls"] == 3
        for wrong in (-1.0, 0.0, np.nan, np.inf, 0.25):
            damaged = {**saved, "adam/loss_scale": np.array(wrong)}
            with pytest.raises(ValueError, match=r"loss.scale"):
                load_state_dict(with_, again, params, damaged)


class TestAbsences:
    """What is counted of each parameter goes with it."""

    @staticmethod
    def partly(grads: Tree) -> Tree:
        return {**grads, "gain": None}

    @pytest.mark.filterwarnings("ignore:.*no gradient.*")
    @pytest.mark.parametrize("here", [True, False], ids=["to NumPy", "from NumPy"])
    def test_between_doors(self, here: bool, tmp_path: Path) -> None:
        first = [gradients(0, 1)[0], *(self.partly(each) for each in gradients(1, 4))]
        then = [*(self.partly(each) for each in gradients(4, 6)), *gradients(6, 9)]
        theirs = Run(oneadam.numpy, WINDOW, None)
        ours, params, state = fresh(WINDOW)
        if here:
            params, state = trained(ours, params, first, state)
            save(tmp_path / "run", ours, state, params)
            for path, array in named(theirs.arrays).items():
                array[...] = named(params)[path]
            theirs.optimizer.load(tmp_path / "run")
        else:
            self.apply(theirs, first)
            theirs.optimizer.save(tmp_path / "run")
            params = device(theirs.arrays)
            state = load(tmp_path / "run", ours, state, params)
        saved = checkpoint.read(tmp_path / "run")[0]
        assert (saved["gain/updates"], saved["gain/in_window"]) == (1, False)
        assert saved["encoder/0/bias/in_window"]
        equal(state_dict(ours, state, params), saved)
        self.apply(theirs, then)
        params, state = trained(ours, params, then, state)
        found = state_dict(ours, state, params)
        near(theirs.saved(tmp_path / "run"), found, 3)
        assert (found["gain/updates"], found["encoder/0/bias/updates"]) == (2, 3)

    @staticmethod
    def apply(theirs: Run, grads: list[Tree]) -> None:
        for each in grads:
            arrays = jax.tree.map(lambda leaf: np.array(leaf), each)
            theirs.optimizer.apply(arrays)

    @pytest.mark.filterwarnings("ignore:.*no gradient.*")
    def test_a_state_that_counts_goes_on_counting(self) -> None:
        saved = saved_after(PLAIN)
        transformation, params, state = fresh(PLAIN)
        _, state = call(transformation, self.partly(gradients(0, 1)[0]), state, params)
        found = load_state_dict(transformation, state, params, saved)
        # The same structure as before: nothing is compiled again.
        assert jax.tree.structure(found) == jax.tree.structure(state)
        equal(state_dict(transformation, found, params), saved)


class TestParts:
    """State that is a part of another state."""

    def test_of_a_chain_with_a_mask(self, tmp_path: Path) -> None:
        ours, params = made(AVERAGED), device(tree(0))
        mask = {"encoder": True, "gain": False}
        whole = optax.chain(optax.clip(1.0), optax.masked(ours, mask), optax.scale(1.0))
        _, state = trained(whole, params, gradients(0, 3))
        save(tmp_path / "run", ours, state, params)
        saved = checkpoint.read(tmp_path / "run")[0]
        assert {name for name in saved if name.startswith("gain")} == set()
        assert saved["adam/calls"] == 3
        theirs = oneadam.numpy.Adam(**AVERAGED)
        theirs.build({"encoder": tree(0)["encoder"]})
        theirs.load(tmp_path / "run")
        equal(theirs.state_dict(), saved)
        found = load(tmp_path / "run", ours, whole.init(params), params)
        assert jax.tree.structure(found) == jax.tree.structure(state)
        equal(state_dict(ours, found, params), saved)
        one, other = (trained(whole, params, gradients(3, 6), each) for each in (state, found))
        same(one[0], other[0])

    def test_of_several_ask_which(self) -> None:
        params = device(tree(0))
        parts = {"a": made(PLAIN), "b": made(AVERAGED)}
        whole = optax.multi_transform(parts, {"encoder": "a", "gain": "b"})
        state = whole.init(params)
        with pytest.raises(ValueError, match="received 2; pass the part"):
            state_dict(parts["a"], state, params)
        with pytest.raises(ValueError, match="received 2; pass the part"):
            load_state_dict(parts["a"], state, params, saved_after(PLAIN))
        _, state = trained(whole, params, gradients(0, 3), state)
        part = state.inner_states["b"]
        saved = state_dict(parts["b"], part, params)
        assert {name.partition("/")[0] for name in saved} == {"gain", "adam"}
        began = whole.init(params).inner_states["b"]
        same(load_state_dict(parts["b"], began, params, saved), part)

    def test_under_a_loss_scale_in_a_chain(self) -> None:
        ours, params = scaled(made(PLAIN)), device(tree(0))
        whole = optax.chain(ours, optax.scale(1.0))
        _, state = trained(whole, params, gradients(0, 5))
        saved = state_dict(ours, state, params)
        assert saved["adam/loss_scale"] == 128.0
        found = load_state_dict(ours, whole.init(params), params, saved)
        same(found, state)

    @pytest.mark.parametrize("function", [state_dict, save, load, load_state_dict])
    def test_other_transformations_are_refused(
        self, function: Callable[..., Any], tmp_path: Path
    ) -> None:
        others, params, state = optax.adam(0.1), device(tree(0)), fresh(PLAIN)[2]
        arguments: dict[Any, tuple[Any, ...]] = {
            state_dict: (others, state, params),
            save: (tmp_path / "run", others, state, params),
            load: (tmp_path / "run", others, state, params),
            load_state_dict: (others, state, params, {}),
        }
        with pytest.raises(TypeError, match=f"{function.__name__} must be given what oneadam.jax"):
            function(*arguments[function])
        with pytest.raises(TypeError, match="AdamState in it"):
            state_dict(made(PLAIN), others.init(params), params)
        assert list(tmp_path.iterdir()) == []


# What does not fit.


def _without(part: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(part)


def _with(part: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.__setitem__(part, value)


NUMBERS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("encoder/0/kernel/momentum"), "missing: encoder/0/kernel/momentum"),
        (_without("gain/updates"), "missing: gain/updates"),
        (_without("adam/calls"), "missing: adam/calls"),
        (_with("encoder/1/momentum", NUMBERS), "unexpected: encoder/1/momentum"),
        (_with("adam/unheard_of", np.array(1)), "unexpected: adam/unheard_of"),
        (_with("encoder/0/kernel/momentum", NUMBERS.T), r"kernel/momentum.*\(3, 2\).*\(2, 3\)"),
        (_with("encoder/0/kernel/average", NUMBERS[:1]), r"kernel/average.*\(1, 3\)"),
        (_with("encoder/0/kernel/velocity", NUMBERS.astype(np.float64)), "velocity.*float64"),
        (_with("encoder/0/kernel/velocity", "text"), "velocity"),
        (_with("adam/calls", np.array(1.5)), "adam/calls"),
        (_with("adam/calls", np.array(-1)), "adam/calls"),
        (_with("gain/updates", np.array(-3)), "gain/updates"),
        (_with("adam/learning_rate", np.array(-1.0)), "learning_rate"),
        (_with("adam/learning_rate", np.array(np.nan)), "learning_rate"),
    ],
)
def test_mismatches_are_listed_and_nothing_changes(
    change: Callable[[dict[str, Any]], None], said: str
) -> None:
    saved: dict[str, Any] = dict(saved_after(FULL, 5))
    change(saved)
    kept = {name: np.array(value).tobytes() for name, value in saved.items()}
    transformation, params, state = after(FULL, 2)
    before = state_dict(transformation, state, params)
    with pytest.raises(ValueError, match=said):
        load_state_dict(transformation, state, params, saved)
    assert {name: np.array(value).tobytes() for name, value in saved.items()} == kept
    equal(state_dict(transformation, state, params), before)


def test_all_mismatches_are_listed_at_once() -> None:
    saved = saved_after(PLAIN)
    del saved["gain/momentum"]
    saved |= {"more/momentum": NUMBERS, "encoder/0/kernel/velocity": NUMBERS.T}
    transformation, params, state = fresh(PLAIN)
    with pytest.raises(ValueError, match="missing: gain/momentum") as caught:
        load_state_dict(transformation, state, params, saved)
    for said in ("unexpected: more/momentum", "encoder/0/kernel/velocity", "nothing was loaded"):
        assert said in str(caught.value)


def test_parameters_must_be_those_of_the_state() -> None:
    transformation, params, state = fresh(PLAIN)
    saved = state_dict(transformation, state, params)
    del params["gain"]
    with pytest.raises(ValueError, match=r"params must be those of the state.*'gain'"):
        state_dict(transformation, state, params)
    with pytest.raises(ValueError, match=r"params must be those of the state.*'gain'"):
        load_state_dict(transformation, state, params, saved)


def test_names_that_could_be_taken_for_others(tmp_path: Path) -> None:
    transformation, params, state = fresh({**PLAIN, "name": "gain"})
    with pytest.raises(ValueError, match="both have 'gain/updates'"):
        save(tmp_path / "run", transformation, state, params)
    assert list(tmp_path.iterdir()) == []


class TestNames:
    """Parameters may have other names in the file."""

    OTHERS: ClassVar = {"encoder/0/bias": "b", "encoder/0/kernel": "k", "gain": "g"}

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        theirs = oneadam.numpy.Adam(**PLAIN, name="theirs")
        arrays = named(tree(0))
        theirs.build({self.OTHERS[name]: array for name, array in arrays.items()})
        theirs.apply({self.OTHERS[n]: np.array(g) for n, g in named(gradients(0, 1)[0]).items()})
        theirs.save(tmp_path / "run")
        return tmp_path / "run"

    def test_as_a_mapping_or_a_function(self, path: Path) -> None:
        transformation, params, state = fresh(PLAIN)
        here = {there: name for name, there in self.OTHERS.items()}
        wanted = saved_after(PLAIN, 1)
        for names in (here, here.__getitem__):
            found = load(path, transformation, state, params, names)
            near(state_dict(transformation, found, params), wanted, 1)

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (None, "missing: encoder/0/bias/momentum"),
            ({"b": "encoder/0/bias"}, "missing: encoder/0/kernel"),
            ({"c": "gain"}, "names must rename variables of the checkpoint"),
            (lambda name: "gain", "different names"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, path: Path, names: Any, said: str) -> None:
        transformation, params, state = fresh(PLAIN)
        with pytest.raises(ValueError, match=said):
            load(path, transformation, state, params, names)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    transformation, params, state = after(PLAIN, 2)
    path = tmp_path / "run"
    save(path, transformation, state, params)
    whole = path.read_bytes()
    for content in (
        b"",
        whole[:9],
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"\0",
        b"text" * 9,
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="checkpoint of oneadam") as caught:
            load(path, transformation, state, params)
        assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none", transformation, state, params)


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformation, params, state = after(PLAIN, 2)
    save(tmp_path / "run", transformation, state, params)
    before = (tmp_path / "run").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path / "run", transformation, fresh(PLAIN)[2], params)
    assert (tmp_path / "run").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["run"]
    with pytest.raises(OSError, match="folder"):
        save(tmp_path / "no folder" / "run", transformation, state, params)


def test_what_is_loaded_is_a_state_like_another() -> None:
    transformation, params, state = after(FULL, 5)
    saved = state_dict(transformation, state, params)
    found = load_state_dict(transformation, transformation.init(params), params, saved)
    assert isinstance(found, AdamState)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert isinstance(one, jax.Array)
        assert (one.dtype, one.shape, one.weak_type) == (other.dtype, other.shape, other.weak_type)


def test_a_state_and_a_transformation_that_differ_are_refused(tmp_path: Path) -> None:
    params = {"kernel": jnp.ones(3)}
    plain, averaging = adam(), adam(use_ema=True)
    for state, transformation in ((plain.init(params), averaging), (averaging.init(params), plain)):
        with pytest.raises(ValueError, match="average"):
            save(tmp_path / "adam.safetensors", transformation, state, params)
    assert not list(tmp_path.iterdir())


def test_the_betas_that_a_state_has_are_those_that_are_saved(tmp_path: Path) -> None:
    params = {"kernel": jnp.ones(3)}
    state = adam(0.1, beta_1=0.5, beta_2=0.99).init(params)
    save(tmp_path / "adam.safetensors", adam(), state, params)
    config = json.loads(checkpoint.read(tmp_path / "adam.safetensors")[1]["config"])
    assert (config["learning_rate"], config["beta_1"], config["beta_2"]) == (0.1, 0.5, 0.99)

"""What wrong values, errors and Ctrl-C leave behind in the Keras door, on KERAS_BACKEND's."""

from __future__ import annotations

import signal
from collections.abc import Callable
from importlib import import_module
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from oneadam.keras import Adam, LossScaleOptimizer, _rows
from oneadam.schedules import PolynomialDecay

BACKEND = keras.backend.backend()
ANEW = pytest.mark.skipif(BACKEND != "jax", reason="makes no variable for another kind")
SCHEDULE = PolynomialDecay(0.5, 100, 0.5)


def fetched(value: Any) -> np.ndarray:
    return np.array(
        ops.convert_to_numpy(value.value if isinstance(value, keras.Variable) else value)
    )


def variables() -> list[Any]:
    return [keras.Variable(np.zeros(2, np.float32), name=name) for name in ("kernel", "bias")]


def trained(optimizer: Any, calls: int) -> Any:
    """The optimizer, with variables of its own and some calls done."""
    optimizer.build(variables())
    for _ in range(calls):
        take(optimizer)
    return optimizer


def take(optimizer: Any) -> float:
    """How far a call takes a variable: the learning rate, for the gradient is always 1."""
    first = inner(optimizer)._own.variables[0]
    before = fetched(first)[0]
    optimizer.apply([ops.ones((2,)), ops.full((2,), -0.5)])
    return float(before - fetched(first)[0])


def inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def everything(optimizer: Any) -> dict[str, bytes]:
    """All that an optimizer has and works on, to the last bit."""
    own = {name: value.tobytes() for name, value in optimizer.state_dict().items()}
    values = {v.name: fetched(v).tobytes() for v in inner(optimizer)._own.variables}
    return own | values


def near(number: float) -> Any:
    return pytest.approx(number, rel=1e-5)


class TestLearningRates:
    @pytest.mark.parametrize("is_built", [False, True], ids=["new", "built"])
    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.5])
    @pytest.mark.parametrize("of", [ops.convert_to_tensor, keras.Variable])
    def test_out_of_range_are_refused_in_tensors(
        self, of: Callable[[Any], Any], wrong: float, is_built: bool
    ) -> None:
        optimizer = Adam(0.25)
        if is_built:
            optimizer.build(variables())
        with pytest.raises(ValueError, match="learning_rate must be a finite number >= 0"):
            optimizer.learning_rate = of(wrong)
        assert float(fetched(optimizer.learning_rate)) == 0.25
        optimizer.learning_rate = of(0.125)
        assert float(fetched(optimizer.learning_rate)) == 0.125

    def test_may_be_assigned_where_nobody_can_look_at_them(self) -> None:
        optimizer = trained(Adam(0.5), 0)
        halved = self.halving(optimizer)
        assert [halved(), halved()] == [0.25, 0.125]

    @staticmethod
    def halving(optimizer: Any) -> Callable[[], float]:
        """A compiled step that halves the learning rate and returns it."""

        def halve() -> None:
            optimizer.learning_rate = optimizer.learning_rate * 0.5

        def halved() -> float:
            compiled()
            return float(fetched(optimizer.learning_rate))

        compiled: Callable[[], Any] = halve
        if BACKEND == "tensorflow":
            compiled = import_module("tensorflow").function(halve)
        if BACKEND == "jax":

            @import_module("jax").jit
            def stateless(value: Any) -> Any:
                rate = optimizer.learning_rate
                with keras.StatelessScope([(rate, value)]) as scope:
                    halve()
                return scope.get_current_value(rate)

            def compiled() -> None:
                rate = optimizer.learning_rate
                rate.assign(stateless(rate.value))

        return halved

    @pytest.mark.parametrize(
        ("here", "there", "wanted"), [(0.25, SCHEDULE, 0.25), (SCHEDULE, 0.25, 0.5)]
    )
    def test_of_another_kind_are_left_out_of_weights(
        self, here: Any, there: Any, wanted: float
    ) -> None:
        one, other = (trained(Adam(1.0), calls) for calls in (0, 3))
        one.learning_rate, other.learning_rate = here, there
        with pytest.warns(UserWarning, match="learning rate, and the optimizer goes on with its"):
            one.set_weights(other.variables)
        assert one.calls == 3
        assert take(one) == near(wanted)

    def test_are_given_back_where_keras_has_loaded_that_of_a_schedule(self) -> None:
        one, other = (trained(Adam(0.25), 0) for _ in range(2))
        one.learning_rate = SCHEDULE
        kept: dict[str, Any] = {}
        one.save_own_variables(kept)
        # As Keras's LossScaleOptimizer does, which loads all variables of what it wraps.
        other.learning_rate.assign(fetched(one._own.rate))
        with pytest.warns(UserWarning, match="no learning rate, and the optimizer goes on with"):
            other.load_own_variables(kept)
        assert take(other) == near(0.25)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.5])
    def test_out_of_range_are_refused_in_what_was_saved(self, wrong: float) -> None:
        one, other = (trained(Adam(0.25, name="adam"), 0) for _ in range(2))
        weights = [fetched(variable) for variable in one.variables]
        weights[1] = np.array(wrong)
        kept: dict[str, Any] = {}
        one.save_own_variables(kept)
        kept["learning_rate"] = weights[1]
        before = everything(other)
        for load in (
            lambda: other.set_weights(weights),
            lambda: other.load_own_variables(kept),
        ):
            with pytest.raises(ValueError, match="the saved learning rate must be a finite number"):
                load()
            assert everything(other) == before

    @pytest.mark.parametrize(
        ("calls", "before", "after"),
        [
            pytest.param(0, SCHEDULE, 0.25, id="new"),
            pytest.param(1, 0.5, SCHEDULE, id="built", marks=ANEW),
        ],
    )
    def test_of_another_kind_are_kept_wholly_or_not_at_all(
        self, calls: int, before: Any, after: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise MemoryError

        optimizer = trained(Adam(before), calls) if calls else Adam(before)
        names = [variable.path for variable in optimizer.variables]
        with monkeypatch.context() as patch:
            patch.setattr(keras.Variable, "__init__", fail)
            with pytest.raises(MemoryError):
                optimizer.learning_rate = after
        assert [variable.path for variable in optimizer.variables] == names
        optimizer.build(variables())
        assert take(optimizer) == near(0.5)


def averaging(*, is_scaled: bool) -> Any:
    optimizer = Adam(0.25, use_ema=True, name="adam")
    return LossScaleOptimizer(optimizer, initial_scale=8.0) if is_scaled else optimizer


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "scaled"])
def one(request: pytest.FixtureRequest) -> Any:
    """An optimizer that has come some way."""
    return trained(averaging(is_scaled=request.param), 3)


class TestCtrlC:
    """It waits until all is taken over."""

    @staticmethod
    def others(one: Any) -> list[Any]:
        """Two like it that have taken no step."""
        is_scaled = inner(one) is not one
        return [trained(averaging(is_scaled=is_scaled), 0) for _ in range(2)]

    @staticmethod
    def interrupted(act: Callable[[], None]) -> None:
        """Act, and be interrupted before the second assignment."""
        real, done = keras.Variable.assign, []

        def assign(variable: Any, value: Any) -> Any:
            done.append(variable)
            if len(done) == 2:
                signal.raise_signal(signal.SIGINT)
            return real(variable, value)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keras.Variable, "assign", assign)
            with pytest.raises(KeyboardInterrupt):
                act()
        assert len(done) > 1

    @pytest.mark.parametrize("method", ["load_state_dict", "set_weights", "load_own_variables"])
    def test_with_what_was_saved(self, one: Any, method: str) -> None:
        kept: dict[str, Any] = {}
        one.save_own_variables(kept)
        given = {"load_state_dict": one.state_dict(), "set_weights": one.variables,
                 "load_own_variables": kept}[method]  # fmt: skip
        other, wanted = self.others(one)
        getattr(wanted, method)(given)
        self.interrupted(lambda: getattr(other, method)(given))
        assert everything(other) == everything(wanted)

    def test_with_what_keras_saved(self) -> None:
        theirs = keras.optimizers.Adam(0.25, use_ema=True)
        theirs.build(variables())
        theirs.apply([ops.ones((2,)), ops.full((2,), -0.5)])
        other, wanted = (trained(averaging(is_scaled=False), 0) for _ in range(2))
        wanted.set_weights(theirs.variables)
        self.interrupted(lambda: other.set_weights(theirs.variables))
        assert everything(other) == everything(wanted)
        assert other.updates == 1

    def test_with_averages(self, one: Any) -> None:
        other, wanted = self.others(one)
        for optimizer in (other, wanted):
            optimizer.load_state_dict(one.state_dict())
        wanted.finalize_variable_values(inner(wanted)._own.variables)
        self.interrupted(lambda: other.finalize_variable_values(inner(other)._own.variables))
        assert everything(other) == everything(wanted)
        assert fetched(inner(other)._own.variables[0]).any()


class TestLossScale:
    def test_weights_reach_the_inner_optimizer(self) -> None:
        one, other = (trained(LossScaleOptimizer(Adam(0.25), 8.0, 2), n) for n in (3, 0))
        with pytest.raises(ValueError, match="weights must have"):
            other.set_weights(one.variables[:5])
        other.set_weights(one.variables)
        assert other.metrics() == one.metrics()
        assert (other.metrics()["loss_scale"], other.calls) == (16.0, 3)
        with pytest.raises(RuntimeError, match="must be built"):
            LossScaleOptimizer(Adam()).set_weights(one.variables)

    def test_state_goes_around_an_optimizer_that_is_built(self) -> None:
        one = trained(LossScaleOptimizer(Adam(name="adam"), 8.0), 0)
        one.dynamic_scale.assign(4.0)
        other = LossScaleOptimizer(trained(Adam(name="adam"), 0), 8.0)
        other.load_state_dict(one.state_dict())
        assert other.metrics()["loss_scale"] == 4.0
        with pytest.raises(RuntimeError, match="must be built"):
            LossScaleOptimizer(Adam(name="adam"), 8.0).load_state_dict(one.state_dict())


class TestLoadedBeforeBuilding:
    @pytest.mark.parametrize("compiled", [False, True])
    def test_a_loss_scale_goes_on(self, compiled: bool) -> None:
        if compiled and BACKEND != "tensorflow":
            pytest.skip("others build outside of what they compile")
        kept: dict[str, Any] = {}
        trained(LossScaleOptimizer(Adam(0.25), 4.0), 1).save_own_variables(kept)
        optimizer, grads = LossScaleOptimizer(Adam(0.25), 8.0), [ops.ones((2,)), ops.ones((2,))]
        optimizer.load_own_variables(kept)
        on = variables()

        def step() -> None:
            optimizer.apply(grads, on)

        (import_module("tensorflow").function(step) if compiled else step)()
        assert float(fetched(optimizer.dynamic_scale)) == 4.0
        assert int(fetched(optimizer.step_counter)) == 2
        assert optimizer.metrics()["gradient_norm"] == near(0.5)

    def test_what_does_not_fit_makes_way_for_what_does(self) -> None:
        one = trained(Adam(0.25, name="adam"), 2)
        misfit: dict[str, Any] = {}
        trained(Adam(0.25, amsgrad=True), 1).save_own_variables(misfit)
        optimizer = Adam(0.25, name="adam")
        optimizer.load_own_variables(misfit)
        with pytest.raises(ValueError, match="nothing was loaded"):
            optimizer.build(variables())
        optimizer.load_state_dict(one.state_dict())
        assert optimizer.calls == 2
        take(optimizer)
        assert optimizer.calls == 3


class TestRefusals:
    @pytest.mark.parametrize(
        "grads", [lambda: [ops.ones((2,))], lambda: [ops.ones((2,)), ops.ones((3,))],
                  lambda: [None, None]],
        ids=["too few", "of another shape", "none"],
    )  # fmt: skip
    def test_a_refused_call_builds_nothing(self, grads: Callable[[], Any]) -> None:
        optimizer = Adam(0.25)
        with pytest.raises(ValueError, match="grads must"):
            optimizer.apply(grads(), variables())
        assert not optimizer.built
        assert trained(optimizer, 1).calls == 1

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("dynamic_scale", np.nan),
            ("dynamic_scale", 0.0),
            ("dynamic_scale", np.ones(1)),
            ("step_counter", -1),
            ("skipped_in_a_row", -1),
        ],
    )
    def test_of_the_state_of_a_loss_scale(self, name: str, wrong: Any) -> None:
        optimizer = trained(LossScaleOptimizer(Adam(0.25, name="adam"), 4.0), 1)
        kept: dict[str, Any] = {}
        optimizer.save_own_variables(kept)
        before = everything(optimizer)
        wrong = np.asarray(wrong, kept[name].dtype)
        with pytest.raises(ValueError, match="the saved"):
            optimizer.load_own_variables(kept | {name: wrong})
        weights = [
            wrong if v is getattr(optimizer, name) else fetched(v) for v in optimizer.variables
        ]
        with pytest.raises(ValueError, match=r"the saved|must be numbers"):
            optimizer.set_weights(weights)
        with pytest.raises(ValueError, match="the saved"):
            LossScaleOptimizer(Adam(0.25)).load_own_variables(kept | {name: wrong})
        assert everything(optimizer) == before

    def test_of_negative_counters(self) -> None:
        optimizer = trained(Adam(0.25, name="adam"), 1)
        kept: dict[str, Any] = {}
        optimizer.save_own_variables(kept)
        before = everything(optimizer)
        (name,) = [name for name in kept if name.endswith("_counts")]
        with pytest.raises(ValueError, match="_counts is negative"):
            optimizer.load_own_variables(kept | {name: -kept[name] - 1})
        counts = optimizer._own.slots.counts
        with pytest.raises(ValueError, match="counts is negative"):
            optimizer.set_weights(
                [fetched(v) - 2 if v is counts else fetched(v) for v in optimizer.variables]
            )
        assert everything(optimizer) == before

    def test_without_state_where_a_variable_is_frozen(self) -> None:
        optimizer = trained(Adam(0.25, name="adam"), 1)
        kernel, bias = optimizer._own.variables
        bias.trainable = False
        before = everything(optimizer)
        own = [ops.copy(v.value) for v in optimizer.variables]

        def step() -> Any:
            return optimizer.stateless_apply(own, [ops.ones((2,))], [ops.copy(kernel.value)])

        if BACKEND == "tensorflow":
            with pytest.raises(ValueError, match="stateless"):
                step()
        else:
            step()
        assert everything(optimizer) == before


def test_a_scale_may_be_meant_never_to_grow() -> None:
    optimizer = trained(LossScaleOptimizer(Adam(0.25), 4.0, 10**10), 2)
    assert optimizer.metrics()["loss_scale"] == 4.0


@pytest.mark.parametrize(("here", "there"), [(0.25, SCHEDULE), (SCHEDULE, 0.25)])
def test_variables_keep_their_places_when_the_learning_rate_changes_its_kind(
    here: Any, there: Any
) -> None:
    optimizer = trained(Adam(here), 1)
    optimizer.learning_rate = there
    other = Adam.from_config(optimizer.get_config())
    other.build(variables())
    # Only JAX has its numbers in a vector that is longer then, which it does without.
    found = [
        [(v.path.rpartition("/")[2], tuple(v.shape)) for v in each.variables if v is not numbers]
        for each, numbers in ((optimizer, optimizer._own.numbers), (other, other._own.numbers))
    ]
    assert found[0] == found[1]
    other.set_weights(optimizer.variables)
    assert other.calls == 1
    assert take(other) == near(take(optimizer))


def test_values_are_at_hand_where_a_variable_or_its_scope_has_them() -> None:
    variable = keras.Variable(np.ones(2, np.float32))
    value, variable._value = variable._value, None  # as JAX's fit does
    assert not _rows.is_at_hand(variable)
    with keras.StatelessScope(initialize_variables=False):
        assert not _rows.is_at_hand(variable)
    with keras.StatelessScope([(variable, value)], initialize_variables=False):
        assert _rows.is_at_hand(variable)
    variable._value = value
    assert _rows.is_at_hand(variable)

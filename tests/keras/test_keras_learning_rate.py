"""A learning rate of another kind is taken up at the next call, also in steps compiled already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from oneadam.keras import Adam, LossScaleOptimizer
from oneadam.schedules import PolynomialDecay

BACKEND = keras.backend.backend()
TENSORFLOW = BACKEND == "tensorflow"
# JAX's own steps outside of `fit` are compiled as well; those inside of it are enough here.
WAYS = {"torch": [False], "jax": [True], "tensorflow": [False, True]}[BACKEND]
COMPILED = pytest.mark.parametrize("compiled", WAYS)


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """As Keras has them: 0.5, 0.25, ..."""

    def __call__(self, step: Any) -> Any:
        return ops.power(0.5, ops.cast(step, "float32") + 1)


def constant(rate: float) -> PolynomialDecay:
    return PolynomialDecay(rate, 100, rate)


def model(optimizer: Any, **options: Any) -> Any:
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    trained = keras.Sequential([keras.Input((1,)), layer])
    trained.compile(optimizer=optimizer, loss="mean_absolute_error", **options)
    return trained


def near(distance: float) -> Any:
    return pytest.approx(distance, rel=1e-4)


def stepped(trained: Any, count: int = 1, **options: Any) -> float:
    """How far each of some steps of `fit` has taken the weight, on which the gradient is 1."""
    before = ops.convert_to_numpy(trained.trainable_variables[0])
    ones, low = np.ones((count, 1), np.float32), np.full((count, 1), -100, np.float32)
    trained.fit(ones, low, batch_size=1, verbose=0, **options)
    after = ops.convert_to_numpy(trained.trainable_variables[0])
    return float((before - after)[0, 0])


def assigned(trained: Any, rate: Any) -> None:
    """Assign a schedule or function, where it must be after steps were dropped."""
    if TENSORFLOW:
        with pytest.raises(ValueError, match="learning_rate must not become another"):
            trained.optimizer.learning_rate = rate
        trained.compile(
            optimizer=trained.optimizer, loss=trained.loss, jit_compile=trained.jit_compile
        )
    trained.optimizer.learning_rate = rate


@COMPILED
def test_numbers_and_schedules_take_turns(compiled: bool) -> None:
    trained = model(Adam(constant(0.5)), jit_compile=compiled)
    optimizer = trained.optimizer
    assert stepped(trained) == near(0.5)
    names = [variable.path for variable in optimizer.variables]
    optimizer.learning_rate = 0.25
    assert stepped(trained) == near(0.25)
    optimizer.learning_rate = 0.125
    assert stepped(trained) == near(0.125)
    optimizer.learning_rate.assign(0.0625)
    assert stepped(trained) == near(0.0625)
    assigned(trained, constant(1.0))
    assert stepped(trained) == near(1.0)
    optimizer.learning_rate = 0.25
    assert stepped(trained) == near(0.25)
    assert float(ops.convert_to_numpy(optimizer.learning_rate)) == 0.25
    assert [variable.path for variable in optimizer.variables] == names
    assert optimizer.calls == 6


def test_a_schedule_that_steps_were_compiled_with_may_come_back() -> None:
    schedule = constant(0.5)
    trained = model(Adam(schedule))
    stepped(trained)
    trained.optimizer.learning_rate = 0.25
    assert stepped(trained) == near(0.25)
    trained.optimizer.learning_rate = schedule
    assert stepped(trained) == near(0.5)


@pytest.mark.parametrize("compiled", WAYS[:1])
def test_functions_and_numbers_take_turns(compiled: bool) -> None:
    asked: list[float] = []

    def ask() -> float:
        asked.append(0.5)
        return 0.5

    trained = model(Adam(ask, beta_1=lambda: 0.9), jit_compile=compiled)
    assert stepped(trained, 2) == near(1.0)
    assert len(asked) == 2
    trained.optimizer.learning_rate = 0.25
    count = len(asked)
    assert stepped(trained) == near(0.25)
    assert len(asked) == count
    assigned(trained, lambda: 0.125)
    assert stepped(trained) == near(0.125)


@pytest.mark.parametrize("window", [None, 2])
def test_functions_are_asked_once_in_each_call(window: int | None) -> None:
    asked: list[str] = []

    def answering(name: str, answer: float) -> Any:
        def ask() -> float:
            asked.append(name)
            return answer

        return ask

    own = Adam(
        answering("learning_rate", 0.5),
        beta_2=answering("beta_2", 0.99),
        gradient_accumulation_steps=window,
    )
    trained = model(own, jit_compile=WAYS[0])
    stepped(trained)
    for count in (1, 2, 3):
        asked.clear()
        stepped(trained, count)
        assert sorted(asked) == ["beta_2"] * count + ["learning_rate"] * count
    asked.clear()
    own.flush()
    assert len(asked) == (0 if window is None else 2)


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("takes_calls", [False, True])
def test_where_a_function_raises_nothing_is_accumulated(takes_calls: bool, eagerly: bool) -> None:
    if takes_calls and not (eagerly and TENSORFLOW) and BACKEND != "torch":
        pytest.skip("a function of calls is traced, and not asked again")
    fails = True

    def rate() -> float:
        if fails:
            raise LookupError("there is none")
        return 0.5

    asked = (lambda calls: rate()) if takes_calls else (lambda: rate())
    own = Adam(asked, gradient_accumulation_steps=3)
    weights = [keras.Variable(np.ones((100, 100), np.float32))]
    own.build(weights)

    def step() -> None:
        own.apply([ops.ones((100, 100))], weights)

    if TENSORFLOW and not eagerly:
        import tensorflow as tf

        step = tf.function(step)
    before = [np.array(ops.convert_to_numpy(variable.value)) for variable in own.variables]
    for _ in range(2):
        with pytest.raises(Exception, match="there is none"):
            step()
        for variable, value in zip(own.variables, before, strict=True):
            assert np.array_equal(ops.convert_to_numpy(variable.value), value)
    fails = False
    step()
    assert own.calls == 1
    assert np.all(ops.convert_to_numpy(own._accumulated_gradients[0].value) == 1)


@pytest.mark.parametrize("compiled", WAYS[-1:])
def test_the_scheduler_of_keras_overrules_a_schedule(compiled: bool) -> None:
    trained = model(Adam(Halving()), jit_compile=compiled)
    assert stepped(trained, 2) == near(0.75)
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.25 / (epoch + 1))
    assert stepped(trained, 2, epochs=2, callbacks=[scheduler]) == near(0.75)


@pytest.mark.parametrize("compiled", WAYS[-1:])
def test_in_the_middle_of_an_epoch(compiled: bool) -> None:
    class Change(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = [0.25, 0.125, 0.5][batch]

    trained = model(Adam(constant(1.0)), jit_compile=compiled)
    assert stepped(trained, 3, callbacks=[Change()]) == near(1.375)


@pytest.mark.skipif(BACKEND != "jax", reason="others leave the state with the optimizer")
@pytest.mark.parametrize(
    "change", [("learning_rate", 0.5), ("learning_rate", constant(0.5)), ("weight_decay", 0.2)]
)
def test_what_fit_would_lose_is_refused(change: tuple[str, Any]) -> None:
    optimizer = Adam(weight_decay=0.1)

    class Change(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            setattr(optimizer, *change)

    with pytest.raises(RuntimeError, match=r"take self\.model\.optimizer"):
        stepped(model(optimizer), callbacks=[Change()])


@pytest.mark.parametrize("is_number", [True, False])
def test_a_file_fits_whatever_the_learning_rate_is_there(is_number: bool) -> None:
    one, other = (model(Adam(constant(0.5))) for _ in range(2))
    for trained in (one, other):
        trained.optimizer.build(trained.trainable_variables)
    stepped(one)
    (one if is_number else other).optimizer.learning_rate = 0.25
    kept: dict[str, Any] = {}
    one.optimizer.save_own_variables(kept)
    with pytest.warns(UserWarning, match="learning rate, and the optimizer goes on with its"):
        other.optimizer.load_own_variables(kept)
    assert other.optimizer.calls == 1
    assert float(other.optimizer.learning_rate) == (0.5 if is_number else 0.25)


@pytest.mark.skipif(BACKEND != "jax", reason="fit holds the state on JAX only")
@pytest.mark.parametrize("action", ["apply", "load", "set_weights"])
def test_what_fit_would_overwrite_is_refused(action: str) -> None:
    optimizer = Adam(0.5)
    trained = model(optimizer)
    stepped(trained)
    weights = [np.asarray(variable) for variable in optimizer.variables]
    state = optimizer.state_dict()

    class Act(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if action == "apply":
                optimizer.apply([np.ones((1, 1), np.float32)])
            elif action == "load":
                optimizer.load_state_dict(state)
            else:
                optimizer.set_weights(weights)

    with pytest.raises(RuntimeError, match=r"take self\.model\.optimizer"):
        stepped(trained, callbacks=[Act()])


def test_through_a_loss_scale() -> None:
    trained = model(LossScaleOptimizer(Adam(constant(0.5))))
    assert stepped(trained) == near(0.5)
    trained.optimizer.learning_rate = 0.25
    assert stepped(trained) == near(0.25)


def test_calls_outside_of_fit() -> None:
    variable = keras.Variable(np.ones(1, np.float32))
    optimizer = Adam(0.5)
    found = []
    for rate in (0.5, constant(0.25), 0.125, lambda: 0.0625, Halving(), 0.5):
        optimizer.learning_rate = rate
        before = ops.convert_to_numpy(variable.value)[0]
        optimizer.apply([ops.ones((1,))], [variable])
        found.append(before - ops.convert_to_numpy(variable.value)[0])
    assert found == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.5**5, 0.5], rel=1e-5)


@pytest.mark.parametrize(
    ("first", "last"), [(0.5, constant(0.25)), (constant(0.5), 0.25)], ids=["schedule", "number"]
)
def test_what_is_saved_has_the_last_kind(first: Any, last: Any, tmp_path: Path) -> None:
    trained = model(Adam(first))
    if callable(last) and TENSORFLOW:
        trained.optimizer.build(trained.trainable_variables)
    else:
        stepped(trained)
    trained.optimizer.learning_rate = last
    trained.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one in (trained, again):
        assert stepped(one) == near(0.25)
    assert (
        again.optimizer.get_config()["learning_rate"]
        == trained.optimizer.get_config()["learning_rate"]
    )


def test_weights_go_to_an_optimizer_whose_steps_were_compiled_anew() -> None:
    one, other = Adam(constant(0.5)), Adam(constant(0.5))
    variables = [keras.Variable(np.ones(1, np.float32)) for _ in range(2)]
    for optimizer, variable in zip((one, other), variables, strict=True):
        optimizer.apply([ops.ones((1,))], [variable])
    one.learning_rate = constant(0.25)
    one.set_weights(other.variables)
    other.set_weights(one.variables)
    for optimizer, rate in ((one, 0.25), (other, 0.5)):
        assert float(ops.convert_to_numpy(optimizer.learning_rate)) == rate
        optimizer.apply([ops.ones((1,))])
    values = [ops.convert_to_numpy(variable.value)[0] for variable in variables]
    assert values == pytest.approx([0.25, 0.0], abs=1e-4)

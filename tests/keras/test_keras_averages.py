"""Variables of Keras hold their moving averages for a block, on the backend of KERAS_BACKEND."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from oneadam.keras import Adam, LossScaleOptimizer, _averages

BACKEND = keras.backend.backend()


def fetched(value: Any) -> np.ndarray:
    return np.array(ops.convert_to_numpy(value.value))


def held(trained: Any) -> list[np.ndarray]:
    """What the variables of a model hold."""
    return [fetched(variable) for variable in trained.trainable_variables]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(16, 4)).astype(np.float32)
    return x, x.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def model() -> Any:
    """A model whose steps are compiled, and which has taken some."""
    keras.utils.set_random_seed(4)
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    made.compile(optimizer=Adam(0.1, use_ema=True, ema_momentum=0.5), loss="mse")
    for _ in range(3):
        made.train_on_batch(*data())
    return made


def averages(model: Any) -> list[np.ndarray]:
    return [fetched(average) for average in model.optimizer._model_variables_moving_average]


def variables(model: Any) -> list[Any]:
    """What a call could change."""
    return [*model.trainable_variables, *model.optimizer.variables]


def everything(model: Any) -> list[np.ndarray]:
    return list(map(fetched, variables(model)))


def go_back(model: Any, values: list[np.ndarray]) -> None:
    for variable, value in zip(variables(model), values, strict=True):
        variable.assign(value)


def test_a_model_is_evaluated_with_averages_and_goes_on_as_it_was(model: Any) -> None:
    before, wanted = everything(model), averages(model)
    loss = model.evaluate(*data(), verbose=0)
    with model.optimizer.averaged():
        assert same(held(model), wanted)
        assert model.evaluate(*data(), verbose=0) != loss
    assert same(everything(model), before)
    model.train_on_batch(*data())
    after = everything(model)
    go_back(model, before)
    model.train_on_batch(*data())
    assert same(after, everything(model))


def test_no_more_is_kept_than_what_the_variables_held(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = _averages._averages, []

    def noted(*given: Any) -> Any:
        values = real(*given)
        found.extend(weakref.ref(value) for _, value in values)
        return values

    monkeypatch.setattr(_averages, "_averages", noted)
    with model.optimizer.averaged():
        gc.collect()
        kept = [value() for value in found if value() is not None]
        own = [variable._value for variable in model.trainable_variables]
        assert len(found) == 2
        assert all(any(value is one for one in own) for value in kept)


def test_under_a_loss_scale_too(model: Any) -> None:
    before = held(model)
    with LossScaleOptimizer(model.optimizer).averaged():
        assert same(held(model), averages(model))
    assert same(held(model), before)


class Stop(keras.callbacks.Callback):
    """Fails while a model is evaluated."""

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        raise KeyError


def test_an_error_in_the_block_leaves_nothing_behind(model: Any) -> None:
    before = everything(model)
    for action in (lambda: 1 // 0, lambda: model.evaluate(*data(), verbose=0, callbacks=[Stop()])):
        with pytest.raises((ZeroDivisionError, KeyError)), model.optimizer.averaged():
            action()
        assert same(everything(model), before)


def parameter(value: float, **options: Any) -> Any:
    return keras.Variable(np.full(3, value), name="w", **options)


def test_without_averages_nothing_changes() -> None:
    with Adam(use_ema=True).averaged():  # not built yet
        pass
    for optimizer in (Adam(), Adam(use_ema=True)):
        weights = parameter(1.5)
        optimizer.build([weights])
        with optimizer.averaged():
            assert fetched(weights).tolist() == [1.5] * 3
        assert fetched(weights).tolist() == [1.5] * 3


def test_averages_of_narrow_variables_are_rounded_and_put_through_constraints() -> None:
    weights, optimizer = parameter(1.5, dtype="bfloat16"), Adam(use_ema=True)
    weights.constraint = keras.constraints.NonNeg()
    optimizer.build([weights])
    state = optimizer.state_dict()
    state["w/average"][:] = [1 + 2**-9, -1, 2]
    state["w/averaged"] = np.array(True)
    optimizer.load_state_dict(state)
    with optimizer.averaged():
        assert fetched(weights).astype(float).tolist() == [1, 0, 2]
    assert fetched(weights).astype(float).tolist() == [1.5] * 3


CALLS: dict[str, Callable[[Any], Any]] = {
    "apply": lambda model: model.optimizer.apply([ops.ones((4, 1)), ops.ones((1,))]),
    "flush": lambda model: model.optimizer.flush(),
    "finalize": lambda model: model.optimizer.finalize_variable_values(model.trainable_variables),
    "load": lambda model: model.optimizer.load_state_dict(model.optimizer.state_dict()),
    "set weights": lambda model: model.optimizer.set_weights(
        [fetched(variable) for variable in model.optimizer.variables]
    ),
    "load of Keras": lambda model: model.optimizer.load_own_variables({}),
    "averaged": lambda model: model.optimizer.averaged().__enter__(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_optimizer_is_left_alone_inside(model: Any, call: Callable[[Any], Any]) -> None:
    before = everything(model)
    with model.optimizer.averaged():
        inside = everything(model)
        with pytest.raises(RuntimeError, match=r"inside averaged\(\).*call it after the block"):
            call(model)
        assert same(everything(model), inside)
    assert same(everything(model), before)


def test_a_compiled_step_inside_is_noticed_at_the_end(model: Any) -> None:
    before = held(model)

    def train_inside() -> None:
        with model.optimizer.averaged():
            model.train_on_batch(*data())

    with pytest.raises(RuntimeError, match=r"inside averaged\(\)"):
        train_inside()
    assert same(held(model), before)


class Evaluate(keras.callbacks.Callback):
    """Looks at the averages after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        wanted = averages(self.model)
        with self.model.optimizer.averaged():
            self.found.append(same(held(self.model), wanted))


def test_a_callback_may_evaluate_with_averages_while_fit_runs(model: Any) -> None:
    before, callback = everything(model), Evaluate()
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    model.fit(*data(), callbacks=[callback], **options)
    assert callback.found == [True, True]
    after = everything(model)
    go_back(model, before)
    model.fit(*data(), **options)
    assert same(after, everything(model))


@pytest.mark.skipif(BACKEND != "jax", reason="elsewhere variables hold their values in fit, too")
def test_where_fit_holds_the_values_it_says_so(model: Any) -> None:
    class Blind(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            with optimizer.averaged():
                raise AssertionError

    optimizer, before = model.optimizer, everything(model)
    with pytest.raises(RuntimeError, match=r"take self\.model\.optimizer"):
        model.fit(*data(), batch_size=16, verbose=0, callbacks=[Blind()])
    go_back(model, before)

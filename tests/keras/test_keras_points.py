"""Where Keras contradicts its own documentation: each point in `apply`, in `fit` and compiled.

The points are those that docs/definition.md marks "Keras differs". What is wanted comes from the
NumPy door, in which tests/test_keras_points.py holds them; and the same with Keras's own Adam must
come out otherwise. State, files and the wrapper of loss scales, which no step is compiled for, are
in test_keras_door.py and test_keras_copies.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

import oneadam.numpy
from oneadam import schedules
from oneadam.keras import Adam, LossScaleOptimizer

BACKEND = keras.backend.backend()
# On JAX `apply` compiles what `fit` does; graphs that XLA does not compile are in other tests.
MODES = {"torch": ["apply", "fit"], "jax": ["compiled"], "tensorflow": ["apply", "compiled"]}[
    BACKEND
]
IN_FIT = MODES[-1]
in_each_mode = pytest.mark.parametrize("mode", MODES)

Gradients = Sequence[tuple[Any, Any]]


def fetched(value: Any) -> np.ndarray:
    found = ops.convert_to_numpy(value.value if isinstance(value, keras.Variable) else value)
    return found.astype(np.float32)


class Linear(keras.layers.Layer):
    """Two variables, of which the gradients are what the layer is given."""

    def __init__(self, first: Any = 1.0, constraint: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.constraint = first, constraint

    def build(self, shape: Any) -> None:
        start = keras.initializers.Constant(self.first)
        self.a = self.add_weight(shape=(2,), initializer=start, constraint=self.constraint)
        self.b = self.add_weight(shape=(2,), initializer=start)

    def call(self, given: Any) -> Any:
        return ops.sum(given[:, :2] * self.a + given[:, 2:] * self.b, axis=-1, keepdims=True)


def made(**options: Any) -> Any:
    """A model of that one layer."""
    return keras.Sequential([keras.Input((4,)), Linear(**options)])


def train(model: Any, optimizer: Any, gradients: Gradients, mode: str) -> list[np.ndarray]:
    """Take a call for each pair of gradients, and what `fit` does at its end."""
    variables = model.trainable_variables
    if mode == "apply":
        for pair in gradients:
            given = [ops.convert_to_tensor(np.asarray(g), variables[0].dtype) for g in pair]
            optimizer.apply(given, variables)
        optimizer.finalize_variable_values(variables)
    else:
        model.compile(
            optimizer=optimizer,
            loss=lambda _, predicted: ops.mean(predicted),
            jit_compile=mode == "compiled",
        )
        rows = np.array([np.concatenate(pair) for pair in gradients], np.float32)
        model.fit(rows, rows[:, :1], batch_size=1, shuffle=False, verbose=0)
    return [fetched(variable) for variable in variables]


def through_numpy(config: Any, gradients: Gradients, first: float = 1.0) -> list[np.ndarray]:
    arrays = [np.full(2, first, np.float32) for _ in range(2)]
    optimizer = oneadam.numpy.Adam(**config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for pair in gradients:
            optimizer.apply([g if g is None else np.asarray(g) for g in pair], arrays)
    optimizer.finalize_variable_values(arrays)
    return arrays


def pairs(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [tuple(rng.normal(size=(2, 2)).astype(np.float32)) for _ in range(count)]


class Harmonic(schedules.LearningRateSchedule):
    """As a user would write it."""

    def __call__(self, step: Any) -> Any:
        return 0.1 / (step + 1)

    def get_config(self) -> dict[str, Any]:
        return {}


class TheirHarmonic(keras.optimizers.schedules.LearningRateSchedule):
    """The same on Keras's base."""

    def __call__(self, step: Any) -> Any:
        return 0.1 / (step + 1)


class Point(NamedTuple):
    """What Keras does otherwise; a function makes arguments for one optimizer."""

    config: Callable[[], dict[str, Any]]
    calls: int
    theirs: Callable[[], dict[str, Any]] | None = None
    """What Keras's documentation says the same with, where that is something else."""
    differs: bool = True
    """Whether Keras does otherwise on this backend too."""


_EMA = {"learning_rate": 0.1, "use_ema": True, "ema_momentum": 0.5}
POINTS = {
    "the_average_stands_still_on_a_micro_step": Point(
        lambda: {**_EMA, "gradient_accumulation_steps": 2}, 5
    ),
    "overwriting_counts_updates": Point(
        lambda: {**_EMA, "gradient_accumulation_steps": 2, "ema_overwrite_frequency": 2}, 7
    ),
    "betas_may_be_functions": Point(
        lambda: {"learning_rate": 0.1, "beta_1": lambda: 0.8, "beta_2": lambda: 0.9}, 3
    ),
    "a_schedule_may_divide_by_the_step": Point(
        lambda: {"learning_rate": Harmonic()}, 3,
        theirs=lambda: {"learning_rate": TheirHarmonic()}, differs=BACKEND == "tensorflow",
    ),
    "the_documented_warm_up_warms_up": Point(
        lambda: {
            "learning_rate": schedules.CosineDecay(0, 1000, warmup_target=0.1, warmup_steps=10)
        }, 3,
        theirs=lambda: {
            "learning_rate": keras.optimizers.schedules.CosineDecay(
                0, 1000, warmup_target=0.1, warmup_steps=10
            )
        },
    ),
}  # fmt: skip


@in_each_mode
@pytest.mark.parametrize("name", POINTS)
def test_point(name: str, mode: str) -> None:
    point, gradients = POINTS[name], pairs(POINTS[name].calls)
    config = point.config()
    asks = any(callable(value) and "beta" in key for key, value in config.items())
    if asks and mode == "compiled" and BACKEND == "tensorflow":
        with pytest.raises(Exception, match="needs_jit_compile_False"):
            train(made(), Adam(**config), gradients, mode)
        return
    wanted = through_numpy(config, gradients)
    found = train(made(), Adam(**config), gradients, mode)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    if point.differs and mode == IN_FIT:
        assert not theirs_agrees((point.theirs or point.config)(), gradients, wanted)


def theirs_agrees(
    config: dict[str, Any], gradients: Gradients, wanted: Any, mode: str = "apply", **options: Any
) -> bool:
    """Whether Keras's own Adam comes to the same, or to anything."""
    try:
        found = train(made(**options), keras.optimizers.Adam(**config), gradients, mode)
    except Exception:
        return False
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(found, wanted, strict=True))


@in_each_mode
def test_a_function_is_asked_anew_on_every_step(mode: str) -> None:
    if mode == "compiled" and BACKEND == "tensorflow":
        pytest.skip("refused: test_keras_door.py")

    def falling() -> Any:
        rates = iter([0.5, 0.25, 0.125, 0.0625, 0.0, 0.0])
        return lambda: next(rates)

    ones = [(np.ones(2), np.ones(2))] * 3
    found = train(made(), Adam(falling()), ones, mode)
    np.testing.assert_allclose(found[0], 0.125, rtol=1e-4)
    if mode == "compiled":
        assert not theirs_agrees({"learning_rate": falling()}, ones, found, mode)


@in_each_mode
@pytest.mark.parametrize(
    ("dtype", "gradient", "wanted"), [("bfloat16", 1.0, 253 / 256), ("float16", 1e-4, 0.99)]
)
def test_narrow_variables_take_steps_of_the_learning_rate(
    dtype: str, gradient: float, wanted: float, mode: str
) -> None:
    gradients = [(np.full(2, gradient, np.float32),) * 2]
    found = train(made(dtype=dtype), Adam(0.01), gradients, mode)
    np.testing.assert_allclose(found[0], wanted, atol=2.0**-11)
    config = {"learning_rate": 0.01}
    if mode == IN_FIT:
        assert not theirs_agrees(config, gradients, [found[0]] * 2, dtype=dtype)


@in_each_mode
def test_a_constraint_comes_before_the_average_and_after_it(mode: str) -> None:
    options = {"first": 0.05, "constraint": keras.constraints.NonNeg()}
    ones = [(np.ones(2), np.ones(2))] * 2
    config = {**_EMA}
    a, b = train(made(**options), Adam(**config), ones, mode)
    np.testing.assert_allclose(a, 0.0, atol=1e-6)
    np.testing.assert_allclose(b, -0.1, rtol=1e-4)
    assert not theirs_agrees(config, ones, [a, b], **options)


@in_each_mode
def test_a_nan_leaves_with_its_window(mode: str) -> None:
    gradients = [(np.full(2, np.nan), np.ones(2)), (np.ones(2), np.ones(2))]

    def accumulated(optimizer: Any) -> np.ndarray:
        train(made(), optimizer, gradients, mode)
        return fetched(optimizer._accumulated_gradients[0])

    config = {"gradient_accumulation_steps": 2}
    np.testing.assert_array_equal(accumulated(Adam(**config)), np.zeros(2))
    if BACKEND == "torch":
        assert np.isnan(accumulated(keras.optimizers.Adam(**config))).all()


@in_each_mode
def test_a_call_with_an_inf_is_skipped(mode: str) -> None:
    good = pairs(4)
    broken = (np.array([np.inf, 1.0], np.float32), good[0][1])
    config = {"learning_rate": 0.1, "gradient_accumulation_steps": 2, "on_nonfinite": "skip"}
    optimizer = Adam(**config)
    found = train(made(), optimizer, [good[0], broken, *good[1:]], mode)
    wanted = through_numpy(config, good)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert optimizer.metrics()["skipped_calls"] == 1


@pytest.mark.parametrize("mode", [IN_FIT])
def test_what_is_unfrozen_between_fits_starts_with_first_steps(mode: str) -> None:
    late, early = keras.layers.Dense(2, use_bias=False), keras.layers.Dense(1, use_bias=False)

    def fits(optimizer: Any) -> np.ndarray:
        for layer in (late, early):
            layer.kernel.assign(np.ones(layer.kernel.shape))
        optimizer.build(model.trainable_variables)
        for trainable, epochs in ((False, 20), (True, 1)):
            late.trainable = trainable
            model.compile(optimizer=optimizer, loss="mean_absolute_error",
                          jit_compile=mode == "compiled")  # fmt: skip
            low = np.full((1, 1), -100.0)
            model.fit(np.ones((1, 2)), low, epochs=epochs, verbose=0)
        return fetched(late.kernel)

    model = keras.Sequential([keras.Input((2,)), late, early])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(fits(Adam(0.01)), 0.99, rtol=1e-5)
        if BACKEND == "jax":  # which hands values of only some variables to the wrapper
            scaled = LossScaleOptimizer(Adam(0.01))
            np.testing.assert_allclose(fits(scaled), 0.99, rtol=1e-5)
        if BACKEND == "torch":
            assert np.abs(fits(keras.optimizers.Adam(0.01)) - 0.99).min() > 0.004


@pytest.mark.skipif(BACKEND != "jax", reason="others have the values of frozen variables at hand")
def test_averages_of_what_is_out_of_reach_are_refused() -> None:
    model = keras.Sequential([keras.Input((4,)), Linear()])
    optimizer = Adam(0.1, use_ema=True)
    optimizer.build(model.trainable_variables)
    model.layers[0].b.trainable = False
    with pytest.raises(ValueError, match="use_ema must be False where fit freezes variables"):
        train(model, optimizer, pairs(1), IN_FIT)


@in_each_mode
def test_fitting_goes_on_after_averages_were_put_in(mode: str) -> None:
    gradients, model, optimizer = pairs(4), made(), Adam(**_EMA)
    train(model, optimizer, gradients[:2], mode)
    found = train(model, optimizer, gradients[2:], mode)
    arrays = [np.ones(2, np.float32) for _ in range(2)]
    other = oneadam.numpy.Adam(**_EMA)
    for begin in (0, 2):
        for pair in gradients[begin : begin + 2]:
            other.apply(pair, arrays)
        other.finalize_variable_values(arrays)
    for a, b in zip(found, arrays, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [IN_FIT])
def test_words_that_come_twice_count_twice(mode: str) -> None:
    words = np.array([[0, 2, 2, 2]])
    embedding = keras.layers.Embedding(3, 2, embeddings_initializer="ones")
    model = keras.Sequential([keras.Input((4,), dtype="int32"), embedding])
    optimizer = Adam(0.1, epsilon=1.0, global_clipnorm=0.1)
    model.compile(optimizer=optimizer, loss=lambda _, p: ops.sum(p), jit_compile=mode == "compiled")
    model.fit(words, words[:, :1], batch_size=1, epochs=2, verbose=0)
    table, dense = np.ones((3, 2), np.float32), np.array([[1, 1], [0, 0], [3, 3]], np.float32)
    other = oneadam.numpy.Adam(0.1, epsilon=1.0, global_clipnorm=0.1)
    for _ in range(2):
        other.apply([dense], [table])
    np.testing.assert_allclose(fetched(embedding.embeddings), table, rtol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only there gradients are slices")
def test_keras_counts_slices_wrongly() -> None:
    import tensorflow as tf

    slices = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([0, 0]), tf.constant((1, 2)))
    values = []
    for kind in (Adam, keras.optimizers.Adam):
        variable = keras.Variable(np.ones((1, 2), np.float32))
        kind(0.1, epsilon=1.0).apply([slices], [variable])
        values.append(fetched(variable))
    step = 0.1 * np.sqrt(0.001) / 0.1 * 0.2 / (np.sqrt(0.004) + 1.0)
    np.testing.assert_allclose(values[0], 1 - step, rtol=1e-5)
    assert not np.allclose(values[1], 1 - step, rtol=1e-5)


@pytest.mark.parametrize("mode", [IN_FIT])
def test_float8_layers_train(mode: str) -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16)])
    model.layers[0].quantize("float8")
    optimizer = Adam(0.05)
    model.compile(optimizer=optimizer, loss="mse", jit_compile=mode == "compiled")
    x = np.random.default_rng(8).normal(size=(32, 8)).astype(np.float32)
    losses = model.fit(x, x @ np.ones((8, 16)), batch_size=8, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    layer = model.layers[0]
    assert float(fetched(layer.inputs_scale)) not in (0.0, 1.0)
    assert optimizer.calls == 24


@pytest.mark.parametrize("kind", ["tensor", "variable", "array"])
def test_betas_that_are_tensors_are_written_down_as_numbers(kind: str) -> None:
    number = {
        "tensor": lambda n: ops.convert_to_tensor(n, "float32"),
        "variable": lambda n: keras.Variable(n, dtype="float32"),
        "array": np.float32,
    }[kind]
    optimizer = Adam(0.1, number(0.75), number(0.5))
    assert (optimizer.beta_1, optimizer.beta_2) == (0.75, 0.5)
    assert Adam.from_config(optimizer.get_config()).get_config() == optimizer.get_config()
    assert (optimizer.get_config()["beta_1"], type(optimizer.beta_1)) == (0.75, float)


def test_exempting_after_the_build_is_an_error() -> None:
    optimizer = Adam(weight_decay=0.1)
    optimizer.build(made().trainable_variables)
    with pytest.raises(ValueError, match="before the optimizer is built"):
        optimizer.exclude_from_weight_decay(var_names=["a"])

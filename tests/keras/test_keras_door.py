"""The Keras door on the backend that KERAS_BACKEND names: what Keras and its users do with it."""

from __future__ import annotations

import copy
import doctest
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import surface
from keras import ops

import oneadam.keras
import oneadam.numpy
from oneadam import schedules
from oneadam.keras import Adam, LossScaleOptimizer, _adam, _loss_scale

BACKEND = keras.backend.backend()
FULL: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.1,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 2,
    "gradient_accumulation_steps": 3,
}


def fetched(value: Any) -> np.ndarray:
    return ops.convert_to_numpy(value.value if isinstance(value, keras.Variable) else value)


def variables() -> list[Any]:
    rng = np.random.default_rng(1)
    shapes = {"kernel": (3, 4), "bias": (4,)}
    return [
        keras.Variable(rng.normal(size=shape).astype(np.float32), name=name)
        for name, shape in shapes.items()
    ]


def gradients(count: int, seed: int = 2) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        [rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4,))]
        for _ in range(count)
    ]


def take(optimizer: Any, trained: list[Any], calls: list[list[Any]]) -> None:
    for grads in calls:
        given = [None if g is None else ops.convert_to_tensor(g) for g in grads]
        optimizer.apply(given, trained)


def through_numpy(config: dict[str, Any], calls: list[list[Any]]) -> list[np.ndarray]:
    arrays = [fetched(variable).copy() for variable in variables()]
    optimizer = oneadam.numpy.Adam(**config)
    for grads in calls:
        optimizer.apply(grads, arrays)
    return arrays


def near(trained: list[Any], wanted: list[np.ndarray]) -> None:
    for variable, array in zip(trained, wanted, strict=True):
        np.testing.assert_allclose(fetched(variable), array, rtol=2e-6, atol=1e-7)


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    return x, (x @ rng.normal(size=(8, 1))).astype(np.float32)


def model(**options: Any) -> Any:
    keras.utils.set_random_seed(4)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu", name="hidden", **options),
            keras.layers.Dense(1, name="last"),
        ]
    )


def fitted(optimizer: Any, epochs: int = 2, **options: Any) -> Any:
    trained = model()
    trained.compile(optimizer=optimizer, loss="mse", **options)
    trained.fit(*data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return trained


def weights(trained: Any) -> list[np.ndarray]:
    return [fetched(variable) for variable in trained.trainable_variables]


@pytest.mark.parametrize("module", [_adam, _loss_scale])
def test_examples_in_docstrings_hold(module: Any) -> None:
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried > 0


def test_the_code_in_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = Path(__file__).parents[2] / "docs" / "keras.md"
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, str(guide), "exec"), {})
    assert "'updates': 20.0" in capsys.readouterr().out
    assert (tmp_path / "adam.safetensors").exists()


class TestFit:
    """`fit` trains as the NumPy door does on the same gradients."""

    def test_as_plain_keras_does(self) -> None:
        ours, theirs = fitted(Adam(0.01)), fitted(keras.optimizers.Adam(0.01))
        for a, b in zip(weights(ours), weights(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("eagerly", [False, True])
    def test_everything_at_once(self, eagerly: bool) -> None:
        optimizer = Adam(schedules.CosineDecay(0.01, 100), **FULL)
        trained = fitted(optimizer, run_eagerly=eagerly)
        assert (optimizer.calls, optimizer.updates) == (16, 5)
        x, y = data()
        assert trained.evaluate(x, y, verbose=0) < 1.2 * model_loss()
        for variable, average in zip(
            trained.trainable_variables, optimizer._model_variables_moving_average, strict=True
        ):
            np.testing.assert_array_equal(fetched(variable), fetched(average))

    def test_twice_in_a_row_with_averages(self) -> None:
        trained = fitted(Adam(0.01, use_ema=True, ema_momentum=0.5))
        trained.fit(*data(), batch_size=8, verbose=0)
        assert trained.optimizer.calls == 24

    def test_a_function_is_asked_at_every_call(self) -> None:
        asked: list[float] = []

        def rate() -> float:
            asked.append(0.01 / (1 + len(asked)))
            return asked[-1]

        optimizer = Adam(rate, beta_1=lambda: 0.8)
        fitted(optimizer, epochs=1, jit_compile=BACKEND == "jax")
        assert len(asked) == 8
        assert optimizer.metrics()["learning_rate"] == pytest.approx(asked[-1])

    @pytest.mark.skipif(BACKEND != "tensorflow", reason="others call back, or do not compile")
    def test_a_function_that_compiled_code_cannot_ask_is_refused(self) -> None:
        with pytest.raises(Exception, match="needs_jit_compile_False"):
            fitted(Adam(lambda: 0.01), jit_compile=True)

    @pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16", "mixed_float16"])
    def test_narrow_policies_train(self, policy: str) -> None:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            trained = fitted(Adam(0.02), epochs=4)
            x, y = data()
            assert trained.evaluate(x, y, verbose=0) < 0.7 * model_loss()
        finally:
            keras.config.set_dtype_policy(before)

    def test_hyperparameters_change_from_a_callback(self) -> None:
        class Change(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                if epoch == 1:
                    self.model.optimizer.learning_rate = 0.0
                    self.model.optimizer.weight_decay = 0.0
                    self.model.optimizer.beta_1 = 0.5

        trained = model()
        trained.compile(optimizer=Adam(0.01, weight_decay=0.1), loss="mse")
        trained.fit(*data(), batch_size=8, verbose=0)
        before = weights(trained)
        trained.fit(
            *data(), batch_size=8, verbose=0, callbacks=[Change()], initial_epoch=1, epochs=2
        )
        for a, b in zip(weights(trained), before, strict=True):
            np.testing.assert_array_equal(a, b)
        assert trained.optimizer.get_config()["beta_1"] == 0.5

    def test_layers_are_frozen_and_unfrozen(self) -> None:
        optimizer = Adam(0.01)
        trained = model()
        optimizer.build(trained.trainable_variables)
        frozen = weights(trained.layers[0])
        trained.layers[0].trainable = False
        grads = [ops.ones(variable.shape) for variable in trained.trainable_variables]
        optimizer.apply(grads, trained.trainable_variables)
        trained.layers[0].trainable = True
        grads = [ops.ones(variable.shape) for variable in trained.trainable_variables]
        optimizer.apply(grads, trained.trainable_variables)
        for variable, before in zip(trained.layers[0].trainable_variables, frozen, strict=True):
            # Its first update is a first one, whatever the others have had.
            np.testing.assert_allclose(fetched(variable), before - 0.01, rtol=1e-4, atol=1e-6)


def model_loss() -> float:
    untrained = model()
    untrained.compile(loss="mse")
    return float(untrained.evaluate(*data(), verbose=0))


class TestCalls:
    @pytest.mark.parametrize("config", [{}, FULL, {"clipvalue": 0.5, "loss_scale_factor": 4.0}])
    def test_agree_with_numpy(self, config: dict[str, Any]) -> None:
        trained, calls = variables(), gradients(7)
        take(Adam(**config), trained, calls)
        near(trained, through_numpy(config, calls))

    def test_a_gradient_may_be_missing_on_any_call(self) -> None:
        config = {"gradient_accumulation_steps": 2, "use_ema": True}
        calls: list[list[Any]] = gradients(6)
        calls[0][0] = calls[3][1] = calls[4][0] = calls[5][0] = None
        trained = variables()
        with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
            take(Adam(**config), trained, calls)
        with pytest.warns(UserWarning, match="no gradient in this call"):
            wanted = through_numpy(config, calls)
        near(trained, wanted)

    def test_a_flush_closes_the_window(self) -> None:
        optimizer, trained, calls = Adam(gradient_accumulation_steps=3), variables(), gradients(2)
        take(optimizer, trained, calls)
        optimizer.learning_rate = 0.002
        optimizer.flush()
        optimizer.flush()
        assert (optimizer.calls, optimizer.updates) == (2, 1)
        assert optimizer.metrics()["learning_rate"] == pytest.approx(0.002)
        means = [(a + b) / 2 for a, b in zip(*calls, strict=True)]
        near(trained, through_numpy({"learning_rate": 0.002}, [means]))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda g: g[:1], "one entry for each"),
            (lambda g: [g[0][:1], g[1]], "grads must have the shapes"),
            (lambda g: [g[0].astype(np.int32), g[1]], "real floating dtype"),
            (lambda g: [None, None], "No gradients provided for any variable"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_nothing_changes(self, change: Any, said: str) -> None:
        optimizer, trained = Adam(), variables()
        take(optimizer, trained, gradients(1))
        before = [fetched(variable) for variable in (*trained, *optimizer.variables)]
        given = [
            None if grad is None else ops.convert_to_tensor(grad)
            for grad in change(gradients(1)[0])
        ]
        with pytest.raises((TypeError, ValueError), match=said):
            optimizer.apply(given, trained)
        for a, b in zip((*trained, *optimizer.variables), before, strict=True):
            np.testing.assert_array_equal(fetched(a), b)

    def test_a_constraint_holds_for_values_and_averages(self) -> None:
        trained = variables()
        trained[0].constraint = keras.constraints.NonNeg()
        optimizer = Adam(0.5, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
        for grads in gradients(4):
            take(optimizer, trained, [grads])
            assert fetched(trained[0]).min() >= 0
            assert fetched(optimizer._model_variables_moving_average[0]).min() >= 0
        assert fetched(trained[1]).min() < 0

    def test_the_average_is_taken_of_what_the_constraint_leaves(self) -> None:
        trained = [keras.Variable(np.array([0.05, 1.0], np.float32), name="w")]
        trained[0].constraint = keras.constraints.NonNeg()
        optimizer = Adam(0.1, use_ema=True, ema_momentum=0.5)
        for _ in range(2):
            optimizer.apply([ops.ones((2,))], trained)
        np.testing.assert_allclose(fetched(trained[0]), [0.0, 0.8], atol=1e-5)
        average = fetched(optimizer._model_variables_moving_average[0])
        np.testing.assert_allclose(average, [0.0, 0.85], atol=1e-5)

    @pytest.mark.parametrize("window", [None, 2])
    def test_some_variables_take_their_gradients_as_values(self, window: int | None) -> None:
        trained = variables()
        trained[1].overwrite_with_gradient = True
        optimizer = Adam(gradient_accumulation_steps=window)
        first, second = np.full(4, 3.0, np.float32), np.full(4, 2.0, np.float32)
        kernel = gradients(2)
        before = fetched(trained[1])
        take(optimizer, trained, [[kernel[0][0], first]])
        np.testing.assert_array_equal(fetched(trained[1]), before if window else first)
        take(optimizer, trained, [[kernel[1][0], second]])
        np.testing.assert_array_equal(fetched(trained[1]), first if window else second)

    @pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras has none on TensorFlow")
    @pytest.mark.parametrize("config", [{}, FULL], ids=["plain", "full"])
    def test_stateless_calls_change_nothing(self, config: dict[str, Any]) -> None:
        optimizer, trained, calls = Adam(**config), variables(), gradients(7)
        optimizer.build(trained)
        values = [variable.value for variable in trained]
        state = [variable.value for variable in optimizer.variables]
        before = [fetched(value) for value in (*values, *state)]
        kept = (list(values), list(state))
        for grads in calls:
            given = [ops.convert_to_tensor(grad) for grad in grads]
            values, state = optimizer.stateless_apply(state, given, values)
        near(values, through_numpy(config, calls))
        for a, b in zip((*kept[0], *kept[1]), before, strict=True):
            np.testing.assert_array_equal(fetched(a), b)
        assert optimizer.calls == 0

    @pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has them")
    @pytest.mark.parametrize("config", [{}, {"global_clipnorm": 0.1}, FULL])
    def test_slices_with_repeated_indices_are_added_up(self, config: dict[str, Any]) -> None:
        import tensorflow as tf

        values, indices = np.ones((3, 4), np.float32), [2, 0, 2]
        slices = tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant((3, 4)))
        dense = np.zeros((3, 4), np.float32)
        np.add.at(dense, indices, values)
        trained = variables()
        optimizer = Adam(**config)
        for _ in range(3):
            optimizer.apply([slices, tf.ones(4)], trained)
        near(trained, through_numpy(config, [[dense, np.ones(4, np.float32)]] * 3))

    @pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has them")
    def test_variables_may_be_those_of_tensorflow(self) -> None:
        import tensorflow as tf

        trained, calls = variables(), gradients(3)
        mixed = [trained[0], tf.Variable(trained[1].value, name="plain")]
        take(Adam(**FULL), mixed, calls)
        near(mixed, through_numpy(FULL, calls))

    def test_finalize_matches_by_identity(self) -> None:
        optimizer, trained = Adam(0.1, use_ema=True, ema_momentum=0.9), variables()
        optimizer.build(trained)
        before = [fetched(variable) for variable in trained]
        optimizer.finalize_variable_values(trained)
        for variable, value in zip(trained, before, strict=True):
            np.testing.assert_array_equal(fetched(variable), value)
        take(optimizer, trained, gradients(3))
        kernel = fetched(trained[0])
        for _ in range(2):
            optimizer.finalize_variable_values([trained[1]])
        np.testing.assert_array_equal(fetched(trained[0]), kernel)
        average = optimizer._model_variables_moving_average[1]
        np.testing.assert_array_equal(fetched(trained[1]), fetched(average))


class TestMemory:
    """Variables and state may lie anywhere."""

    @pytest.mark.parametrize("config", [{}, FULL], ids=["plain", "full"])
    def test_columns_may_come_first(self, config: dict[str, Any]) -> None:
        def turned() -> list[Any]:
            given = variables()
            kernel = ops.transpose(ops.convert_to_tensor(fetched(given[0]).T.copy()))
            return [keras.Variable(kernel, name="kernel"), given[1]]

        optimizer, trained, calls = Adam(**config), turned(), gradients(7)
        take(optimizer, trained, calls)
        near(trained, through_numpy(config, calls))
        assert np.abs(fetched(optimizer._momentums[0])).min() > 0
        optimizer.learning_rate = 0.5
        assert np.abs(optimizer.state_dict()["kernel/velocity"]).min() > 0
        if BACKEND == "tensorflow":
            return
        pure, given = Adam(**config), turned()
        pure.build(given)
        values, state = [v.value for v in given], [v.value for v in pure.variables]
        for grads in calls:
            tensors = [ops.convert_to_tensor(grad) for grad in grads]
            values, state = pure.stateless_apply(state, tensors, values)
        near(values, through_numpy(config, calls))

    @pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras has none on TensorFlow")
    def test_stateless_calls_leave_frozen_variables_out(self) -> None:
        optimizer, trained, calls = Adam(), variables(), gradients(2)
        optimizer.build(trained)
        trained[0].trainable = False
        state = [variable.value for variable in optimizer.variables]
        values, state = optimizer.stateless_apply(
            state, [ops.convert_to_tensor(calls[0][1])], [trained[1].value]
        )
        near(values, through_numpy({}, calls[:1])[1:])


class TestDecay:
    @pytest.mark.parametrize(
        "excluded",
        [
            {"var_names": ["bias"]},
            {"var_names": [re.compile("^b.*s$")]},
            {"var_list": ["bias"]},
            {"var_names": ["bias", "kernel"]},
        ],
    )
    def test_spares_what_is_excluded(self, excluded: dict[str, Any]) -> None:
        optimizer, trained, calls = Adam(weight_decay=0.1), variables(), gradients(3)
        optimizer.exclude_from_weight_decay(**excluded)
        take(optimizer, trained, calls)
        spares_kernel = "kernel" in str(excluded)
        plain, decayed = through_numpy({}, calls), through_numpy({"weight_decay": 0.1}, calls)
        near(trained, [plain[0] if spares_kernel else decayed[0], plain[1]])

    def test_spares_variables_themselves_and_writes_them_down(self) -> None:
        optimizer, trained, calls = Adam(weight_decay=0.1), variables(), gradients(3)
        optimizer.exclude_from_weight_decay(var_list=[trained[1]])
        optimizer.build(trained)
        other, others = Adam.from_config(optimizer.get_config()), variables()
        take(optimizer, trained, calls)
        take(other, others, calls)
        near(trained, [fetched(variable) for variable in others])
        near(trained[1:], through_numpy({}, calls)[1:])
        with pytest.raises(ValueError, match="before the optimizer is built"):
            optimizer.exclude_from_weight_decay(var_names=["kernel"])


class Harmonic(schedules.LearningRateSchedule):
    """As a user would write it."""

    def __init__(self, first: float) -> None:
        self.first = first

    def __call__(self, step: Any) -> Any:
        return self.first / (step + 1)

    def get_config(self) -> dict[str, Any]:
        return {"first": self.first}


class TestConfiguration:
    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"learning_rate": 0.1, **FULL},
            {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)},
            {"learning_rate": schedules.ExponentialDecay(0.1, 10, 0.9), "epsilon_hat": False},
            {"clipnorm": 2, "on_nonfinite": "skip", "name": "mine"},
        ],
    )
    def test_goes_out_and_in(self, config: dict[str, Any]) -> None:
        optimizer = Adam(**config)
        written = optimizer.get_config()
        kept = copy.deepcopy(written)
        again = Adam.from_config(written)
        assert written == kept
        assert again.get_config() == written
        through = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
        assert type(through) is Adam
        assert through.get_config() == written

    def test_numbers_stay_what_they_are(self) -> None:
        assert Adam(0.1).get_config()["learning_rate"] == 0.1

    def test_takes_the_configuration_of_keras(self) -> None:
        theirs = keras.optimizers.AdamW(0.01, weight_decay=0.2, clipnorm=1.0)
        ours = Adam.from_config(theirs.get_config())
        assert (ours.weight_decay, ours.clipnorm) == (0.2, 1.0)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"beta_1": 1.0},
            {"epsilon": 0.0},
            {"clipnorm": 1.0, "clipvalue": 1.0},
            {"use_ema": 1},
            {"gradient_accumulation_steps": 0},
            {"learning_rate": -1.0},
        ],
    )
    def test_bad_arguments_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            Adam(**wrong)

    def test_a_schedule_of_ones_own_goes_out_and_in(self) -> None:
        optimizer = Adam(Harmonic(0.1))
        again = Adam.from_config(optimizer.get_config(), custom_objects={"Harmonic": Harmonic})
        trained, others, calls = variables(), variables(), gradients(3)
        take(optimizer, trained, calls)
        take(again, others, calls)
        near(trained, [fetched(variable) for variable in others])
        near(trained, through_numpy({"learning_rate": Harmonic(0.1)}, calls))

    def test_a_function_of_calls_tells_the_learning_rate(self) -> None:
        optimizer, trained = Adam(lambda calls: 0.1 / (calls + 1)), variables()
        take(optimizer, trained, gradients(3))
        assert float(fetched(optimizer.learning_rate)) == pytest.approx(0.025)
        with pytest.raises(ValueError, match="learning_rate must be"):
            optimizer.get_config()

    def test_a_refused_number_is_not_kept(self) -> None:
        optimizer, trained = Adam(), variables()
        optimizer.build(trained)
        with pytest.raises(ValueError, match="epsilon must be a normal number"):
            optimizer.epsilon = 1e-40
        assert optimizer.get_config()["epsilon"] == 1e-7
        optimizer.beta_1 = 0.8
        assert optimizer.beta_1 == 0.8

    def test_a_loss_scale_that_is_assigned_scales_both_ways(self) -> None:
        optimizer, trained = Adam(loss_scale_factor=4.0), variables()
        optimizer.build(trained)
        optimizer.loss_scale_factor = 8.0
        assert float(fetched(optimizer.scale_loss(ops.ones(())))) == 8.0
        calls = gradients(2)
        take(optimizer, trained, [[8 * grad for grad in grads] for grads in calls])
        near(trained, through_numpy({}, calls))

    def test_a_frequency_without_averages_does_nothing(self) -> None:
        trained, calls = variables(), gradients(3)
        take(Adam(ema_overwrite_frequency=2), trained, calls)
        near(trained, through_numpy({}, calls))

    def test_what_the_state_depends_on_stays(self) -> None:
        optimizer, trained = Adam(), variables()
        optimizer.use_ema = True
        optimizer.build(trained)
        for name, value in {"use_ema": False, "clipnorm": 1.0, "amsgrad": True}.items():
            with pytest.raises(ValueError, match=f"{name} must stay"):
                setattr(optimizer, name, value)


class TestState:
    def trained(self, config: dict[str, Any], calls: int = 5) -> tuple[Any, list[Any]]:
        optimizer, trained = Adam(**config), variables()
        take(optimizer, trained, gradients(calls))
        return optimizer, trained

    def goes_on(self, one: Any, ones: list[Any], other: Any, others: list[Any]) -> None:
        for a, b in zip(others, ones, strict=True):
            a.assign(b.value)
        more = gradients(4, seed=9)
        take(one, ones, more)
        take(other, others, more)
        for a, b in zip(ones, others, strict=True):
            np.testing.assert_array_equal(fetched(a), fetched(b))

    @pytest.mark.parametrize("config", [{}, FULL], ids=["plain", "full"])
    def test_resumes_from_a_portable_file(self, config: dict[str, Any], tmp_path: Path) -> None:
        one, ones = self.trained({**config, "name": "a"})
        one.save(tmp_path / "run")
        other, others = Adam(**config, name="b"), variables()
        other.build(others)
        other.load(tmp_path / "run")
        assert (other.calls, other.updates) == (one.calls, one.updates)
        self.goes_on(one, ones, other, others)

    def test_goes_to_numpy_and_back(self, tmp_path: Path) -> None:
        one, ones = self.trained(FULL)
        one.save(tmp_path / "run")
        arrays = {name: fetched(v).copy() for name, v in zip(("kernel", "bias"), ones, strict=True)}
        there = oneadam.numpy.Adam(**FULL)
        there.build(arrays)
        there.load(tmp_path / "run")
        more = gradients(4, seed=9)
        for grads in more:
            there.apply(dict(zip(arrays, grads, strict=True)))
        take(one, ones, more)
        near(ones, list(arrays.values()))
        there.save(tmp_path / "back")
        other, others = Adam(**FULL), variables()
        other.build(others)
        other.load(tmp_path / "back")
        assert (other.calls, other.updates) == (9, 3)

    def test_a_mismatch_is_refused_and_nothing_changes(self, tmp_path: Path) -> None:
        one, _ = self.trained({})
        one.save(tmp_path / "run")
        other = Adam()
        other.build([keras.Variable(np.ones((3, 5), np.float32), name="kernel")])
        before = [fetched(variable) for variable in other.variables]
        with pytest.raises(ValueError, match="must fit the optimizer's variables"):
            other.load(tmp_path / "run")
        for a, b in zip(other.variables, before, strict=True):
            np.testing.assert_array_equal(fetched(a), b)

    @pytest.mark.parametrize("config", [{}, FULL], ids=["plain", "full"])
    def test_a_model_saved_by_keras_goes_on(self, config: dict[str, Any], tmp_path: Path) -> None:
        trained = fitted(Adam(0.01, **config), epochs=1)
        trained.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert type(again.optimizer) is Adam
        assert again.optimizer.calls == trained.optimizer.calls
        for one in (trained, again):
            one.fit(*data(), batch_size=8, shuffle=False, verbose=0)
        for a, b in zip(weights(trained), weights(again), strict=True):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize("kind", [keras.optimizers.Adam, keras.optimizers.AdamW])
    @pytest.mark.parametrize("config", [{}, {"amsgrad": True, "use_ema": True}])
    def test_goes_on_from_keras(self, kind: Any, config: dict[str, Any]) -> None:
        theirs, trained = kind(0.01, **config), variables()
        take(theirs, trained, gradients(3))
        ours = Adam.from_keras(theirs)
        more = gradients(3, seed=9)
        before = [fetched(variable) for variable in trained]
        take(ours, trained, more)
        after = [fetched(variable) for variable in trained]
        for variable, value in zip(trained, before, strict=True):
            variable.assign(value)
        take(theirs, trained, more)
        near(trained, after)
        assert ours.updates == 6

    def test_a_file_that_keras_saved_with_its_own_loads_into_ours(self, tmp_path: Path) -> None:
        theirs = fitted(keras.optimizers.Adam(0.01, amsgrad=True), epochs=1)
        theirs.save(tmp_path / "model.keras")
        ours = model()
        ours.compile(optimizer=Adam(0.01, amsgrad=True), loss="mse")
        ours.optimizer.build(ours.trainable_variables)
        ours.load_weights(tmp_path / "model.keras")
        assert (ours.optimizer.calls, ours.optimizer.updates) == (8, 8)
        for one in (theirs, ours):
            one.fit(*data(), batch_size=8, shuffle=False, verbose=0)
        for a, b in zip(weights(theirs), weights(ours), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def test_takes_the_weights_of_another(self) -> None:
        one, ones = self.trained(FULL)
        other, others = Adam(**FULL), variables()
        with pytest.raises(ValueError, match="You are calling"):
            other.set_weights(one.variables)
        other.build(others)
        other.set_weights(one.variables)
        self.goes_on(one, ones, other, others)

    def test_loads_what_was_saved_before_any_call(self, tmp_path: Path) -> None:
        for optimizer in (Adam(0.01), LossScaleOptimizer(Adam(0.01))):
            trained = model()
            trained.compile(optimizer=optimizer, loss="mse")
            trained.save(tmp_path / "model.keras")
            again = keras.saving.load_model(tmp_path / "model.keras")
            again.fit(*data(), batch_size=8, epochs=1, verbose=0)
            assert again.optimizer.calls == 8
        copy_of = pickle.loads(pickle.dumps(Adam(0.5)))
        take(copy_of, variables(), gradients(1))
        assert copy_of.calls == 1

    def test_a_schedule_may_become_a_number_before_it_is_saved(self, tmp_path: Path) -> None:
        trained = fitted(Adam(schedules.ExponentialDecay(0.1, 10, 0.9)), epochs=1)
        trained.optimizer.learning_rate = 1e-4
        trained.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert (again.optimizer.calls, again.optimizer.get_config()["learning_rate"]) == (8, 1e-4)

    def test_loaded_state_does_not_change_arguments(self, tmp_path: Path) -> None:
        one = fitted(keras.optimizers.LossScaleOptimizer(Adam(weight_decay=0.1)), epochs=1)
        one.save(tmp_path / "model.keras")
        other = model()
        other.compile(keras.optimizers.LossScaleOptimizer(Adam(weight_decay=0.2)), loss="mse")
        other.optimizer.build(other.trainable_variables)
        other.load_weights(tmp_path / "model.keras")
        inner = other.optimizer.inner_optimizer
        assert inner.calls == 8
        assert fetched(inner._own.numbers)[1] == pytest.approx(0.2)

    def test_takes_the_weights_of_keras(self) -> None:
        theirs, trained = keras.optimizers.Adam(), variables()
        take(theirs, trained, gradients(3))
        ours = Adam()
        ours.build(variables())
        ours.set_weights(theirs.variables)
        assert (ours.calls, ours.updates) == (3, 3)
        with pytest.raises(ValueError, match="weights must have"):
            ours.set_weights(theirs.variables[:3])

    def test_takes_over_what_keras_exempts(self) -> None:
        theirs, trained, calls = keras.optimizers.AdamW(weight_decay=0.1), variables(), gradients(3)
        theirs.exclude_from_weight_decay(var_names=["^bias$"])
        with pytest.raises(ValueError, match="must be built"):
            Adam.from_keras(theirs)
        theirs.build(trained)
        take(Adam.from_keras(theirs), trained, calls)
        near(trained[:1], through_numpy({"weight_decay": 0.1}, calls)[:1])
        near(trained[1:], through_numpy({}, calls)[1:])

    def test_pickles_with_its_state(self) -> None:
        one, ones = self.trained(FULL)
        others = variables()
        other = pickle.loads(pickle.dumps(one))
        assert other.get_config() == one.get_config()
        other.build(others)
        self.goes_on(one, ones, other, others)

    def test_names_may_be_the_same(self, tmp_path: Path) -> None:
        same = [keras.Variable(np.ones(size, np.float32), name="w") for size in (2, 3)]
        optimizer = Adam()
        optimizer.apply([ops.ones((2,)), ops.ones((3,))], same)
        assert {"w/momentum", "w_1/momentum"} <= optimizer.state_dict().keys()


class TestLossScale:
    def test_skips_halves_and_doubles(self) -> None:
        optimizer = LossScaleOptimizer(
            Adam(global_clipnorm=1.0, weight_decay=0.1), initial_scale=8.0, dynamic_growth_steps=2
        )
        trained, calls = variables(), gradients(3)
        broken = [np.full((3, 4), np.inf, np.float32), np.ones(4, np.float32)]
        scaled = [[8 * g for g in calls[0]], broken, [4 * g for g in calls[1]],
                  [4 * g for g in calls[2]]]  # fmt: skip
        take(optimizer, trained, scaled)
        config = {"global_clipnorm": 1.0, "weight_decay": 0.1}
        near(trained, through_numpy(config, calls))
        metrics = optimizer.metrics()
        assert (metrics["loss_scale"], metrics["skipped_calls"], metrics["calls"]) == (8, 1, 3)

    def test_pickles_with_its_scale(self) -> None:
        optimizer = LossScaleOptimizer(Adam(), initial_scale=8.0, dynamic_growth_steps=2)
        take(optimizer, variables(), gradients(3))
        other = pickle.loads(pickle.dumps(optimizer))
        other.build(variables())
        assert other.metrics() == optimizer.metrics()
        assert other.metrics()["loss_scale"] == 16.0

    def test_goes_to_numpy_and_back(self, tmp_path: Path) -> None:
        optimizer = LossScaleOptimizer(Adam(name="adam"), 8.0, 2)
        take(optimizer, variables(), gradients(3))
        optimizer.save(tmp_path / "run")
        there = oneadam.numpy.LossScaleOptimizer(oneadam.numpy.Adam(), 4.0, 2)
        there.build({"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4, np.float32)})
        there.load(tmp_path / "run")
        assert there.scale == 16.0
        other = LossScaleOptimizer(Adam(), 1.0, 2)
        other.build(variables())
        other.load(tmp_path / "run")
        for name in ("calls", "updates", "loss_scale"):
            assert other.metrics()[name] == optimizer.metrics()[name]

    def test_around_an_optimizer_that_is_built(self) -> None:
        inner, trained, calls = Adam(), variables(), gradients(2)
        inner.build(trained)
        optimizer = LossScaleOptimizer(inner, initial_scale=4.0)
        for grads in calls:
            optimizer.apply([ops.convert_to_tensor(4 * grad) for grad in grads])
        optimizer.apply([])
        near(trained, through_numpy({}, calls))
        assert optimizer.calls == 2

    def test_judges_what_becomes_a_value_too(self) -> None:
        trained = variables()
        trained[1].overwrite_with_gradient = True
        optimizer, before = LossScaleOptimizer(Adam(), initial_scale=4.0), fetched(trained[1])
        take(optimizer, trained, [[np.ones((3, 4), np.float32), np.full(4, np.inf, np.float32)]])
        np.testing.assert_array_equal(fetched(trained[1]), before)
        assert optimizer.metrics()["loss_scale"] == 2.0

    def test_stays_within_its_range(self) -> None:
        optimizer = LossScaleOptimizer(Adam(), initial_scale=2.0, minimum_scale=1.0)
        trained = variables()
        broken = [np.full((3, 4), np.nan, np.float32), np.ones(4, np.float32)]
        take(optimizer, trained, [broken] * 3)
        assert optimizer.metrics()["loss_scale"] == 1.0

    def test_goes_out_and_in(self) -> None:
        optimizer = LossScaleOptimizer(Adam(0.1, **FULL), 8.0, 3, minimum_scale=0.5)
        again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
        assert type(again) is LossScaleOptimizer
        assert again.get_config() == optimizer.get_config()

    def test_fits(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trained = fitted(LossScaleOptimizer(Adam(0.02), initial_scale=2.0**10), epochs=4)
        assert trained.evaluate(*data(), verbose=0) < 0.7 * model_loss()
        assert trained.optimizer.calls == 32

    @pytest.mark.parametrize("wrong", [keras.optimizers.SGD(), Adam(loss_scale_factor=2.0)])
    def test_refuses_others(self, wrong: Any) -> None:
        with pytest.raises((TypeError, ValueError), match="inner_optimizer must"):
            LossScaleOptimizer(wrong)


def test_all_is_true() -> None:
    surface.check(oneadam.keras)

"""Copies, configurations and files: what another optimizer must have to be the same."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from oneadam import schedules
from oneadam.keras import Adam, LossScaleOptimizer

FULL: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.1,
    "use_ema": True,
    "gradient_accumulation_steps": 3,
}


def fetched(value: Any) -> np.ndarray:
    return ops.convert_to_numpy(value.value if isinstance(value, keras.Variable) else value)


def variables() -> list[Any]:
    return [keras.Variable(np.zeros(2, np.float32), name=name) for name in ("kernel", "bias")]


def trained(optimizer: Any, given: list[Any], calls: int = 4) -> list[np.ndarray]:
    for call in range(calls):
        optimizer.apply([ops.full((2,), 0.1 * (call + 1)), ops.full((2,), -0.5)], given)
    return [fetched(variable) for variable in given]


@keras.saving.register_keras_serializable("oneadam_tests")
class Root(keras.optimizers.schedules.LearningRateSchedule):
    """As a user of Keras would write it."""

    def __init__(self, first: float) -> None:
        self.first = first

    def __call__(self, step: Any) -> Any:
        return self.first / ops.sqrt(ops.cast(step, "float32") + 1.0)

    def get_config(self) -> dict[str, Any]:
        return {"first": self.first}


def model(optimizer: Any = None, **options: Any) -> Any:
    keras.utils.set_random_seed(5)
    layers = keras.layers
    made = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, name="a"), layers.Dense(1, name="b")], **options
    )
    if optimizer is not None:
        made.compile(optimizer=optimizer, loss="mse")
    return made


def fitted(one: Any, epochs: int = 1) -> list[np.ndarray]:
    x = np.random.default_rng(6).normal(size=(16, 3)).astype(np.float32)
    one.fit(x, x[:, :1], batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return [fetched(variable) for variable in one.trainable_variables]


class TestCopies:
    @pytest.mark.parametrize("calls", [0, 4], ids=["new", "trained"])
    def test_go_on_as_the_first_does(self, calls: int) -> None:
        one, ones = Adam(0.1, **FULL), variables()
        one.exclude_from_weight_decay(var_list=[ones[1]], var_names=[re.compile("^k")])
        trained(one, ones, calls)
        other, others = copy.deepcopy(one), variables()
        assert other.get_config() == one.get_config()
        for a, b in zip(others, ones, strict=True):
            a.assign(b.value)
        wanted, found = trained(one, ones), trained(other, others)
        for a, b in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(a, b)
        assert (one.calls, one.updates) == (other.calls, other.updates)

    def test_leave_the_first_alone(self) -> None:
        one, ones = Adam(0.1), variables()
        trained(one, ones)
        before = [fetched(variable) for variable in one.variables]
        other = copy.deepcopy(one)
        other.learning_rate = 0.5
        trained(other, variables())
        for variable, value in zip(one.variables, before, strict=True):
            np.testing.assert_array_equal(fetched(variable), value)

    def test_of_a_wrapper_have_its_scale(self) -> None:
        one = LossScaleOptimizer(Adam(0.1), initial_scale=8.0, dynamic_growth_steps=2)
        trained(one, variables())
        other = copy.deepcopy(one)
        other.build(variables())
        assert other.metrics() == one.metrics()

    def test_of_a_model_bring_its_optimizer(self) -> None:
        one = model(Adam(0.1, **FULL))
        fitted(one)
        other = copy.deepcopy(one)
        assert type(other.optimizer) is Adam
        for a, b in zip(fitted(one), fitted(other), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_of_a_model_without_its_optimizer_take_another(self) -> None:
        one = model(Adam(0.1, weight_decay=0.1))
        other = keras.models.clone_model(one)
        other.set_weights(one.get_weights())
        other.compile(optimizer=Adam.from_config(one.optimizer.get_config()), loss="mse")
        for a, b in zip(fitted(one), fitted(other), strict=True):
            np.testing.assert_array_equal(a, b)


class TestConfigurations:
    def test_are_what_keras_gets(self) -> None:
        optimizer = Adam(0.1, **FULL)
        assert keras.optimizers.get(optimizer) is optimizer
        written = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
        for made in (
            keras.optimizers.get(written),
            keras.optimizers.deserialize(written),
            keras.saving.deserialize_keras_object(written),
        ):
            assert type(made) is Adam
            assert made.get_config() == optimizer.get_config()

    @pytest.mark.parametrize(
        "rate", [Root(0.1), schedules.CosineDecay(0.1, 100)], ids=["of_keras", "of_ours"]
    )
    def test_of_a_compiled_model_have_the_schedule(self, rate: Any, tmp_path: Path) -> None:
        one = model(Adam(rate, beta_1=0.8))
        fitted(one)
        one.save(tmp_path / "model.keras")
        other = keras.saving.load_model(tmp_path / "model.keras")
        assert type(other.optimizer._learning_rate) is type(rate)
        assert other.optimizer.get_config() == one.optimizer.get_config()
        for a, b in zip(fitted(one), fitted(other), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_are_found_in_what_a_model_was_compiled_with(self) -> None:
        one = model(LossScaleOptimizer(Adam(0.1, clipnorm=2.0), initial_scale=4.0))
        other = model()
        other.compile_from_config(one.get_compile_config())
        assert type(other.optimizer) is LossScaleOptimizer
        assert other.optimizer.get_config() == one.optimizer.get_config()


class TestVariables:
    def test_two_optimizers_may_share_a_model(self) -> None:
        shared, alone = model(), model()
        halves = [layer.trainable_variables for layer in shared.layers]
        optimizers = [Adam(0.1), Adam(0.01, use_ema=True)]
        for variables, optimizer in zip(halves, optimizers, strict=True):
            optimizer.apply([ops.ones(v.shape) for v in variables], variables)
        both = Adam(0.1)
        every = alone.trainable_variables
        both.apply([ops.ones(v.shape) for v in every], every)
        assert {v.path for v in optimizers[0].variables}.isdisjoint(
            v.path for v in optimizers[1].variables
        )
        for one, other in zip(halves[0], alone.layers[0].trainable_variables, strict=True):
            np.testing.assert_array_equal(fetched(one), fetched(other))
        # On variables of each other's they are refused, and change nothing.
        with pytest.raises(ValueError, match="Unknown variable"):
            optimizers[0].apply([ops.ones(v.shape) for v in halves[1]], halves[1])

    def test_two_may_take_turns_on_the_same(self) -> None:
        given = variables()
        first, second = Adam(0.5), Adam(0.25)
        for optimizer in (first, second):
            optimizer.apply([ops.ones((2,))] * 2, given)
        np.testing.assert_allclose(fetched(given[0]), np.full(2, -0.75), rtol=1e-5)

    @pytest.mark.parametrize("rate", [0.1, Root(0.1)], ids=["number", "schedule"])
    def test_stand_in_an_order_that_stays(self, rate: Any) -> None:
        def paths(optimizer: Any) -> list[str]:
            return [variable.path.partition("/")[2] for variable in optimizer.variables]

        one, other = Adam(rate, **FULL), Adam(rate, **FULL)
        one.build(variables())
        trained(other, variables())
        other.flush()
        assert paths(other) == paths(one)
        theirs = keras.optimizers.Adam(rate, **FULL)
        theirs.build(variables())
        ours = paths(one)
        assert ours[1] == "learning_rate"
        if paths(theirs)[1] != ours[1]:  # a schedule needs none in Keras
            del ours[1]
        assert ours[: len(theirs.variables)] == paths(theirs)


class TestExemptions:
    def test_of_names_that_are_none_are_refused_at_the_build(self) -> None:
        optimizer, given = Adam(weight_decay=0.1), variables()
        optimizer.exclude_from_weight_decay(var_list=["bais"])
        for _ in range(2):
            with pytest.raises(ValueError, match=r"names \['bais'\], which are none; pass the var"):
                optimizer.build(given)
        assert not optimizer.built
        assert len(optimizer.variables) == 2

    @pytest.mark.parametrize(("named", "paths"), [
        (["s/dense/bias"], ["s/dense/kernel", "s/dense/bias"]),
        (["s/dense/bias"], ["s_1/dense/kernel", "s_1/dense/bias"]),
        (["s/dense/bias"], ["dense/kernel", "dense/bias"]),
        (["dense/bias"], ["s/dense/kernel", "s/dense/bias"]),
        (["s/t/dense/bias"], ["dense/kernel", "dense/bias"]),
    ])  # fmt: skip
    def test_of_a_configuration_are_found_by_paths(
        self, named: list[str], paths: list[str]
    ) -> None:
        optimizer = self.configured(named, paths)
        assert list(optimizer._own.run.decayed) == [True, False]
        assert optimizer.get_config()["exclude_from_weight_decay"]["names"] == paths[1:]

    @pytest.mark.parametrize(("named", "paths"), [
        (["s/dense/bias"], ["s/dense_1/kernel", "s/dense_1/bias"]),
        (["s/dense/bias"], ["t/dense/bias", "u/dense/bias"]),
        (["s/dense/bias"], ["dense/bias", "dense/bias"]),
        (["s/bias"], ["t/bias", "kernel"]),
        (["s/bias"], ["bias", "kernel"]),
    ])  # fmt: skip
    def test_of_a_configuration_that_are_not_found_warn(
        self, named: list[str], paths: list[str]
    ) -> None:
        with pytest.warns(UserWarning, match=f"exempts {named[0]} from weight decay"):
            optimizer = self.configured(named, paths)
        assert list(optimizer._own.run.decayed) == [True, True]
        assert optimizer.get_config()["exclude_from_weight_decay"]["names"] == named

    def configured(self, named: list[str], paths: list[str]) -> Any:
        given = variables()
        for variable, path in zip(given, paths, strict=True):
            variable._path = path
        config = Adam(weight_decay=0.1).get_config()
        exempt = {"names": named, "substrings": [], "patterns": []}
        optimizer = Adam.from_config({**config, "exclude_from_weight_decay": exempt})
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            optimizer.build(given)
        return optimizer

    @pytest.mark.parametrize("options", [{}, {"name": "mine"}], ids=["numbered", "named"])
    def test_go_with_a_model(self, options: dict[str, str], tmp_path: Path) -> None:
        optimizer = Adam(0.1, weight_decay=0.5)
        one = model(optimizer, **options)
        optimizer.exclude_from_weight_decay(var_list=[layer.bias for layer in one.layers])
        fitted(one)
        one.save(tmp_path / "model.keras")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other = keras.saving.load_model(tmp_path / "model.keras")
        assert list(other.optimizer._own.run.decayed) == [True, False, True, False]
        for a, b in zip(fitted(one), fitted(other), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_are_written_down_before_the_build_too(self) -> None:
        optimizer, given = Adam(weight_decay=0.1), variables()
        optimizer.exclude_from_weight_decay(var_list=[given[1]])
        again = Adam.from_config(optimizer.get_config())
        again.build(variables())
        assert list(again._own.run.decayed) == [True, False]

    def test_may_be_of_every_variable(self) -> None:
        decayed, plain = Adam(0.1, weight_decay=0.5), Adam(0.1)
        given = variables()
        decayed.exclude_from_weight_decay(var_list=given)
        for a, b in zip(trained(decayed, given), trained(plain, variables()), strict=True):
            np.testing.assert_array_equal(a, b)

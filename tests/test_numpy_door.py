"""What a user of the NumPy door meets: structures, names, errors, and the way a run is driven."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from snapshots import unchanged

from oneadam.numpy import Adam, LossScaleOptimizer
from oneadam.schedules import CosineDecay, ExponentialDecay


def weights() -> dict[str, Any]:
    return {"layer": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3)}, "scale": [w(2)]}


def w(size: int = 3) -> np.ndarray:
    return np.ones(size, np.float32)


def built(variables: Any, **config: Any) -> Adam:
    optimizer = Adam(**config)
    optimizer.build(variables)
    return optimizer


def test_names_are_the_keys() -> None:
    assert list(built(weights()).variables) == ["layer/kernel", "layer/bias", "scale/0"]
    assert list(built([w(), w()]).variables) == ["0", "1"]
    assert list(built({"a/b": w(), 3: w()}).variables) == ["a/b", "3"]


@pytest.mark.parametrize(
    ("variables", "error", "says"),
    [
        ({"a/b": w(), "a": {"b": w()}}, ValueError, "called 'a/b'"),
        (w(), TypeError, "put a single array into a list"),
        ([1.0], TypeError, "variable '0' must be a NumPy array"),
        ([w().astype(complex)], TypeError, "complex128"),
        ([np.arange(3)], TypeError, "int64"),
    ],
)
def test_structures_that_cannot_be_built_on(variables: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        built(variables)


def test_a_variable_named_like_the_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="'adam/updates'"):
        built({"adam": w()})
    assert built({"adam": w()}, name="other").variables.keys() == {"adam"}


def test_gradients_come_in_the_structure_or_as_a_list_or_in_pairs() -> None:
    def given(apply: Any) -> bytes:
        variables = weights()
        optimizer = built(variables)
        apply(optimizer, variables)
        return b"".join(array.tobytes() for array in optimizer.variables.values())

    kernel, bias, scale = np.full((2, 3), 0.5), np.full(3, -0.5), np.full(2, 2.0)
    nested = {"scale": [scale], "layer": {"bias": bias, "kernel": kernel}}
    wanted = given(lambda o, v: o.apply(nested))
    assert given(lambda o, v: o.apply([kernel, bias, scale])) == wanted
    assert given(lambda o, v: o.apply(iter([kernel, bias, scale]))) == wanted
    assert given(lambda o, v: o.apply(nested, v)) == wanted
    assert given(lambda o, v: o.apply_gradients(paired(v, kernel, bias, scale))) == wanted
    assert given(lambda o, v: o.apply([g.tolist() for g in (kernel, bias, scale)])) == wanted


def paired(v: Any, kernel: Any, bias: Any, scale: Any) -> Any:
    layer = v["layer"]
    return zip([scale, bias, kernel], [v["scale"][0], layer["bias"], layer["kernel"]], strict=True)


def test_the_first_apply_builds() -> None:
    variables = [w()]
    optimizer = Adam(learning_rate=0.5)
    with pytest.raises(RuntimeError, match="build"):
        optimizer.apply([w()])
    optimizer.apply([w()], variables)
    np.testing.assert_allclose(variables[0], 0.5, rtol=1e-5)
    optimizer.build(variables)
    with pytest.raises(ValueError, match="new optimizer"):
        optimizer.build([w()])


@pytest.mark.parametrize(
    ("grads", "error", "says"),
    [
        ([w()], ValueError, "2, received 1"),
        ([w(), w(), w()], ValueError, "2, received 3"),
        ([w(), w(4)], ValueError, "gradient of '1' must have the variable's shape (3,)"),
        ([w(), np.ones((3, 1))], ValueError, "not broadcast"),
        ([w(), np.ones(3, np.int32)], TypeError, "int32"),
        ([w(), np.ones(3, complex)], TypeError, "complex128"),
        ([w(), "text"], TypeError, "'1'"),
        ([None, None], ValueError, "None for every one"),
        ({"0": w(), "1": w()}, ValueError, "dict"),
    ],
)
def test_gradients_that_do_not_fit(grads: Any, error: Any, says: str) -> None:
    variables = [w(), w()]
    optimizer = built(variables)
    with unchanged(optimizer, variables), pytest.raises(error, match=re.escape(says)):
        optimizer.apply(grads)


def test_unknown_and_repeated_variables_are_refused() -> None:
    variables = [w(), w()]
    optimizer = built(variables)
    with unchanged(optimizer, variables):
        with pytest.raises(ValueError, match="very arrays"):
            optimizer.apply([w()], [w()])
        with pytest.raises(ValueError, match="twice"):
            optimizer.apply([w(), w()], [variables[0], variables[0]])


def test_no_gradients_do_nothing() -> None:
    optimizer = built([w()])
    for nothing in ([], {}, ()):
        optimizer.apply(nothing)
    optimizer.apply_gradients([])
    assert optimizer.calls == 0


def test_missing_gradients_warn_once_for_each_set_and_name_the_caller() -> None:
    variables = [w(), w(), w()]
    optimizer = built(variables)
    for apply in (
        lambda: optimizer.apply([w(), None, w()]),
        lambda: optimizer.apply_gradients([(w(), variables[0])]),
        lambda: LossScaleOptimizer(built(variables)).apply([w(), None, w()]),
    ):
        with pytest.warns(UserWarning, match="no gradient in this call") as caught:
            apply()
        assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.apply([w(), None, w()])
        optimizer.apply([w(), None, None])
    assert optimizer.calls == 4
    assert optimizer.state_dict()["1/updates"] == 0


def test_the_learning_rate_may_become_anything_at_any_time() -> None:
    variables = [np.zeros(1)]
    optimizer = built(variables, learning_rate=1, beta_1=0.0, beta_2=0.0, epsilon=1e-300)
    for rate, moved in ((2, 2.0), (ExponentialDecay(8.0, 1, 0.5), 2.0), (lambda: 3, 3.0)):
        before = variables[0].copy()
        optimizer.learning_rate = rate
        assert optimizer.learning_rate == moved
        optimizer.apply([np.ones(1)])
        np.testing.assert_allclose(before - variables[0], moved)
        optimizer.apply([np.ones(1)])
    for wrong in (-1.0, float("nan"), "0.1", True, lambda a, b: 0.1):
        with pytest.raises((TypeError, ValueError), match="learning_rate"):
            optimizer.learning_rate = wrong
    optimizer.learning_rate = lambda: -1.0
    with unchanged(built([w()]), []), pytest.raises(ValueError, match="learning_rate"):
        optimizer.apply([np.ones(1)])


def test_averages_are_lent_and_given_back() -> None:
    variables = [w()]
    optimizer = built(variables, use_ema=True, ema_momentum=0.5, learning_rate=0.5)
    with optimizer.averaged():
        np.testing.assert_array_equal(variables[0], 1.0)
    for _ in range(3):
        optimizer.apply([w()])
    trained, average = variables[0].copy(), optimizer.state_dict()["0/average"]
    assert not np.array_equal(trained, average)
    with unchanged(optimizer, variables), optimizer.averaged():
        np.testing.assert_array_equal(variables[0], average)
        for forbidden in (
            lambda: optimizer.apply([w()]),
            lambda: optimizer.finalize_variable_values(variables),
            lambda: optimizer.averaged().__enter__(),
        ):
            with pytest.raises(RuntimeError, match=r"averaged\(\)"):
                forbidden()
    with unchanged(optimizer, variables), pytest.raises(KeyError), optimizer.averaged():
        raise KeyError
    optimizer.finalize_variable_values(["0"])
    np.testing.assert_array_equal(variables[0], average)
    optimizer.apply([w()])
    with pytest.raises(ValueError, match="very arrays"):
        optimizer.finalize_variable_values([w()])


def test_metrics_are_plain_numbers() -> None:
    optimizer = built([w(4)], global_clipnorm=1.0, learning_rate=CosineDecay(0.5, 10))
    assert optimizer.metrics() == {"calls": 0, "updates": 0, "skipped_calls": 0}
    optimizer.apply([np.full(4, 3.0)])
    assert optimizer.metrics() == {
        "calls": 1,
        "updates": 1,
        "skipped_calls": 0,
        "learning_rate": 0.5,
        "gradient_norm": 6.0,
        "clip_scale": pytest.approx(1 / 6),
    }
    scaled = LossScaleOptimizer(built([w()]))
    assert scaled.metrics()["loss_scale"] == 2.0**15


@pytest.mark.parametrize("fill", [1, 2])
def test_flush_closes_a_window_with_the_mean_of_its_calls(fill: int) -> None:
    variables, others = [w()], [w()]
    optimizer = built(variables, gradient_accumulation_steps=3)
    optimizer.flush()
    assert optimizer.updates == 0
    for call in range(fill):
        optimizer.apply([w() * (call + 1)])
    optimizer.flush()
    built(others).apply([w() * (fill + 1) / 2])
    np.testing.assert_array_equal(variables[0], others[0])
    assert (optimizer.calls, optimizer.updates) == (fill, 1)
    assert not optimizer.state_dict()["0/gradient_accumulator"].any()


def test_exclusions_by_array_name_part_and_pattern() -> None:
    def decayed(**given: Any) -> list[str]:
        variables = {"kernel": w(), "bias": w(), "norm/scale": w()}
        optimizer = Adam(learning_rate=0.5, weight_decay=0.1)
        array = given.pop("array", None)
        if array:
            given["var_list"] = [variables[array]]
        optimizer.exclude_from_weight_decay(**given)
        optimizer.build(variables)
        again = Adam.from_config(optimizer.get_config())
        assert again.get_config() == optimizer.get_config()
        optimizer.apply({name: np.zeros(3) for name in variables})
        return [name for name, array in variables.items() if array[0] != 1.0]

    assert decayed() == ["kernel", "bias", "norm/scale"]
    assert decayed(array="kernel") == ["bias", "norm/scale"]
    assert decayed(var_list=["bias"]) == ["kernel", "norm/scale"]
    assert decayed(var_names=["b", re.compile("^norm/")]) == ["kernel"]
    for wrong in (["typo"], "bias", [3], w()):
        with pytest.raises((TypeError, ValueError), match="var_list"):
            decayed(var_list=wrong)
    with pytest.raises(TypeError, match="var_names"):
        decayed(var_names="bias")
    with pytest.raises(RuntimeError, match="build"):
        built([w()]).exclude_from_weight_decay(var_names=["bias"])


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_nonfinite_gradients_are_skipped_or_named(poison: float) -> None:
    variables = {"kernel": w(), "bias": w()}
    bad = {"kernel": w(), "bias": np.array([1.0, poison, 1.0])}
    raising = built(variables, on_nonfinite="raise", gradient_accumulation_steps=2)
    with unchanged(raising, variables.values()), pytest.raises(FloatingPointError, match="bias"):
        raising.apply(bad)
    skipping = built(variables, on_nonfinite="skip", use_ema=True)
    skipping.apply(bad)
    assert (skipping.calls, skipping.metrics()["skipped_calls"]) == (0, 1)
    np.testing.assert_array_equal(variables["kernel"], 1.0)
    propagating = built(variables, global_clipnorm=1.0)
    propagating.apply(bad)
    assert np.isnan(variables["kernel"]).all()


def test_configurations_that_are_none() -> None:
    for wrong in ("adam", 3, [("learning_rate", 0.1)]):
        with pytest.raises(TypeError, match="config must"):
            Adam.from_config(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="config must"):
            LossScaleOptimizer.from_config(wrong)  # type: ignore[arg-type]
    config = LossScaleOptimizer(Adam(0.25)).get_config()
    assert LossScaleOptimizer.from_config(config).get_config() == config
    with pytest.raises(ValueError, match="foo"):
        LossScaleOptimizer.from_config({**config, "foo": 1})
    with pytest.raises(ValueError, match="foo"):
        Adam.from_config({"foo": 1})


def test_the_wrapper_refuses_what_it_cannot_wrap() -> None:
    with pytest.raises(TypeError, match="inner_optimizer"):
        LossScaleOptimizer(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss_scale_factor"):
        LossScaleOptimizer(Adam(loss_scale_factor=2.0))
    for wrong in (0.5, np.inf, np.nan, 2.0**128):
        with pytest.raises(ValueError, match="initial_scale"):
            LossScaleOptimizer(Adam(), wrong)

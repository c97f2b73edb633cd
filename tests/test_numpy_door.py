"""What a user of the NumPy door meets: structures, names, errors, and the way a run is driven."""

from __future__ import annotations

import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from snapshots import bits, unchanged

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


# What frameworks hand over.


def test_gradients_of_torch() -> None:
    torch = pytest.importorskip("torch")
    content = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    tensor = torch.from_numpy(content.copy())
    leaf = tensor.clone().requires_grad_()
    (leaf * leaf).sum().backward()
    for grad, wanted in (
        (tensor, content),
        (tensor.double(), content.astype(np.float64)),
        (tensor.half(), content.astype(np.float16)),
        (tensor.T.contiguous().T, content),
        (torch.flip(tensor, [0]), content[::-1]),
        (leaf.grad, 2 * content),
        (tensor.sum(), None),
        (leaf, None),
        (tensor.int(), None),
        (tensor.to(torch.complex64), None),
        (tensor.to_sparse(), None),
    ):
        assert_taken(grad, wanted)


def test_gradients_of_jax() -> None:
    jax = pytest.importorskip("jax")
    content = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    array = jax.numpy.asarray(content)
    for grad, wanted in (
        (array, content),
        (jax.grad(lambda x: (x * x).sum())(array), 2 * content),
        (array.astype("bfloat16"), content.astype(ml_dtypes.bfloat16)),
        (array.astype("float16"), content.astype(np.float16)),
        (array[::-1], content[::-1]),
        (array[0], None),
        (array.astype("int32"), None),
    ):
        assert_taken(grad, wanted)


def assert_taken(grad: Any, wanted: np.ndarray | None) -> None:
    """Hold a gradient to the result of an array, or to being refused by name."""
    runs = []
    for given in (grad, wanted):
        variables = [np.ones((2, 3), np.float32), w()]
        optimizer = built(variables, global_clipnorm=1.0, gradient_accumulation_steps=2)
        optimizer.apply([np.ones((2, 3)), w()])
        if wanted is None:
            with unchanged(optimizer, variables), pytest.raises((TypeError, ValueError), match="0"):
                optimizer.apply([given, w()])
            return
        optimizer.apply([given, w()])
        runs.append(bits(optimizer, variables))
    assert runs[0] == runs[1]


def test_numbers_and_lists_are_gradients_but_texts_are_not() -> None:
    for grad in (2, 2.0, np.float32(2), np.array(2.0), np.float64(2)):
        variables = [np.zeros((), np.float32)]
        built(variables, learning_rate=0.5).apply([grad])
        assert variables[0] == pytest.approx(-0.5, rel=1e-5)
    for grad in ([1, 2, 3], (1.0, 2, 3), [[1], [2], [3]], [True] * 3, ["1", "2", "3"],
                 [1.0, None, 2.0], [1.0, "nan", 2.0]):  # fmt: skip
        variables = [w()]
        optimizer = built(variables)
        if grad in ([1, 2, 3], (1.0, 2, 3)):
            optimizer.apply([grad])
            assert not (variables[0] == 1.0).any()
        else:
            with unchanged(optimizer, variables), pytest.raises((TypeError, ValueError)):
                optimizer.apply([grad])


# Structures.


def test_structures_may_mix_and_nest() -> None:
    variables = {"a": [w(), (w(), {"b": w()})], "c": {}, "d": [], 7: {"e": w()}}
    optimizer = built(variables)
    assert list(optimizer.variables) == ["a/0", "a/1/0", "a/1/1/b", "7/e"]
    grads = {"c": {}, 7: {"e": w()}, "a": ([w(), [w(), {"b": w()}]]), "d": ()}
    optimizer.apply(grads)
    optimizer.apply([w()] * 4)
    assert optimizer.calls == 2
    for wrong, said in (
        ({**grads, "x": 1}, "x"),
        ({key: grad for key, grad in grads.items() if key != "c"}, "c"),
        ({**grads, "a": [w()]}, "a"),
        ({**grads, "a": w()}, "a"),
        ({**grads, 7: [w()]}, "7"),
        ([w()] * 3, "4|dict"),
        (w(), "dict|list"),
        (None, "dict|list"),
    ):
        kept = optimizer.variables.values()
        with unchanged(optimizer, kept), pytest.raises((TypeError, ValueError), match=said):
            optimizer.apply(wrong)


def test_a_flat_list_for_lists_of_lists_is_taken_where_it_can_mean_nothing_else() -> None:
    def bits_after(variables: Any, grads: Any) -> Any:
        optimizer = built(variables)
        optimizer.apply(grads)
        return bits(optimizer, optimizer.variables.values())

    one, two, three = w(), w() * -2, w() * 3
    wanted = bits_after([[w(), w()], [w()]], [[one, two], [three]])
    assert bits_after([[w(), w()], [w()]], [one, two, three]) == wanted
    optimizer = built([[w()], [w()]])
    for flat in ([one, two], [one], [one, two, three]):
        kept = optimizer.variables.values()
        with unchanged(optimizer, kept), pytest.raises(ValueError, match="grads"):
            optimizer.apply(flat)


def test_some_of_the_variables_in_any_order() -> None:
    variables, others = [w(), w(), w()], [w(), w(), w()]
    one, other = built(variables), built(others)
    with pytest.warns(UserWarning, match="for: 1"):
        one.apply([w() * 3, w() * 2], [variables[2], variables[0]])
    with pytest.warns(UserWarning, match="for: 1"):
        other.apply([w() * 2, None, w() * 3])
    assert bits(one, variables) == bits(other, others)
    with unchanged(one, variables):
        for wrong in ([w()], [w()] * 3):
            with pytest.raises(ValueError, match="2"):
                one.apply(wrong, [variables[2], variables[0]])
        with pytest.raises(ValueError, match="twice"):
            one.apply_gradients([(w(), variables[0]), (w(), variables[0])])
        with pytest.raises((TypeError, ValueError)):
            one.apply_gradients([w(), variables[0]])


def test_views_and_copies_of_a_variable_are_not_it() -> None:
    variables = [w(), w()]
    optimizer = built(variables)
    for other in (variables[0][:], variables[0].copy(), variables[0].view(), variables[0].tolist()):
        with unchanged(optimizer, variables), pytest.raises((TypeError, ValueError)):
            optimizer.apply([w()], [other])
        with unchanged(optimizer, variables), pytest.raises((TypeError, ValueError)):
            optimizer.finalize_variable_values([other])


def test_a_build_that_fails_can_be_made_good() -> None:
    good, bad = w(), w()
    bad.setflags(write=False)
    optimizer = Adam(0.5, weight_decay=1.0)
    optimizer.exclude_from_weight_decay([good])
    for build in (lambda v: optimizer.build(v), lambda v: optimizer.apply([w()] * 2, v)):
        with pytest.raises(ValueError, match="'1'"):
            build([good, bad])
    with pytest.raises((TypeError, ValueError), match="'1'"):
        optimizer.apply([w(), w(4)], [good, w()])
    optimizer.exclude_from_weight_decay(var_names=["1"])
    others = [good, w()]
    optimizer.build(others)
    optimizer.apply([w() * 0, w() * 0])
    assert all((variable == 1.0).all() for variable in others)


def test_before_the_build_there_is_nothing() -> None:
    optimizer = Adam()
    assert (optimizer.calls, optimizer.updates, optimizer.iterations) == (0, 0, 0)
    optimizer.flush()
    for action in (
        optimizer.state_dict,
        lambda: optimizer.variables,
        lambda: optimizer.finalize_variable_values(),
        lambda: optimizer.averaged().__enter__(),
    ):
        with pytest.raises(RuntimeError, match="build"):
            action()
    assert optimizer.metrics() == {"calls": 0, "updates": 0, "skipped_calls": 0}


def test_all_none_is_refused_with_an_open_window_too() -> None:
    variables = [w(), w()]
    optimizer = built(variables, gradient_accumulation_steps=2)
    optimizer.apply([w(), w()])
    for grads, given in (([None, None], None), ([None], variables[:1]), ([None] * 2, variables)):
        with unchanged(optimizer, variables), pytest.raises(ValueError, match="None for every one"):
            optimizer.apply(grads, given)


def test_warnings_that_are_errors_leave_everything_as_it_was() -> None:
    variables = [w(), w()]
    optimizer = built(variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with unchanged(optimizer, variables), pytest.raises(UserWarning, match="no gradient"):
            optimizer.apply([w(), None])


# Averages.


def averaging(**config: Any) -> tuple[list[np.ndarray], Adam]:
    variables = [w(), w(2).astype(np.float16), w().astype(ml_dtypes.bfloat16)]
    optimizer = built(variables, use_ema=True, ema_momentum=0.5, learning_rate=0.5, **config)
    for _ in range(3):
        optimizer.apply([w(), w(2), w()])
    return variables, optimizer


def test_finalizing_some_leaves_the_others() -> None:
    variables, optimizer = averaging()
    state, before = optimizer.state_dict(), [v.copy() for v in variables]
    optimizer.finalize_variable_values([variables[1]])
    assert variables[0].tobytes() == before[0].tobytes()
    assert variables[1].tobytes() == state["1/average"].astype(np.float16).tobytes()
    optimizer.finalize_variable_values({"any": {"where": variables[2]}})
    assert variables[2].tobytes() == state["2/average"].astype(ml_dtypes.bfloat16).tobytes()
    assert variables[0].tobytes() == before[0].tobytes()
    optimizer.finalize_variable_values()
    assert variables[0].tobytes() == state["0/average"].tobytes()
    with unchanged(optimizer, variables):
        for wrong in ([w()], ["9"], [variables[0], w()]):
            with pytest.raises(ValueError, match="built on"):
                optimizer.finalize_variable_values(wrong)


def test_everything_but_reading_is_refused_inside_averaged(tmp_path: Any) -> None:
    variables, optimizer = averaging(gradient_accumulation_steps=None)
    optimizer.save(tmp_path / "run")
    state = optimizer.state_dict()
    with unchanged(optimizer, variables), optimizer.averaged():
        for forbidden in (
            lambda: optimizer.apply([w(), w(2), w()]),
            lambda: optimizer.finalize_variable_values(),
            lambda: optimizer.averaged().__enter__(),
            lambda: optimizer.load_state_dict(state),
            lambda: optimizer.load(tmp_path / "run"),
        ):
            with pytest.raises(RuntimeError, match=r"averaged\(\)"):
                forbidden()
        assert bits(optimizer, []) == tuple(
            (n, a.dtype.name, a.shape, a.tobytes()) for n, a in sorted(state.items())
        )
        optimizer.metrics(), optimizer.get_config(), optimizer.learning_rate
        # What is done to the variables inside the block is forgotten.
        for variable in variables:
            variable[...] = 77
    assert optimizer.calls == 3


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_trained_values_come_back_whatever_happens(error: type[BaseException]) -> None:
    variables, optimizer = averaging()
    with unchanged(optimizer, variables), pytest.raises(error), optimizer.averaged():
        raise error
    optimizer.apply([w(), w(2), w()])


def test_averages_of_a_loss_scale_optimizer() -> None:
    variables = [w()]
    optimizer = LossScaleOptimizer(Adam(0.5, use_ema=True, ema_momentum=0.5), initial_scale=4.0)
    optimizer.build(variables)
    for _ in range(3):
        optimizer.apply([optimizer.scale_loss(w())])
    with unchanged(optimizer, variables), optimizer.averaged():
        np.testing.assert_array_equal(variables[0], optimizer.state_dict()["0/average"])
        with pytest.raises(RuntimeError, match="averaged"):
            optimizer.apply([w()])
    optimizer.finalize_variable_values()
    np.testing.assert_array_equal(variables[0], optimizer.state_dict()["0/average"])


# Gradients that are not finite.


@pytest.mark.parametrize(
    "clip", [{}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 1}]
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_skipped_call_changes_nothing_but_its_counter(clip: dict[str, Any], at: int) -> None:
    config = {**clip, "gradient_accumulation_steps": 3, "use_ema": True, "weight_decay": 0.1}
    variables, others = [w(), w(5)], [w(), w(5)]
    skipping, other = built(variables, on_nonfinite="skip", **config), built(others, **config)
    raising_variables = [w(), w(5)]
    raising = built(raising_variables, on_nonfinite="raise", **config)
    for call in range(6):
        good = [w() * (call + 1), w(5) * call]
        if call % 3 == at:
            bad = [good[0], np.array([0, 1, np.nan, 1, 0])]
            before = skipping.metrics()
            skipping.apply(bad)
            assert skipping.metrics() == {**before, "skipped_calls": before["skipped_calls"] + 1}
            kept = unchanged(raising, raising_variables)
            with kept, pytest.raises(FloatingPointError, match="for 1;"):
                raising.apply(bad)
        for optimizer in (skipping, other, raising):
            optimizer.apply(good)
    assert without_skips(skipping, variables) == without_skips(other, others)
    assert bits(raising, raising_variables) == bits(other, others)
    assert skipping.metrics()["skipped_calls"] == 2


def test_a_skipped_call_asks_the_schedule_for_the_same_rate_again() -> None:
    asked: list[int] = []

    def rate(calls: int) -> float:
        asked.append(calls)
        return 0.1

    optimizer = built([w()], learning_rate=rate, on_nonfinite="skip")
    for gradient in (1.0, np.inf, 1.0, np.nan, 1.0):
        optimizer.apply([w() * gradient])
    assert asked == [0, 1, 1, 2, 2]


def test_a_sum_that_overflows_is_not_finite() -> None:
    variables = [w()]
    largest = np.full(3, 3e38, np.float32)
    optimizer = built(variables, gradient_accumulation_steps=2, on_nonfinite="skip")
    optimizer.apply([largest])
    kept = without_skips(optimizer, variables)
    optimizer.apply([largest])
    assert without_skips(optimizer, variables) == kept
    optimizer.apply([-largest])
    assert optimizer.updates == 1


def without_skips(optimizer: Adam, variables: list[np.ndarray]) -> list[Any]:
    """The bits of everything but the number of skipped calls."""
    return [one for one in bits(optimizer, variables) if "skipped" not in one[0]]


# Configurations.


def test_configurations_made_by_keras() -> None:
    # As keras.optimizers.Adam(...).get_config() of Keras 3 writes it.
    config = {
        "name": "adam", "learning_rate": 0.10000000149011612, "weight_decay": None,
        "clipnorm": None, "global_clipnorm": 2.0, "clipvalue": None, "use_ema": True,
        "ema_momentum": 0.9, "ema_overwrite_frequency": None, "loss_scale_factor": None,
        "gradient_accumulation_steps": 2, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-7,
        "amsgrad": True,
    }  # fmt: skip
    kept = dict(config)
    optimizer = Adam.from_config(config)
    assert config == kept
    assert {name: optimizer.get_config()[name] for name in config} == config
    schedule = {
        "module": "keras.optimizers.schedules",
        "class_name": "ExponentialDecay",
        "config": {"initial_learning_rate": 0.5, "decay_steps": 10, "decay_rate": 0.5,
                   "staircase": False, "name": "ExponentialDecay"},
        "registered_name": None,
    }  # fmt: skip
    scheduled = Adam.from_config({**config, "learning_rate": schedule})
    assert scheduled.learning_rate == 0.5
    scaled = {
        "name": "loss_scale_optimizer", "inner_optimizer": {
            "module": "keras.optimizers", "class_name": "Adam", "config": config,
            "registered_name": None,
        },
        "initial_scale": 64.0, "dynamic_growth_steps": 5, "learning_rate": 0.0,
        "weight_decay": None, "clipnorm": None, "global_clipnorm": None, "clipvalue": None,
        "use_ema": False,
        "ema_momentum": 0.99, "ema_overwrite_frequency": None, "loss_scale_factor": None,
        "gradient_accumulation_steps": None,
    }  # fmt: skip
    wrapped = LossScaleOptimizer.from_config(scaled)
    assert wrapped.scale == 64.0
    assert wrapped.inner_optimizer.get_config() == optimizer.get_config()


def test_a_configuration_is_complete() -> None:
    arguments: dict[str, Any] = {
        "learning_rate": CosineDecay(0.2, 30), "beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3,
        "amsgrad": True, "weight_decay": 0.2, "global_clipnorm": 3.0, "use_ema": True,
        "ema_momentum": 0.7, "ema_overwrite_frequency": 3, "loss_scale_factor": 2.0,
        "gradient_accumulation_steps": 2, "name": "mine", "epsilon_hat": False,
        "on_nonfinite": "skip",
    }  # fmt: skip
    optimizer = Adam(**arguments)
    optimizer.exclude_from_weight_decay(var_names=["0"])
    again = Adam.from_config(optimizer.get_config())
    plain = Adam().get_config()
    config = optimizer.get_config()
    assert all(config[name] != plain[name] for name in arguments)
    runs = []
    for one in (optimizer, again):
        variables = [w(), w()]
        one.build(variables)
        for call in range(7):
            one.apply([w() * call, w() * (3 - call)])
        runs.append(bits(one, variables))
    assert runs[0] == runs[1]
    assert again.get_config() == config


def test_changing_a_configuration_changes_no_optimizer() -> None:
    optimizer = Adam(CosineDecay(0.1, 10), weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    config, kept = optimizer.get_config(), optimizer.get_config()
    config["learning_rate"]["config"]["initial_learning_rate"] = 9
    config["exclude_from_weight_decay"]["substrings"].append("kernel")
    config["beta_1"] = 0.1
    assert optimizer.get_config() == kept


# Windows.


def test_the_learning_rate_of_a_window_is_that_of_its_last_call() -> None:
    variables, others = [w()], [w()]
    optimizer = built(variables, learning_rate=0.5, gradient_accumulation_steps=2)
    optimizer.apply([w()])
    optimizer.learning_rate = 0.125
    optimizer.apply([w()])
    built(others, learning_rate=0.125).apply([w()])
    np.testing.assert_array_equal(variables[0], others[0])
    assert optimizer.metrics()["learning_rate"] == 0.125


def test_flush_keeps_to_what_a_call_does() -> None:
    variables = [w(), w()]
    optimizer = built(
        variables, gradient_accumulation_steps=4, use_ema=True, ema_overwrite_frequency=1,
        ema_momentum=0.5, global_clipnorm=1e-3, on_nonfinite="raise",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="for: 1"):
        optimizer.apply([w(), None])
    optimizer.flush()
    state = optimizer.state_dict()
    assert (state["0/updates"], state["1/updates"]) == (1, 0)
    assert optimizer.metrics()["gradient_norm"] == pytest.approx(3**0.5)
    assert state["adam/accumulated_calls"] == 0
    with unchanged(optimizer, variables):
        optimizer.flush()
    for _ in range(4):
        optimizer.apply([w(), w()])
    assert (optimizer.calls, optimizer.updates) == (5, 2)


def test_metrics_cost_nothing_and_lie_nowhere() -> None:
    optimizer = built([w()], learning_rate=0.5, gradient_accumulation_steps=2, clipnorm=0.5)
    optimizer.apply([w()])
    assert "gradient_norm" not in optimizer.metrics()
    optimizer.learning_rate = 0.25
    assert optimizer.metrics()["learning_rate"] == 0.5
    optimizer.apply([w() * 3])
    metrics = optimizer.metrics()
    assert metrics["gradient_norm"] == pytest.approx(2 * 3**0.5)
    assert metrics["clip_scale"] == pytest.approx(0.25 / 3**0.5)
    assert all(type(value) in (int, float) for value in metrics.values())
    metrics["calls"] = 77
    assert optimizer.calls == optimizer.metrics()["calls"] == 2


def test_a_callable_that_fails_changes_nothing() -> None:
    variables, broken = [w()], []

    def rate() -> float:
        if broken:
            raise ZeroDivisionError
        return 0.1

    optimizer = built(variables, learning_rate=rate, gradient_accumulation_steps=2, beta_1=rate)
    optimizer.apply([w()])
    broken.append(True)
    before = bits(optimizer, variables), optimizer.calls
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            optimizer.apply([w()])
        with pytest.raises(ZeroDivisionError):
            optimizer.flush()
    assert (bits(optimizer, variables), optimizer.calls) == before


def test_an_optimizer_is_not_entered_twice() -> None:
    variables: list[np.ndarray] = [w()]
    again: list[Any] = []

    def rate() -> float:
        if again:
            optimizer.apply([again.pop()])
        return 0.1

    optimizer = built(variables, learning_rate=rate)
    others = [w()]
    plain = built(others, learning_rate=0.1)
    again.append(w() * 2)
    try:
        optimizer.apply([w()])
    except RuntimeError:
        assert optimizer.calls in (0, 1)
        return
    # Or it is: then both calls have to have happened, one after the other.
    plain.apply([w() * 2])
    plain.apply([w()])
    assert optimizer.calls == 2
    assert variables[0].tobytes() == others[0].tobytes()

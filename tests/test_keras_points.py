"""Where Keras contradicts its own documentation: one test for each point, in the NumPy door.

The points are those that docs/definition.md marks "Keras differs". Not here, because they have a
meaning in another door only:

- callables frozen when a step is traced (JAX, TensorFlow); what NumPy can show of it is here;
- the order of constraint, average, overwrite and finalize (Keras);
- sparse gradients with repeated indices (torch, TensorFlow);
- finalizing and fitting again on every backend (Keras); what NumPy can show of it is here;
- a schedule's arithmetic on a framework's scalar, such as `0.1 / (step + 1)` on TensorFlow's
  (Keras, TensorFlow); what NumPy can show of it is here.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from oneadam.numpy import Adam, LossScaleOptimizer
from oneadam.schedules import CosineDecay, LearningRateSchedule


def ones(count: int = 1, dtype: Any = np.float32) -> list[np.ndarray]:
    """`count` variables of three ones each."""
    return [np.ones(3, dtype) for _ in range(count)]


def moved(gradient: float, dtype: Any = np.float32, calls: int = 1, **config: Any) -> float:
    """How far one variable that starts at 1 moves under a constant gradient."""
    variable = np.ones(1, dtype)
    optimizer = Adam(**config)
    optimizer.build([variable])
    for _ in range(calls):
        optimizer.apply([np.full(1, gradient, dtype)])
    return float(variable[0]) - 1.0


def test_betas_may_be_callables() -> None:
    plain = moved(0.3, calls=3, beta_1=0.8, beta_2=0.99)
    assert moved(0.3, calls=3, beta_1=lambda: 0.8, beta_2=lambda: 0.99) == plain != 0.0


def test_callables_are_asked_once_on_every_call() -> None:
    asked = {"learning_rate": 0, "beta_1": 0, "beta_2": 0}

    def count(name: str, number: float) -> Any:
        def ask() -> float:
            asked[name] += 1
            return number

        return ask

    optimizer = Adam(
        count("learning_rate", 0.1),
        count("beta_1", 0.9),
        count("beta_2", 0.99),
        gradient_accumulation_steps=2,
    )
    optimizer.build(ones())
    before = dict(asked)
    for _ in range(3):
        optimizer.apply(ones())
    assert {name: asked[name] - before[name] for name in asked} == dict.fromkeys(asked, 3)


def test_a_callable_learning_rate_is_not_frozen() -> None:
    rates = {"now": 0.0}
    variables = ones()
    optimizer = Adam(lambda: rates["now"])
    optimizer.build(variables)
    optimizer.apply(ones())
    assert (variables[0] == 1.0).all()
    rates["now"] = 0.25
    optimizer.apply(ones())
    assert variables[0] == pytest.approx(0.75, abs=1e-6)


def test_the_average_stands_still_while_gradients_accumulate() -> None:
    optimizer = Adam(0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2)
    optimizer.build(ones())
    for _ in range(4):
        optimizer.apply(ones())
    average = optimizer.state_dict()["0/average"]
    optimizer.apply(ones())
    np.testing.assert_array_equal(optimizer.state_dict()["0/average"], average)


def test_the_average_starts_at_the_value_of_the_first_update() -> None:
    variables = ones()
    optimizer = Adam(0.1, use_ema=True, gradient_accumulation_steps=2)
    optimizer.build(variables)
    optimizer.apply(ones())
    optimizer.apply(ones())
    np.testing.assert_array_equal(optimizer.state_dict()["0/average"], variables[0])


def test_nothing_moves_while_gradients_accumulate() -> None:
    variables = ones()
    optimizer = Adam(0.1, weight_decay=0.5, gradient_accumulation_steps=2)
    optimizer.build(variables)
    optimizer.apply(ones())
    state = optimizer.state_dict()
    assert (variables[0] == 1.0).all()
    assert not state["0/momentum"].any()
    assert not state["0/velocity"].any()


def test_a_nan_leaves_the_accumulator_with_its_window() -> None:
    optimizer = Adam(gradient_accumulation_steps=2)
    optimizer.build(ones())
    optimizer.apply([np.full(3, np.nan, np.float32)])
    optimizer.apply(ones())
    np.testing.assert_array_equal(optimizer.state_dict()["0/gradient_accumulator"], np.zeros(3))


def test_excluding_from_decay_after_build_is_an_error() -> None:
    optimizer = Adam(weight_decay=0.1)
    optimizer.build(ones())
    with pytest.raises((ValueError, RuntimeError), match="build"):
        optimizer.exclude_from_weight_decay(var_names=["0"])


def test_exclusions_name_parts_of_the_full_name_or_patterns() -> None:
    names = ("block/bias", "block/kernel", "head/kernel")
    variables = {name: np.ones(1, np.float32) for name in names}
    optimizer = Adam(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", re.compile("^head")])
    optimizer.build(variables)
    optimizer.apply({name: np.zeros(1, np.float32) for name in names})
    assert variables["block/bias"] == 1.0
    assert variables["head/kernel"] == 1.0
    assert variables["block/kernel"] == pytest.approx(0.95)


def test_a_layer_unfrozen_late_takes_steps_of_the_learning_rate() -> None:
    early, late = variables = ones(2)
    optimizer = Adam(0.01)
    optimizer.build(variables)
    with pytest.warns(UserWarning, match="1"):
        optimizer.apply([np.ones(3), None])
    for _ in range(999):
        optimizer.apply([np.ones(3), None])
    optimizer.apply([np.ones(3), np.ones(3)])
    assert late == pytest.approx(0.99, abs=1e-6)
    assert early != pytest.approx(0.99, abs=1e-6)


def test_the_average_is_overwritten_by_updates_not_calls() -> None:
    variables = ones()
    optimizer = Adam(
        0.1,
        use_ema=True,
        ema_momentum=0.5,
        ema_overwrite_frequency=2,
        gradient_accumulation_steps=2,
    )
    optimizer.build(variables)
    overwritten = []
    for call in range(1, 9):
        optimizer.apply(ones())
        if call % 2 == 0:
            average = optimizer.state_dict()["0/average"]
            overwritten.append(bool((average == variables[0]).all()))
    # Update 1 starts the average at the value, updates 2 and 4 overwrite the value with it.
    assert overwritten == [True, True, False, True]


def test_finalizing_goes_by_identity_not_by_position() -> None:
    first, second = variables = ones(2)
    optimizer = Adam(0.1, use_ema=True, ema_momentum=0.9)
    optimizer.build(variables)
    for _ in range(3):
        optimizer.apply([np.ones(3), -np.ones(3)])
    untouched = first.copy()
    average = optimizer.state_dict()["1/average"]
    optimizer.finalize_variable_values([second])
    np.testing.assert_array_equal(first, untouched)
    np.testing.assert_array_equal(second, average)


@pytest.mark.parametrize("use_ema", [False, True])
def test_finalizing_without_an_average_changes_nothing(use_ema: bool) -> None:
    variables = ones()
    optimizer = Adam(use_ema=use_ema)
    optimizer.build(variables)
    optimizer.finalize_variable_values(variables)
    assert (variables[0] == 1.0).all()
    if not use_ema:
        optimizer.apply(ones())
        value = variables[0].copy()
        optimizer.finalize_variable_values(variables)
        np.testing.assert_array_equal(variables[0], value)


def test_training_goes_on_after_finalizing() -> None:
    variables = ones()
    optimizer = Adam(0.1, use_ema=True)
    optimizer.build(variables)
    optimizer.apply(ones())
    optimizer.apply(ones())
    optimizer.finalize_variable_values(variables)
    final = variables[0].copy()
    optimizer.apply(ones())
    assert (variables[0] < final).all()
    assert optimizer.updates == 3


def test_bfloat16_variables_move() -> None:
    assert moved(1.0, ml_dtypes.bfloat16, learning_rate=0.01) == 253 / 256 - 1.0


def test_bfloat16_variables_keep_moving() -> None:
    distance = moved(1.0, ml_dtypes.bfloat16, calls=100, learning_rate=0.01)
    assert distance == pytest.approx(-1.0, abs=0.25)


def test_float16_variables_take_steps_of_the_learning_rate() -> None:
    # A gradient whose square float16 cannot hold: its velocity would be 0 or far too small.
    assert moved(1e-4, np.float16, learning_rate=0.01) == pytest.approx(-0.01, abs=2.0**-11)


def test_narrow_variables_have_float32_state() -> None:
    optimizer = Adam(use_ema=True, amsgrad=True, gradient_accumulation_steps=2)
    optimizer.build({"w": np.ones(3, ml_dtypes.bfloat16)})
    optimizer.apply({"w": np.ones(3)})
    optimizer.apply({"w": np.ones(3)})
    state = optimizer.state_dict()
    entries = ("momentum", "velocity", "velocity_hat", "average", "gradient_accumulator")
    assert {state[f"w/{entry}"].dtype.name for entry in entries} == {"float32"}


def test_each_variable_of_a_mixed_list_follows_its_own_dtype() -> None:
    variables = [np.ones(1, np.float16), np.ones(1, np.float64)]
    optimizer = Adam(0.01, epsilon=1e-12)
    optimizer.build(variables)
    optimizer.apply([np.ones(1), np.ones(1)])
    assert optimizer.state_dict()["1/momentum"].dtype == np.float64
    assert variables[1][0] == pytest.approx(0.99, rel=1e-12)


def test_the_documented_warm_up_with_integers_warms_up() -> None:
    schedule = CosineDecay(0, 1000, warmup_target=0.1, warmup_steps=1000)
    assert schedule(500) == pytest.approx(0.05)
    optimizer = Adam(schedule)
    optimizer.build(ones())
    for _ in range(100):
        optimizer.apply(ones())
    assert optimizer.learning_rate == pytest.approx(0.01)


def test_a_schedule_may_divide_by_the_step() -> None:
    class Hyperbola(LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return 0.1 / (step + 1)

        def get_config(self) -> dict[str, Any]:
            return {}

    variables = ones()
    optimizer = Adam(Hyperbola())
    optimizer.build(variables)
    optimizer.apply(ones())
    optimizer.apply(ones())
    assert variables[0] == pytest.approx(1 - 0.1 - 0.05, abs=1e-6)


def scaled(**config: Any) -> tuple[LossScaleOptimizer, list[np.ndarray]]:
    """A built loss scale optimizer and its variables."""
    variables = ones()
    options = {
        key: config.pop(key) for key in ("initial_scale", "dynamic_growth_steps") if key in config
    }
    optimizer = LossScaleOptimizer(Adam(**config), **options)
    optimizer.build(variables)
    return optimizer, variables


def test_the_loss_scale_never_reaches_infinity() -> None:
    optimizer, _ = scaled(initial_scale=2.0**126, dynamic_growth_steps=1)
    for _ in range(4):
        optimizer.apply(ones())
    assert optimizer.scale == 2.0**127


def test_the_loss_scale_never_reaches_zero_and_recovers() -> None:
    optimizer, _ = scaled(initial_scale=4.0, dynamic_growth_steps=1)
    for _ in range(10):
        optimizer.apply([np.full(3, math.inf)])
    assert optimizer.scale == 1.0
    optimizer.apply(ones())
    assert optimizer.scale == 2.0


def test_many_skipped_calls_in_a_row_warn() -> None:
    optimizer, _ = scaled()
    for _ in range(49):
        optimizer.apply([np.full(3, math.nan)])
    with pytest.warns(UserWarning, match="50"):
        optimizer.apply([np.full(3, math.nan)])


def test_the_wrapper_takes_exclusions_to_the_inner_optimizer() -> None:
    variables = ones()
    optimizer = LossScaleOptimizer(Adam(0.1, weight_decay=0.5))
    optimizer.exclude_from_weight_decay(var_names=["0"])
    optimizer.build(variables)
    optimizer.apply([np.zeros(3)])
    assert (variables[0] == 1.0).all()


def test_the_wrapper_takes_the_learning_rate_to_the_inner_optimizer() -> None:
    optimizer, variables = scaled()
    optimizer.learning_rate = 0.25
    assert optimizer.learning_rate == optimizer.inner_optimizer.learning_rate == 0.25
    optimizer.apply([np.full(3, optimizer.scale)])
    assert variables[0] == pytest.approx(0.75, abs=1e-6)


def test_the_wrapper_takes_finalizing_to_the_inner_optimizer() -> None:
    optimizer, variables = scaled(learning_rate=0.1, use_ema=True)
    optimizer.apply(ones())
    optimizer.apply(ones())
    average = optimizer.state_dict()["0/average"]
    assert (variables[0] != average).all()
    optimizer.finalize_variable_values(variables)
    np.testing.assert_array_equal(variables[0], average)


def test_the_wrapper_keeps_the_inner_config() -> None:
    inner = Adam(0.1, beta_1=0.8, weight_decay=0.01)
    inner.exclude_from_weight_decay(var_names=["bias"])
    config = LossScaleOptimizer(inner, 8.0, dynamic_growth_steps=5).get_config()
    again = LossScaleOptimizer.from_config(config)
    assert again.inner_optimizer.get_config() == inner.get_config()
    assert again.get_config() == config


def test_the_wrapper_keeps_the_inner_state(tmp_path: Path) -> None:
    optimizer, _ = scaled(gradient_accumulation_steps=2, initial_scale=16.0)
    optimizer.apply(ones())
    optimizer.apply(ones())
    optimizer.apply([np.full(3, math.inf)])
    optimizer.save(tmp_path / "state.safetensors")
    again, _ = scaled(gradient_accumulation_steps=2, initial_scale=2.0)
    again.load(tmp_path / "state.safetensors")
    before, after = optimizer.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert again.scale == 8.0
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_state_is_matched_by_name_not_by_position() -> None:
    trained = Adam()
    trained.build({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)})
    trained.apply({"a": np.ones(3), "b": np.full(3, 5.0)})
    other = Adam()
    other.build({"b": np.ones(3, np.float32), "a": np.ones(3, np.float32)})
    other.load_state_dict(trained.state_dict())
    for name in ("a/momentum", "b/momentum", "a/velocity", "b/velocity"):
        np.testing.assert_array_equal(other.state_dict()[name], trained.state_dict()[name])
    assert trained.state_dict()["a/momentum"][0] != trained.state_dict()["b/momentum"][0]


def test_state_of_other_names_is_refused_before_anything_is_written() -> None:
    trained, other = Adam(), Adam()
    trained.build({"a": np.ones(3, np.float32)})
    trained.apply({"a": np.ones(3)})
    other.build({"b": np.ones(3, np.float32)})
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"(?s)(b/momentum.*a/momentum|a/momentum.*b/momentum)"):
        other.load_state_dict(trained.state_dict())
    for name, array in before.items():
        np.testing.assert_array_equal(other.state_dict()[name], array)

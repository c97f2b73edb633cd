"""The arguments of the optimizer: what is refused, what is taken, and as a dict and back."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneadam._hyperparameters import (
    Hyperparameters,
    check_compute_dtype,
    from_config,
    learning_rate_now,
    now,
    to_config,
    with_learning_rate,
)
from oneadam.schedules import CosineDecay, InverseTimeDecay, LearningRateSchedule

NAN, INF = math.nan, math.inf
NOT_NUMBERS = ["0.1", b"0.1", 1j, [0.1], (0.1,), {}, True, False, np.True_, np.array(True)]
NOT_SCALARS = [np.ones(1), np.ones(2), np.array(1j), np.array("0.1"), np.array(None)]
CLASSES = [float, CosineDecay]
TYPE = NOT_NUMBERS + NOT_SCALARS

WRONG_TYPE: dict[str, list[Any]] = {
    "learning_rate": [*TYPE, *CLASSES, None, object()],
    "beta_1": [*TYPE, *CLASSES, None, InverseTimeDecay(0.9, 1, 1), lambda calls: 0.9],
    "beta_2": [*TYPE, *CLASSES, None, lambda calls: 0.9],
    "epsilon": [*TYPE, None, lambda: 1e-7],
    "amsgrad": [0, 1, None, "True", np.int64(1), np.array(1), np.array([True])],
    "weight_decay": [*TYPE, lambda: 0.1],
    "clipnorm": [*TYPE],
    "clipvalue": [*TYPE],
    "global_clipnorm": [*TYPE],
    "use_ema": [0, 1, None, "False", 0.0],
    "ema_momentum": [*TYPE, None],
    "ema_overwrite_frequency": [*TYPE, 1.0, np.float32(2), Fraction(2)],
    "loss_scale_factor": [*TYPE],
    "gradient_accumulation_steps": [*TYPE, 1.0, 2.5, np.array(4.0)],
    "name": [None, 3, b"adam", ["adam"]],
    "epsilon_hat": [0, 1, None],
    "on_nonfinite": [None, True, 0, ["skip"]],
}
OUT_OF_RANGE: dict[str, list[Any]] = {
    "learning_rate": [-1e-300, -1, NAN, INF, -INF, 10**400, np.array(NAN)],
    "beta_1": [-1e-300, 1, 1.0, 2, NAN, INF, np.float32(1.0)],
    "beta_2": [-0.1, 1.0, NAN, INF],
    "epsilon": [0, 0.0, -1e-7, 2.2e-308, 5e-324, NAN, INF],
    "weight_decay": [-1e-300, -1, NAN, INF],
    "clipnorm": [0, 0.0, -1, -INF, NAN],
    "clipvalue": [0, -1.0, -INF, NAN],
    "global_clipnorm": [0, -1.0, -INF, NAN],
    "ema_momentum": [-1e-300, 1.0000001, NAN, INF],
    "ema_overwrite_frequency": [0, -1],
    "loss_scale_factor": [0, -1.0, NAN, INF],
    "gradient_accumulation_steps": [0, -4],
    "name": [""],
    "on_nonfinite": ["", "Skip", "ignore"],
}
BORDERS: dict[str, list[Any]] = {
    "learning_rate": [0, 0.0, 5e-324, 1, 1e308, Fraction(1, 8), np.float16(0.5), np.array(2)],
    "beta_1": [0, 0.0, math.nextafter(1.0, 0.0), np.float64(0.9), np.array(0.5)],
    "beta_2": [0, 0.9999999, ml_dtypes.bfloat16(0.5)],
    "epsilon": [sys.float_info.min, 1, 1e308],
    "weight_decay": [None, 0, 0.004, 1e308],
    "clipnorm": [None, 5e-324, 1, INF],
    "clipvalue": [None, 5e-324, 1, INF],
    "global_clipnorm": [None, 5e-324, 1, INF],
    "ema_momentum": [0, 1, 0.5],
    "loss_scale_factor": [None, 5e-324, 2**15, 1e308],
}


def without_address(value: Any) -> str:
    """What a value looks like in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(argument, value, id=f"{argument}-{without_address(value)}")
        for argument, values in table.items()
        for value in values
    ]


def shows(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)[:150]


@pytest.mark.parametrize(("argument", "value"), cases(WRONG_TYPE))
def test_a_value_of_the_wrong_type_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{argument} must be .*received ") as caught:
        Hyperparameters(**{argument: value})
    assert shows(value) in str(caught.value)
    assert re.search(r"Pass |Wrap ", str(caught.value))


@pytest.mark.parametrize(("argument", "value"), cases(OUT_OF_RANGE))
def test_a_value_out_of_range_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be .*received ") as caught:
        Hyperparameters(**{argument: value})
    assert shows(value) in str(caught.value)
    assert "Pass " in str(caught.value)


def test_every_argument_has_its_refusals() -> None:
    assert set(WRONG_TYPE) == set(to_config(Hyperparameters()))


@pytest.mark.parametrize(("argument", "value"), cases(BORDERS))
def test_the_borders_are_inside_and_numbers_become_floats(argument: str, value: Any) -> None:
    held = getattr(Hyperparameters(**{argument: value}), argument)
    if value is None:
        assert held is None
    else:
        assert type(held) is float
        assert held == float(value)


@pytest.mark.parametrize("argument", ["ema_overwrite_frequency", "gradient_accumulation_steps"])
@pytest.mark.parametrize("value", [1, 2**40, np.int8(3), np.array(4), np.uint64(5)])
def test_counts_become_ints(argument: str, value: Any) -> None:
    held = getattr(Hyperparameters(**{argument: value}), argument)
    assert type(held) is int
    assert held == int(value)


@pytest.mark.parametrize("argument", ["amsgrad", "use_ema", "epsilon_hat"])
@pytest.mark.parametrize("value", [np.True_, np.array(False)])
def test_flags_become_bools(argument: str, value: Any) -> None:
    assert getattr(Hyperparameters(**{argument: value}), argument) is bool(value)


@pytest.mark.parametrize("framework", ["torch", "jax.numpy", "array_api_strict"])
def test_scalars_of_every_framework_become_floats(framework: str) -> None:
    xp = pytest.importorskip(framework, reason=f"{framework} is not installed")
    h = Hyperparameters(
        learning_rate=xp.asarray(0.1, dtype=xp.float32),
        beta_1=xp.asarray(0.5, dtype=xp.float32),
        clipnorm=xp.asarray(3),
        amsgrad=xp.asarray(True),
        ema_overwrite_frequency=xp.asarray(7),
    )
    assert h.learning_rate == float(np.float32(0.1))
    assert (h.beta_1, h.clipnorm) == (0.5, 3.0)
    assert [type(x) for x in (h.learning_rate, h.beta_1, h.clipnorm)] == [float] * 3
    assert (h.amsgrad, type(h.ema_overwrite_frequency)) == (True, int)
    for wrong in (xp.ones(1), xp.ones((2, 2)), xp.asarray(True)):
        with pytest.raises(TypeError, match=r"^learning_rate must be"):
            Hyperparameters(learning_rate=wrong)
    with pytest.raises(ValueError, match=r"^learning_rate must be"):
        Hyperparameters(learning_rate=xp.asarray(NAN))


def test_a_parameter_that_needs_gradients_is_a_number() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    parameter = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.bfloat16))
    assert Hyperparameters(learning_rate=parameter).learning_rate == 0.5


def test_a_traced_number_is_refused_with_a_way_out() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with pytest.raises(TypeError, match=r"^learning_rate must be .*traced.*callable"):
        jax.jit(lambda x: Hyperparameters(learning_rate=x).epsilon)(0.1)


def test_at_most_one_kind_of_clipping() -> None:
    with pytest.raises(ValueError, match=r"At most one .*clipnorm=1.0, global_clipnorm=inf"):
        Hyperparameters(clipnorm=1, global_clipnorm=INF)


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="lerning_rate"):
        Hyperparameters(lerning_rate=0.1)  # type: ignore[call-arg]


def test_hyperparameters_are_values() -> None:
    h = Hyperparameters(learning_rate=CosineDecay(1, 10), beta_1=0)
    assert h == Hyperparameters(learning_rate=CosineDecay(1.0, 10), beta_1=0.0)
    assert h != Hyperparameters(learning_rate=CosineDecay(1, 11), beta_1=0)
    assert h == copy.deepcopy(h) == pickle.loads(pickle.dumps(h))
    with pytest.raises(AttributeError):
        h.epsilon = 1.0  # type: ignore[misc]


class Foreign:
    """A schedule object of another library."""

    def __call__(self, count: Any, scale: float = 1.0) -> Any:
        return np.float32(scale / (count + 1))


class Clock:
    def rate(self) -> float:
        return 0.125

    def at(self, calls: int) -> float:
        return 1.0 / (calls + 1)

    @staticmethod
    def alone() -> float:
        return 0.25

    __call__ = at


def scaled(calls: int, factor: float) -> float:
    return factor / (calls + 1)


@pytest.mark.parametrize(
    ("learning_rate", "at_three"),
    [
        (0.5, 0.5),
        (lambda: 0.5, 0.5),
        (lambda calls: calls / 4, 0.75),
        (lambda *, rate=0.5: rate, 0.5),
        (lambda calls, rate=2.0: rate * calls, 6.0),
        (Clock().rate, 0.125),
        (Clock().at, 0.25),
        (Clock(), 0.25),
        (Clock.alone, 0.25),
        (Foreign(), 0.25),
        (functools.partial(scaled, factor=2.0), 0.5),
        (functools.partial(scaled, 1, 3.0), 1.5),
        (InverseTimeDecay(1, 1, 1), 0.25),
        (lambda: 1, 1.0),
        (lambda: np.array(0.25), 0.25),
    ],
)
def test_a_callable_gets_the_calls_if_it_has_a_place_for_them(
    learning_rate: Any, at_three: float
) -> None:
    h = Hyperparameters(learning_rate=learning_rate)
    rates = now(h, 3)
    assert rates == (at_three, 0.9, 0.999)
    assert [type(rate) for rate in rates] == [float] * 3
    assert learning_rate_now(h, 3) == at_three


def test_a_jitted_schedule_gets_the_calls() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    assert now(Hyperparameters(learning_rate=jax.jit(lambda count: 1 / (count + 1))), 3)[0] == 0.25


def anything(*args: Any, **kwargs: Any) -> float:
    return 0.1


@pytest.mark.parametrize(
    "learning_rate",
    [
        lambda rate=0.1: rate,
        lambda *args: 0.1,
        anything,
        functools.partial(anything),
        lambda a, b: a,
        lambda *, needed: needed,
        max,
    ],
)
def test_a_callable_whose_meaning_is_unclear_is_refused(learning_rate: Any) -> None:
    with pytest.raises(TypeError, match=r"^learning_rate must be .*Wrap it.*lambda"):
        Hyperparameters(learning_rate=learning_rate)


def test_a_beta_may_have_arguments_with_defaults() -> None:
    assert now(Hyperparameters(beta_1=lambda beta=0.5: beta), 3).beta_1 == 0.5


def test_callables_are_evaluated_once_a_call_and_never_before() -> None:
    seen: list[Any] = []

    def record(what: str, value: float) -> float:
        seen.append(what)
        return value

    h = Hyperparameters(
        learning_rate=lambda calls: record(f"lr {calls}", 0.1),
        beta_1=lambda: record("beta_1", 0.5),
        beta_2=lambda: record("beta_2", 0.75),
    )
    assert seen == []
    assert now(h, 7) == (0.1, 0.5, 0.75)
    assert sorted(seen) == ["beta_1", "beta_2", "lr 7"]


@pytest.mark.parametrize(
    ("argument", "function", "error"),
    [
        ("learning_rate", lambda calls: -1.0, ValueError),
        ("learning_rate", lambda: NAN, ValueError),
        ("learning_rate", lambda: INF, ValueError),
        ("learning_rate", lambda: None, TypeError),
        ("learning_rate", lambda: True, TypeError),
        ("learning_rate", lambda: np.ones(1), TypeError),
        ("beta_1", lambda: 1.0, ValueError),
        ("beta_2", lambda: NAN, ValueError),
        ("beta_2", lambda: "0.9", TypeError),
    ],
)
def test_what_a_callable_returns_is_checked_like_a_number(
    argument: str, function: Callable[..., Any], error: type[Exception]
) -> None:
    h = Hyperparameters(**{argument: function})
    with pytest.raises(error, match=rf"^{argument} must be .*returned by .*lambda"):
        now(h, 3)


def test_the_error_of_a_schedule_names_the_call() -> None:
    with pytest.raises(ValueError, match=r"received -2 .*at call 5\. Pass"):
        now(Hyperparameters(learning_rate=lambda calls: 3 - calls), 5)


def test_a_new_learning_rate_is_checked_and_leaves_the_rest() -> None:
    h = Hyperparameters(learning_rate=lambda calls: 0.1, epsilon=1e-3)
    changed = with_learning_rate(h, np.float32(0.5))
    assert (changed.learning_rate, changed.epsilon, changed.takes_calls) == (0.5, 1e-3, False)
    assert with_learning_rate(changed, CosineDecay(1, 10)).takes_calls
    assert h.takes_calls
    with pytest.raises(ValueError, match=r"^learning_rate"):
        with_learning_rate(h, -1)


@pytest.mark.parametrize("dtype", ["float32", np.dtype("float32"), np.float32])
@pytest.mark.parametrize("argument", ["epsilon", "loss_scale_factor"])
def test_a_number_that_float32_would_lose_is_refused_for_float32(argument: str, dtype: Any) -> None:
    smallest, largest = (float(x) for x in (np.finfo("f4").tiny, np.finfo("f4").max))
    for fine in (smallest, largest, 1e-7):
        check_compute_dtype(Hyperparameters(**{argument: fine}), dtype, "w")
    for lost in (math.nextafter(smallest, 0), 1e-45, math.nextafter(largest, INF)):
        h = Hyperparameters(**{argument: lost})
        check_compute_dtype(h, "float64", "w")
        message = f"^{argument} must be .*float32.*'w'.*received {re.escape(repr(lost))}"
        with pytest.raises(ValueError, match=message):
            check_compute_dtype(h, dtype, "w")


KERAS_ADAM = {
    "name": "adam",
    "learning_rate": 0.0010000000474974513,
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-07,
    "amsgrad": False,
}


def test_the_configuration_has_keras_keys_in_keras_order_and_then_ours() -> None:
    assert list(to_config(Hyperparameters())) == [*KERAS_ADAM, "epsilon_hat", "on_nonfinite"]


def test_numbers_stay_what_they_are() -> None:
    config = to_config(Hyperparameters(learning_rate=0.1, clipnorm=1, beta_1=np.array(0.5)))
    text = json.dumps(config, allow_nan=False)
    assert '"learning_rate": 0.1,' in text
    assert '"beta_1": 0.5,' in text


finite = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
positive = st.floats(min_value=0, exclude_min=True, allow_nan=False)
below_one = st.floats(min_value=0, max_value=1, exclude_max=True)
optional_count = st.one_of(st.none(), st.integers(min_value=1))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.text(min_size=1),
            "learning_rate": st.one_of(
                finite,
                st.builds(InverseTimeDecay, finite, st.integers(1, 9), finite, st.booleans()),
                st.builds(CosineDecay, finite, st.integers(1, 9), warmup_target=finite),
            ),
            "weight_decay": st.one_of(st.none(), finite),
            "use_ema": st.booleans(),
            "ema_momentum": st.floats(0, 1),
            "ema_overwrite_frequency": optional_count,
            "loss_scale_factor": st.floats(min_value=1e-300, allow_infinity=False),
            "gradient_accumulation_steps": optional_count,
            "beta_1": below_one,
            "beta_2": below_one,
            "epsilon": st.floats(min_value=sys.float_info.min, allow_infinity=False),
            "amsgrad": st.booleans(),
            "epsilon_hat": st.booleans(),
            "on_nonfinite": st.sampled_from(["propagate", "skip", "raise"]),
        },
    ),
    st.sampled_from(["clipnorm", "clipvalue", "global_clipnorm"]),
    st.one_of(st.none(), positive),
)
def test_a_configuration_round_trips_exactly_through_json(
    arguments: dict[str, Any], clip: str, bound: float | None
) -> None:
    h = Hyperparameters(**arguments, **{clip: bound})
    config = to_config(h)
    again = from_config(json.loads(json.dumps(config)))
    assert again == h
    assert to_config(again) == config


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_an_infinite_bound_stays_a_number_through_json(clip: str) -> None:
    config = to_config(Hyperparameters(**{clip: INF}))
    assert config[clip] == INF
    assert getattr(from_config(json.loads(json.dumps(config))), clip) == INF


def test_a_keras_configuration_is_taken() -> None:
    before = copy.deepcopy(KERAS_ADAM)
    h = from_config(KERAS_ADAM)
    assert before == KERAS_ADAM
    assert h == Hyperparameters(learning_rate=0.0010000000474974513)


def test_a_keras_configuration_with_decay_schedule_and_infinite_clipping_is_taken() -> None:
    schedule = {
        "module": "keras.optimizers.schedules",
        "class_name": "CosineDecay",
        "config": {
            "initial_learning_rate": 0,
            "decay_steps": 1000,
            "alpha": 0.0,
            "name": "CosineDecay",
            "warmup_target": 1,
            "warmup_steps": 100,
        },
        "registered_name": None,
    }
    config = {**KERAS_ADAM, "name": "adam_w", "weight_decay": 0.004, "clipnorm": INF}
    config["learning_rate"] = schedule
    before = copy.deepcopy(config)
    h = from_config(config)
    assert config == before
    assert h.learning_rate == CosineDecay(0, 1000, warmup_target=1, warmup_steps=100)
    assert (h.name, h.weight_decay, h.clipnorm) == ("adam_w", 0.004, INF)
    assert now(h, 50).learning_rate == 0.5


def test_what_keras_releases_wrote_without_effect_is_passed_over() -> None:
    older = {**KERAS_ADAM, "is_legacy_optimizer": False, "jit_compile": True, "decay": 0.0}
    assert from_config(older) == from_config(KERAS_ADAM)


def test_keras_2_decay_is_refused_with_the_schedule_that_equals_it() -> None:
    with pytest.raises(ValueError, match=r"^decay .*received 0\.01.*InverseTimeDecay"):
        from_config({**KERAS_ADAM, "decay": 0.01})


def test_unknown_keys_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"received also momentum, nesterov\."):
        from_config({"learning_rate": 0.1, "nesterov": True, "momentum": 0.0})
    with pytest.raises(ValueError, match=r"config\['config'\]"):
        from_config({"class_name": "Adam", "config": KERAS_ADAM})
    with pytest.raises(TypeError, match=r"^config must be a dict"):
        from_config("adam")  # type: ignore[arg-type]


def test_a_bad_value_in_a_configuration_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^beta_1 must be"):
        from_config({**KERAS_ADAM, "beta_1": 1.0})
    with pytest.raises(TypeError, match=r"^beta_1 must be"):
        from_config({**KERAS_ADAM, "beta_1": "inf"})


@pytest.mark.parametrize("argument", ["learning_rate", "beta_1", "beta_2"])
def test_a_callable_that_cannot_be_written_down_is_named(argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be a number.*lambda.*Make"):
        to_config(Hyperparameters(**{argument: lambda: 0.1}))


def test_a_function_that_keras_wrote_down_is_not_run() -> None:
    stored = {"class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}}
    with pytest.raises(ValueError, match="custom_objects"):
        from_config({**KERAS_ADAM, "learning_rate": stored})
    stored = {"class_name": "function", "config": "rate", "registered_name": "rate"}
    with pytest.raises(ValueError, match="function that Keras stored"):
        from_config({**KERAS_ADAM, "learning_rate": stored})


class Own(LearningRateSchedule):
    def __init__(self, first: float) -> None:
        self.first = first

    def __call__(self, step: Any) -> Any:
        return self.first / (step + 1)

    def get_config(self) -> dict[str, Any]:
        return {"first": self.first}


def test_a_schedule_of_ones_own_round_trips() -> None:
    config = json.loads(json.dumps(to_config(Hyperparameters(learning_rate=Own(0.5)))))
    assert now(from_config(config), 1).learning_rate == 0.25
    config["learning_rate"]["module"] = "elsewhere"
    with pytest.raises(ValueError, match="custom_objects"):
        from_config(config)
    assert now(from_config(config, {"Own": Own}), 1).learning_rate == 0.25


def test_the_arguments_need_no_framework_and_no_compiler() -> None:
    heavy = ("torch", "jax", "tensorflow", "keras", "numba", "numpy")
    program = (
        "import sys, oneadam._hyperparameters, oneadam._exclusions, oneadam.schedules as s; "
        f"s.CosineDecay(1, 10)(3); print(sorted({{*{heavy!r}}} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

"""The learning-rate schedules, against numbers and formulae written independently here."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneadam import schedules
from oneadam.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
    deserialize,
    serialize,
)

# Values by hand: (schedule, {step: value}).
KNOWN: list[tuple[LearningRateSchedule, dict[float, float]]] = [
    (ExponentialDecay(0.5, 10, 0.25), {0: 0.5, 5: 0.25, 10: 0.125, 20: 0.03125, 25: 0.015625}),
    (ExponentialDecay(1, 10, 0.5, staircase=True), {0: 1, 9: 1, 10: 0.5, 19: 0.5, 20: 0.25}),
    (ExponentialDecay(1, 10, 0), {0: 1, 1: 0, 10: 0}),
    (ExponentialDecay(1, 10, 0, staircase=True), {0: 1, 9: 1, 10: 0}),
    (ExponentialDecay(1, 1, 2), {0: 1, 3: 8, 10: 1024}),
    (PiecewiseConstantDecay([2, 5], [3, 2, 1]), {0: 3, 2: 3, 3: 2, 5: 2, 6: 1, 10**6: 1}),
    (PiecewiseConstantDecay([2.5], [3, 2]), {2: 3, 2.5: 3, 2.75: 2, 3: 2}),
    (PiecewiseConstantDecay([], [0.1]), {0: 0.1, 7: 0.1}),
    (PiecewiseConstantDecay([-1, 0], [3, 2, 1]), {0: 2, 1: 1}),
    (PolynomialDecay(1, 4, 0.5), {0: 1, 1: 0.875, 2: 0.75, 4: 0.5, 5: 0.5, 400: 0.5}),
    (PolynomialDecay(1, 4, 0, power=2), {0: 1, 1: 0.5625, 2: 0.25, 3: 0.0625, 4: 0}),
    (PolynomialDecay(1, 4, 0, power=0.5), {0: 1, 3: 0.5, 4: 0}),
    (PolynomialDecay(1, 4, 0, cycle=True), {0: 1, 2: 0.5, 4: 0, 6: 0.25, 8: 0, 9: 0.25, 12: 0}),
    (PolynomialDecay(0, 4, 1), {0: 0, 1: 0.25, 4: 1, 9: 1}),
    (InverseTimeDecay(1, 4, 0.5), {0: 1, 4: 1 / 1.5, 8: 0.5, 24: 0.25}),
    (InverseTimeDecay(1, 4, 1, staircase=True), {0: 1, 3: 1, 4: 0.5, 7: 0.5, 12: 0.25}),
    (InverseTimeDecay(1, 4, 0), {0: 1, 100: 1}),
    (CosineDecay(2, 3), {0: 2, 1: 1.5, 2: 0.5, 3: 0, 4: 0}),
    (CosineDecay(2, 3, alpha=0.5), {0: 2, 1: 1.75, 2: 1.25, 3: 1, 100: 1}),
    (CosineDecay(2, 3, alpha=1), {0: 2, 1: 2, 3: 2}),
    (
        CosineDecay(0, 1000, warmup_target=1, warmup_steps=100),
        {0: 0, 1: 0.01, 50: 0.5, 99: 0.99, 100: 1, 600: 0.5, 1100: 0, 5000: 0},
    ),
    (CosineDecay(4, 3, 0.5, "n", 2, 4), {0: 4, 2: 3, 4: 2, 5: 1.75, 6: 1.25, 7: 1}),
    (CosineDecay(1, 3, warmup_steps=100), {0: 1, 1: 0.75, 3: 0}),
    (CosineDecay(1, 3, warmup_target=2), {0: 2, 1: 1.5, 3: 0}),
    (CosineDecayRestarts(1, 3), {0: 1, 1: 0.75, 2: 0.25, 3: 1, 5: 0.75, 7: 0.25, 9: 1, 21: 1}),
    (CosineDecayRestarts(1, 3, t_mul=1), {0: 1, 1: 0.75, 2: 0.25, 3: 1, 4: 0.75, 3000: 1}),
    (CosineDecayRestarts(1, 3, 1, 0.5), {0: 1, 3: 0.5, 4: 0.375, 6: 0.25, 8: 0.0625}),
    (CosineDecayRestarts(1, 3, 2, 0.5), {0: 1, 3: 0.5, 5: 0.375, 9: 0.25, 13: 0.1875}),
    (CosineDecayRestarts(1, 3, 2, 0.5, 0.5), {0: 1, 1: 0.875, 3: 0.75, 5: 0.6875, 9: 0.625}),
    (CosineDecayRestarts(1, 100, 1.5), {0: 1, 100: 1, 175: 0.5, 250: 1, 475: 1}),
    (CosineDecayRestarts(1, 3, m_mul=0), {0: 1, 1: 0.75, 3: 0, 4: 0}),
]
SCHEDULES = [schedule for schedule, _ in KNOWN]


def points() -> list[Any]:
    return [
        pytest.param(schedule, step, value, id=f"{type(schedule).__name__}{i}-{step}")
        for i, (schedule, values) in enumerate(KNOWN)
        for step, value in values.items()
    ]


@pytest.mark.parametrize(("schedule", "step", "value"), points())
def test_known_values(schedule: LearningRateSchedule, step: float, value: float) -> None:
    assert type(schedule(step)) is float
    assert schedule(step) == pytest.approx(value, rel=1e-14, abs=1e-30)


def test_restarts_come_at_the_step_that_decimal_numbers_say() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    # Summed in float64, the lengths 3000, 3300, 3630 and 3993 are more than 13923.
    schedule = CosineDecayRestarts(1, 3000, t_mul=1.1)
    for restart in (0, 3000, 6300, 9930, 13923):
        assert schedule(restart) == 1.0
        assert schedule(torch.tensor(restart)) == 1.0
        assert schedule(torch.tensor(float(restart))) == 1.0
        assert restart == 0 or schedule(restart - 1) < 1e-6


def test_a_warm_up_from_integers_warms_up() -> None:
    schedule = CosineDecay(0, 1000, warmup_target=1, warmup_steps=100)
    assert [schedule(step) for step in (0, 1, 2)] == [0.0, 0.01, 0.02]


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 1.0])
def test_the_ends_are_exact(alpha: float) -> None:
    assert CosineDecay(0.3, 7, alpha)(0) == 0.3
    assert CosineDecay(0.3, 7, alpha)(7) == 0.3 * alpha
    assert CosineDecayRestarts(0.3, 7, alpha=alpha)(7) == 0.3
    assert PolynomialDecay(0.3, 7, 0.1)(0) == 0.3
    assert PolynomialDecay(0.3, 7, 0.1)(7) == 0.1
    assert CosineDecay(0.1, 7, warmup_target=0.3, warmup_steps=7)(0) == 0.1


rates = st.floats(0, 10)
lengths = st.integers(1, 10**6)
steps = st.integers(0, 10**7)


def close(value: float, expected: float, scale: float, share: float = 1e-12) -> bool:
    # Subnormal numbers lie so far apart that a few roundings are a larger share of them.
    return abs(value - expected) <= share * scale + 4 * math.ulp(0.0)


@given(rates, lengths, st.floats(0.5, 1), st.booleans(), steps)
def test_exponential_decay(lr: float, n: int, rate: float, stairs: bool, step: int) -> None:
    exponent = Fraction(step, n)
    exponent = Fraction(math.floor(exponent)) if stairs else exponent
    value = ExponentialDecay(lr, n, rate, stairs)(step)
    assert value == pytest.approx(lr * math.exp(float(exponent) * math.log(rate)), rel=1e-8)


@given(rates, lengths, st.floats(0, 10), st.booleans(), steps)
def test_inverse_time_decay(lr: float, n: int, rate: float, stairs: bool, step: int) -> None:
    periods = step // n if stairs else step / n
    assert InverseTimeDecay(lr, n, rate, stairs)(step) == pytest.approx(lr / (1 + rate * periods))


@given(rates, lengths, rates, st.floats(0, 3), st.booleans(), steps)
def test_polynomial_decay(
    lr: float, n: int, end: float, power: float, cycle: bool, step: int
) -> None:
    length = n * max(1, -(-step // n)) if cycle else n
    share = float(1 - Fraction(min(step, length), length))
    expected = (lr - end) * share**power + end
    assert close(PolynomialDecay(lr, n, end, power, cycle)(step), expected, lr + end)


@given(st.lists(st.integers(0, 99), unique=True), st.integers(0, 100))
def test_piecewise_constant_decay(boundaries: list[int], step: int) -> None:
    values = [float(i) for i in range(len(boundaries) + 1)]
    expected = sum(step > boundary for boundary in boundaries)
    assert PiecewiseConstantDecay(sorted(boundaries), values)(step) == expected


@given(rates, lengths, st.floats(0, 1), st.one_of(st.none(), rates), st.integers(0, 1000), steps)
def test_cosine_decay(
    lr: float, n: int, alpha: float, target: float | None, warmup: int, step: int
) -> None:
    value = CosineDecay(lr, n, alpha, "name", target, warmup)(step)
    peak = lr if target is None else target
    if target is None:
        warmup = 0
    if step < warmup:
        expected = lr + (peak - lr) * step / warmup
    else:
        x = min(step - warmup, n) / n
        expected = peak * ((1 - alpha) * (1 + math.cos(math.pi * x)) / 2 + alpha)
    assert close(value, expected, lr + peak)


@given(
    rates,
    st.integers(1, 1000),
    st.sampled_from([1.0, 1.1, 1.25, 1.5, 2.0, 3.0]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 20000),
)
def test_cosine_decay_restarts(
    lr: float, n: int, t_mul: float, m_mul: float, alpha: float, step: int
) -> None:
    start, length, height = Fraction(0), Fraction(n), 1.0
    while start + length <= step:
        start, length, height = start + length, length * Fraction(str(t_mul)), height * m_mul
    x = float((step - start) / length)
    expected = lr * ((1 - alpha) * height * (1 + math.cos(math.pi * x)) / 2 + alpha)
    value = CosineDecayRestarts(lr, n, t_mul, m_mul, alpha)(step)
    assert close(value, expected, lr + expected, share=1e-9)


# Every kind of scalar that stands for a step: a function from an int to it, its namespace, and
# whether the schedule is called on it inside jit.
NUMPY = [np.int64, np.uint8, np.float32]
SOME_STEPS = [0, 1, 2, 3, 4, 5, 9, 10, 12, 50, 99, 100, 101, 210, 600, 1100, 1331, 5000, 77777]


def spacings(value: Any, expected: float) -> float:
    """The distance in float32 spacings at the expected value."""
    if abs(expected) > float(np.finfo(np.float32).max):
        return 0.0 if float(value) == math.inf else math.inf
    spacing = float(np.spacing(np.float32(max(abs(expected), 1e-30))))
    return abs(float(value) - expected) / spacing


FLOAT32_SPACINGS = 4.0
"""Three roundings, doubled by the square in a cosine, and the last digit of sin or exp."""


def test_the_measure_of_spacings_rejects_a_wrong_value() -> None:
    assert spacings(np.float32(0.1), 0.1) < 1
    assert spacings(0.1 * (1 + 1e-6), 0.1) > FLOAT32_SPACINGS


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", NUMPY)
def test_numpy_scalars_give_python_floats(schedule: LearningRateSchedule, kind: Any) -> None:
    assert type(schedule(kind(100))) is float
    assert schedule(kind(100)) == schedule(100)


# One schedule grows without end, of which NumPy warns.
@np.errstate(over="ignore")
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("dtype", ["int32", "uint32", "float32"])
def test_numpy_arrays_give_float64(schedule: LearningRateSchedule, dtype: str) -> None:
    for step in SOME_STEPS:
        value = schedule(np.asarray(step, dtype))
        assert np.asarray(value).dtype == np.float64
        assert np.shape(value) == ()
        assert value == pytest.approx(schedule(step), rel=1e-13)
    all_at_once = schedule(np.asarray(SOME_STEPS, dtype))
    assert all_at_once.shape == (len(SOME_STEPS),)
    assert list(all_at_once) == pytest.approx([schedule(step) for step in SOME_STEPS], rel=1e-13)


@np.errstate(over="ignore")
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("dtype", ["int32", "uint64", "float64"])
def test_the_strictest_arrays_give_their_default_float(
    schedule: LearningRateSchedule, dtype: str
) -> None:
    xp = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    for step in SOME_STEPS:
        value = schedule(xp.asarray(step, dtype=getattr(xp, dtype)))
        assert (value.shape, value.dtype) == ((), xp.float64)
        assert float(value) == pytest.approx(schedule(step), rel=1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_torch_tensors_give_float32(schedule: LearningRateSchedule, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for step in SOME_STEPS:
        value = schedule(torch.tensor(step, dtype=getattr(torch, dtype)))
        assert (value.shape, value.dtype) == ((), torch.float32)
        assert spacings(value, schedule(step)) <= FLOAT32_SPACINGS


@pytest.mark.parametrize(
    "schedule",
    [
        ExponentialDecay(1, 10, 0.5),
        PiecewiseConstantDecay([2, 5], [3, 2, 1]),
        PolynomialDecay(1, 30, 0, cycle=True),
        CosineDecay(0, 1000, warmup_target=1, warmup_steps=10),
        CosineDecayRestarts(1, 30),
    ],
    ids=repr,
)
def test_torch_can_compile_a_schedule(schedule: LearningRateSchedule) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    compiled = torch.compile(schedule.__call__, backend="eager", fullgraph=True)
    assert spacings(compiled(torch.tensor(100)), schedule(100)) <= FLOAT32_SPACINGS


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("dtype", ["int32", "uint32", "float32"])
def test_traced_steps_give_traced_rates(schedule: LearningRateSchedule, dtype: str) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    traced = 0

    def rate(step: Any) -> Any:
        nonlocal traced
        traced += 1
        return schedule(step)

    jitted = jax.jit(rate)
    for step in SOME_STEPS:
        value = jitted(jax.numpy.asarray(step, dtype))
        assert (value.shape, value.dtype) == ((), np.float32)
        assert spacings(value, schedule(step)) <= FLOAT32_SPACINGS
    assert traced == 1


def test_float64_is_the_default_float_of_jax_where_it_is_enabled() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with jax.enable_x64(True):
        value = jax.jit(CosineDecay(0.3, 7))(jax.numpy.asarray(3, "int32"))
        assert value.dtype == np.float64
        assert float(value) == pytest.approx(CosineDecay(0.3, 7)(3), rel=1e-14)


BEYOND_FLOAT32 = [
    PiecewiseConstantDecay([20_000_001, 2**33], [3, 2, 1]),
    PolynomialDecay(0.1, 20_000_003, 0.0),
    CosineDecay(0, 20_000_000, warmup_target=1, warmup_steps=3),
    CosineDecay(1, 2**40),
    CosineDecayRestarts(1, 20_000_001, 1.0),
    CosineDecayRestarts(1, 20_000_001, 2.0),
    ExponentialDecay(1, 4_000_000, 0.5, staircase=True),
    InverseTimeDecay(1, 20_000_001, 1, staircase=True),
]


@pytest.mark.parametrize("schedule", BEYOND_FLOAT32, ids=repr)
@pytest.mark.parametrize("framework", ["jax.numpy", "torch"])
def test_integer_steps_count_beyond_what_float32_holds(
    schedule: LearningRateSchedule, framework: str
) -> None:
    xp = pytest.importorskip(framework, reason=f"{framework} is not installed")
    for step in [*range(19_999_999, 20_000_006), 60_000_002, 60_000_003, 2**30 + 1]:
        value = schedule(xp.asarray(step, dtype=xp.int32))
        assert spacings(value, schedule(step)) <= FLOAT32_SPACINGS


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("rate", [0.96, 0.99, 1.01, 0.7])
def test_many_periods_do_not_lose_digits(framework: str, rate: float) -> None:
    xp = pytest.importorskip(framework, reason=f"{framework} is not installed")
    schedule = ExponentialDecay(0.1, 10, rate)
    on_scalars = xp.jit(schedule) if framework == "jax" else schedule
    for step in range(0, 2000, 97):
        scalar = xp.numpy.asarray(step) if framework == "jax" else xp.tensor(step)
        assert spacings(on_scalars(scalar), schedule(step)) <= FLOAT32_SPACINGS


def test_what_has_decayed_to_nothing_is_zero() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert ExponentialDecay(0.1, 1, 0.5)(torch.tensor(10**6)) == 0.0
    assert ExponentialDecay(0.1, 1, 0.5)(10**6) == 0.0


def test_growth_without_end_is_infinite_rather_than_an_error() -> None:
    assert ExponentialDecay(1, 1, 10)(400) == math.inf


@pytest.mark.parametrize("step", [-1, -0.5, math.nan])
def test_a_negative_step_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match=r"^step must be a number >= 0, received .*Pass"):
        CosineDecay(1, 10)(step)


@pytest.mark.parametrize("step", ["3", None, [3], object()])
def test_a_step_that_is_no_number_is_refused(step: Any) -> None:
    with pytest.raises(TypeError, match=r"^step must be .*received .*Pass"):
        CosineDecay(1, 10)(step)


SIGNATURES = {
    ExponentialDecay: "initial_learning_rate, decay_steps, decay_rate, staircase=False, "
    "name='ExponentialDecay'",
    PiecewiseConstantDecay: "boundaries, values, name='PiecewiseConstant'",
    PolynomialDecay: "initial_learning_rate, decay_steps, end_learning_rate=0.0001, power=1.0, "
    "cycle=False, name='PolynomialDecay'",
    InverseTimeDecay: "initial_learning_rate, decay_steps, decay_rate, staircase=False, "
    "name='InverseTimeDecay'",
    CosineDecay: "initial_learning_rate, decay_steps, alpha=0.0, name='CosineDecay', "
    "warmup_target=None, warmup_steps=0",
    CosineDecayRestarts: "initial_learning_rate, first_decay_steps, t_mul=2.0, m_mul=1.0, "
    "alpha=0.0, name='SGDRDecay'",
}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_the_arguments_are_those_of_keras_in_its_order(kind: Any) -> None:
    plain = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in inspect.signature(kind).parameters.values()
    ]
    assert str(inspect.Signature(plain)) == f"({SIGNATURES[kind]})"


def make(kind: Any, **changed: Any) -> Any:
    """A schedule with harmless arguments but for those given."""
    harmless: dict[str, Any] = {
        "initial_learning_rate": 0.1,
        "decay_steps": 10,
        "decay_rate": 0.5,
        "first_decay_steps": 10,
        "boundaries": [1, 2],
        "values": [1, 2, 3],
    }
    wanted = {k: v for k, v in harmless.items() if k in inspect.signature(kind).parameters}
    return kind(**{**wanted, **changed})


NAN, INF = math.nan, math.inf
BAD_TYPES: list[Any] = [True, np.True_, "1", None, [1], 1j, np.ones(1)]
BAD_RATES = [-1, -1e-300, NAN, INF, 10**400]
BAD_LENGTHS = [0, -1, 0.0, NAN, INF]
REFUSED: list[tuple[Any, str, list[Any], list[Any]]] = [
    *(
        (k, "initial_learning_rate", BAD_TYPES, BAD_RATES)
        for k in SIGNATURES
        if k is not PiecewiseConstantDecay
    ),
    *(
        (k, "decay_steps", BAD_TYPES, BAD_LENGTHS)
        for k in SIGNATURES
        if k not in (PiecewiseConstantDecay, CosineDecayRestarts)
    ),
    *((k, "name", [None, 3], [""]) for k in SIGNATURES),
    (ExponentialDecay, "decay_rate", BAD_TYPES, BAD_RATES),
    (InverseTimeDecay, "decay_rate", BAD_TYPES, BAD_RATES),
    (ExponentialDecay, "staircase", [0, 1, None, "True"], []),
    (InverseTimeDecay, "staircase", [0, 1, None, "True"], []),
    (PolynomialDecay, "cycle", [0, 1, None, "True"], []),
    (PolynomialDecay, "end_learning_rate", BAD_TYPES, BAD_RATES),
    (PolynomialDecay, "power", BAD_TYPES, [-0.5, NAN, INF]),
    (CosineDecay, "alpha", BAD_TYPES, [-0.1, 1.1, NAN, INF]),
    (CosineDecay, "warmup_target", [x for x in BAD_TYPES if x is not None], BAD_RATES),
    (CosineDecay, "warmup_steps", BAD_TYPES, [-1, NAN, INF]),
    (CosineDecayRestarts, "first_decay_steps", BAD_TYPES, BAD_LENGTHS),
    (CosineDecayRestarts, "t_mul", BAD_TYPES, [0, 0.99, -1, NAN, INF]),
    (CosineDecayRestarts, "m_mul", BAD_TYPES, [-0.1, NAN, INF]),
    (CosineDecayRestarts, "alpha", BAD_TYPES, [-0.1, 1.1, NAN]),
    (PiecewiseConstantDecay, "boundaries", [None, 3, "12", {1: 2}], []),
    (PiecewiseConstantDecay, "values", [None, 3, "123"], []),
]


@pytest.mark.parametrize(
    ("kind", "argument", "value", "error"),
    [
        pytest.param(kind, argument, value, error, id=f"{kind.__name__}-{argument}-{value!r:.20}")
        for kind, argument, types, values in REFUSED
        for error, bad in ((TypeError, types), (ValueError, values))
        for value in bad
    ],
)
def test_a_bad_argument_is_refused_by_name(
    kind: Any, argument: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"^{argument} must be .*received .*Pass") as caught:
        make(kind, **{argument: value})
    assert repr(value)[:100] in str(caught.value)


def test_every_argument_has_its_refusals() -> None:
    tested = {(kind, argument) for kind, argument, _, _ in REFUSED}
    assert tested == {(k, a) for k in SIGNATURES for a in inspect.signature(k).parameters}


@pytest.mark.parametrize("boundaries", [[1, 1], [2, 1], [1, 1.0], [0, 3]])
def test_boundaries_that_do_not_fit_are_refused(boundaries: list[float]) -> None:
    values = [1, 2, 3] if boundaries != [0, 3] else [1, 2]
    with pytest.raises(ValueError, match=r"^boundaries must .*received "):
        PiecewiseConstantDecay(boundaries, values)


@pytest.mark.parametrize("bad", [NAN, INF, True, None])
def test_a_bad_entry_of_a_list_is_named(bad: Any) -> None:
    error = ValueError if isinstance(bad, float) else TypeError
    with pytest.raises(error, match=r"^boundaries\[1\] must be"):
        PiecewiseConstantDecay([1, bad], [1, 2, 3])
    with pytest.raises(error, match=r"^values\[2\] must be"):
        PiecewiseConstantDecay([1, 2], [1, 2, bad])


def test_numbers_of_a_framework_become_numbers() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    schedule = CosineDecay(torch.tensor(0.5), np.int64(10), alpha=np.float32(0.25))
    assert schedule == CosineDecay(0.5, 10, 0.25)
    assert json.loads(json.dumps(schedule.get_config())) == schedule.get_config()
    assert PiecewiseConstantDecay(np.array([1, 2]), torch.ones(3)).values == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_are_values(schedule: LearningRateSchedule) -> None:
    for twin in (
        copy.deepcopy(schedule),
        pickle.loads(pickle.dumps(schedule)),
        eval(repr(schedule), vars(schedules)),
        type(schedule).from_config(schedule.get_config()),
        deserialize(json.loads(json.dumps(serialize(schedule), allow_nan=False))),
    ):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert [twin(step) for step in SOME_STEPS] == [schedule(step) for step in SOME_STEPS]
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.name = "other"  # type: ignore[attr-defined]


def test_schedules_that_differ_are_unequal() -> None:
    assert CosineDecay(1, 10) != CosineDecay(1, 11)
    assert CosineDecay(1, 10) != CosineDecay(1, 10, name="other")
    assert ExponentialDecay(1, 10, 0.5) != InverseTimeDecay(1, 10, 0.5)


def test_a_serialized_schedule_has_the_shape_of_keras_and_the_numbers_given() -> None:
    assert serialize(PiecewiseConstantDecay((1, 2.5), [0.1, 0.2, 0])) == {
        "module": "oneadam.schedules",
        "class_name": "PiecewiseConstantDecay",
        "config": {
            "boundaries": [1, 2.5],
            "values": [0.1, 0.2, 0.0],
            "name": "PiecewiseConstant",
        },
        "registered_name": None,
    }
    assert '"decay_steps": 10,' in json.dumps(serialize(CosineDecay(1, 10)))


@pytest.mark.parametrize(
    "where",
    [
        {"module": "keras.optimizers.schedules", "registered_name": None},
        {"module": "keras.src.optimizers.schedules.learning_rate_schedule"},
        {"module": "oneadam.schedules", "registered_name": None},
        {},
    ],
)
def test_schedules_that_keras_wrote_are_read(where: dict[str, Any]) -> None:
    inner = {"initial_learning_rate": 0.5, "decay_steps": 10, "decay_rate": 0.25}
    config = {**where, "class_name": "ExponentialDecay", "config": inner}
    before = copy.deepcopy(config)
    assert deserialize(config) == ExponentialDecay(0.5, 10, 0.25)
    assert config == before


class Harmonic(LearningRateSchedule):
    """A user's schedule, as the documentation of Keras teaches to write one."""

    def __init__(self, first: float) -> None:
        self.first = first

    def __call__(self, step: Any) -> Any:
        return self.first / (step + 1)

    def get_config(self) -> dict[str, Any]:
        return {"first": self.first}


@dataclasses.dataclass(frozen=True)
class Ramp(LearningRateSchedule):
    top: float

    def __call__(self, step: Any) -> Any:
        return self.top * step


class Nameless(LearningRateSchedule):
    def __call__(self, step: Any) -> Any:
        return 0.1 / (step + 1)


def test_a_schedule_of_ones_own_works_on_every_scalar() -> None:
    assert Nameless()(4) == 0.02
    assert float(Nameless()(np.asarray(4))) == 0.02
    jax = pytest.importorskip("jax", reason="jax is not installed")
    assert spacings(jax.jit(Nameless())(4), 0.02) <= FLOAT32_SPACINGS


def test_a_schedule_of_ones_own_is_found_again() -> None:
    config = json.loads(json.dumps(serialize(Harmonic(0.5))))
    again = deserialize(config)
    assert (type(again), again.first) == (Harmonic, 0.5)
    assert deserialize(serialize(Ramp(0.5))) == Ramp(0.5)


def test_a_schedule_that_cannot_be_written_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match="Nameless must define get_config"):
        serialize(Nameless())
    with pytest.raises(TypeError, match=r"^schedule must have get_config.*subclass"):
        serialize(lambda step: 0.1)
    with pytest.raises(NotImplementedError, match="must define __call__"):
        LearningRateSchedule()(0)


def test_modules_that_a_configuration_names_are_not_imported() -> None:
    config = {**serialize(Harmonic(0.5)), "module": "antigravity"}
    with pytest.raises(ValueError, match=r"'Harmonic' of module 'antigravity'.*custom_objects"):
        deserialize(config)
    assert "antigravity" not in sys.modules
    assert type(deserialize(config, {"Harmonic": Harmonic})) is Harmonic


def test_only_schedules_are_made() -> None:
    for module, name in (("builtins", "dict"), ("subprocess", "Popen"), ("oneadam._step", "Step")):
        with pytest.raises(ValueError, match="none fits"):
            deserialize({"module": module, "class_name": name, "config": {}})


def test_custom_objects_go_first_and_by_either_name() -> None:
    config = {"module": None, "class_name": "CosineDecay", "config": {"top": 1.0}}
    assert deserialize(config, {"CosineDecay": Ramp}) == Ramp(1.0)
    config["registered_name"] = "mine>CosineDecay"
    assert deserialize(config, {"mine>CosineDecay": Ramp, "CosineDecay": dict}) == Ramp(1.0)
    with pytest.raises(TypeError, match=r"^custom_objects\['CosineDecay'\] must be a class"):
        deserialize(config, {"CosineDecay": Ramp(1.0)})


def test_two_classes_of_one_name_are_told_apart_or_refused() -> None:
    def local() -> Any:
        class Harmonic(LearningRateSchedule):
            def get_config(self) -> dict[str, Any]:
                return {}

        return Harmonic

    other = local()
    assert type(deserialize(serialize(other()))) is other
    config = {**serialize(Harmonic(1.0)), "registered_name": None}
    with pytest.raises(ValueError, match=r"2 imported classes fit.*custom_objects"):
        deserialize(config)


def test_a_class_defined_again_replaces_the_first() -> None:
    def cell() -> Any:
        @dataclasses.dataclass(frozen=True)
        class Again(LearningRateSchedule):
            top: float

        return Again

    first, second = cell(), cell()
    assert type(deserialize(serialize(first(1.0)))) is second


@pytest.mark.parametrize(
    "config", [{}, {"class_name": "CosineDecay"}, {"class_name": 3, "config": {}}]
)
def test_a_dict_that_is_no_schedule_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^config must hold 'class_name'.*received .*Pass"):
        deserialize(config)


def test_something_that_is_no_dict_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^config must be a dict, received 'CosineDecay'"):
        deserialize("CosineDecay")  # type: ignore[arg-type]


def foreign(module: str, name: str) -> Callable[..., Any]:
    """A schedule class of another library."""
    body = {"get_config": lambda self: {"top": 0.5}, "from_config": classmethod(lambda c, d: c())}
    return type(name, (), {**body, "__module__": module})


def test_a_schedule_object_of_another_library_is_written_down() -> None:
    written = serialize(foreign("keras.src.optimizers.schedules.learning_rate_schedule", "X")())
    assert written["module"] == "keras.optimizers.schedules"
    assert written["registered_name"] is None
    written = serialize(foreign("elsewhere", "X")())
    assert written == {
        "module": "elsewhere",
        "class_name": "X",
        "config": {"top": 0.5},
        "registered_name": "elsewhere>X",
    }


def test_importing_schedules_loads_no_framework_and_no_compiler() -> None:
    heavy = ("torch", "jax", "tensorflow", "keras", "numba", "llvmlite")
    program = (
        "import sys; from oneadam.schedules import CosineDecay; CosineDecay(1, 10)(3); {more}"
        f"print(sorted({{{{*{heavy!r}}}}} & {{{{*sys.modules}}}}))"
    )

    def loaded(more: str) -> str:
        command = [sys.executable, "-c", program.format(more=more)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert loaded("") == "[]"
    assert "llvmlite" in loaded("import llvmlite; ")

"""The JAX door under what JAX does to functions: compiling, mapping, differentiating, checking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_cases import (
    ACCUMULATING,
    AVERAGED,
    CLIPPED,
    CONFIGS,
    EVERYTHING,
    PLAIN,
    close,
    compiled,
    gradients,
    made,
    parameters,
    same,
    trained,
)

from oneadam.jax import _numbers, adam, averaged, metrics, set_learning_rate, step
from oneadam.schedules import CosineDecay, PiecewiseConstantDecay

PARAMS = parameters()
GRADS = [gradients(number) for number in range(4)]
MADE: dict[str, Any] = {
    **{name: (CONFIGS[name], False) for name in ("plain", "clipped", "everything")},
    "scaled": (PLAIN, True),
    "everything scaled": (EVERYTHING, True),
}


# Compiling


def changed(state: Any, transformation: Any, params: Any) -> Any:
    """Return the state with the learning rate and the betas of another transformation."""
    rates = transformation.init(params).rates
    return optax.tree.set(state, rates=rates)


@pytest.mark.parametrize(
    ("name", "is_committed"),
    [*((name, False) for name in MADE), ("plain", True), ("everything scaled", True)],
)
def test_a_second_call_compiles_nothing(name: str, is_committed: bool) -> None:
    transformation = made(*MADE[name])
    params = jax.device_put(PARAMS, jax.devices()[0]) if is_committed else PARAMS
    state = transformation.init(params)
    taken = compiled(transformation)
    for grads in GRADS[:3]:
        params, state = taken(params, state, grads)
    params, state = taken(params, set_learning_rate(state, 0.01), GRADS[3])
    params, state = taken(params, changed(state, adam(0.02, 0.8, 0.9), params), GRADS[0])
    assert metrics(state)["learning_rate"] == np.float32(0.02)
    assert taken._cache_size() == 1


def test_another_shape_is_compiled_again() -> None:
    taken = compiled(adam())
    for shape in ((2,), (3,)):
        params = {"w": jnp.ones(shape)}
        taken(params, adam().init(params), params)
    assert taken._cache_size() == 2


def test_changed_betas_are_those_that_the_next_call_uses() -> None:
    other = adam(0.02, 0.8, 0.9)
    state = changed(adam(**PLAIN).init(PARAMS), other, PARAMS)
    same(
        compiled(adam(**PLAIN))(PARAMS, state, GRADS[0]),
        compiled(other)(PARAMS, other.init(PARAMS), GRADS[0]),
    )


def bytes_of(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


IN_PLACE = {
    "plain": (PLAIN, 0.02),
    # One of the eight at a time, for the sum of its squares.
    "clipped": (CLIPPED, 0.13),
    "averaged": (AVERAGED, 0.13),
    "accumulating": (
        {**PLAIN, "gradient_accumulation_steps": 2, "clipnorm": 1.0, "use_ema": True}, 0.02,
    ),
    # Overwriting at the end of a window, and judging its sum, need a copy of the parameters yet.
    "everything": (EVERYTHING, 1.3),
}  # fmt: skip


@pytest.mark.parametrize(("config", "share"), IN_PLACE.values(), ids=IN_PLACE)
def test_donated_parameters_are_written_in_place(config: dict[str, Any], share: float) -> None:
    params = {name: jnp.ones((256, 256)) for name in "abcdefgh"}
    transformation = made(config)
    state = transformation.init(params)
    donating = compiled(transformation, donate_argnums=(0, 1))
    taken = donating.lower(params, state, params).compile()
    memory = taken.memory_analysis()
    # Counters that are constants do not need to be written over.
    assert memory.alias_size_in_bytes >= bytes_of((params, state)) - 32
    assert memory.temp_size_in_bytes < share * bytes_of(params)
    after, _ = taken(params, state, jax.tree.map(jnp.copy, params))
    assert params["a"].is_deleted()
    assert state.momentum["a"].is_deleted()
    assert after["a"].shape == (256, 256)


def test_what_is_not_donated_is_not_written_in_place() -> None:
    taken = compiled(adam())
    memory = taken.lower(PARAMS, adam().init(PARAMS), GRADS[0]).compile().memory_analysis()
    assert memory.alias_size_in_bytes == 0
    taken(PARAMS, adam().init(PARAMS), GRADS[0])
    assert not PARAMS["kernel"].is_deleted()


# Loops and ensembles


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.mark.parametrize("name", ["everything scaled"])
def test_a_scan_over_steps_is_the_steps_one_by_one(name: str) -> None:
    transformation = made(*MADE[name])
    broken = jax.tree.map(lambda leaf: leaf * np.nan, GRADS[0])
    every = [*GRADS, broken, GRADS[0]]

    def taken(carry: Any, grads: Any) -> tuple[Any, None]:
        return step(transformation, grads, carry[1], carry[0]), None

    start = PARAMS, transformation.init(PARAMS)
    scanned, _ = jax.jit(lambda start, every: jax.lax.scan(taken, start, every))(
        start, stacked(every)
    )
    # The compiler may fuse a loop's body otherwise.
    close(scanned, trained(transformation, PARAMS, every), 4)
    assert metrics(scanned[1])["skipped_calls"] == 1


def test_an_ensemble_with_several_learning_rates_is_its_members_one_by_one() -> None:
    rates = [0.1, 0.01, 0.0]
    transformation = made({**AVERAGED, "on_nonfinite": "skip"})
    members = stacked([parameters(seed) for seed in range(3)])
    broken = jax.tree.map(lambda leaf: leaf * np.inf, GRADS[3])
    calls = [stacked(GRADS[:3]), stacked([GRADS[1], broken, GRADS[2]]), stacked(GRADS[1:4])]

    def run(rate: Any, params: Any, *calls: Any) -> Any:
        state = set_learning_rate(transformation.init(params), rate)
        for grads in calls:
            params, state = step(transformation, grads, state, params)
        return params, state

    found = jax.jit(jax.vmap(run))(jnp.asarray(rates), members, *calls)
    alone = jax.jit(run)
    for number, rate in enumerate(rates):
        expected = alone(rate, *(jax.tree.map(lambda leaf: leaf[number], (members, *calls))))  # noqa: B023
        close(jax.tree.map(lambda leaf: leaf[number], found), expected, 4)  # noqa: B023
    assert found[1].skipped_calls[:, 0].tolist() == [0, 1, 0]


# Derivatives


@pytest.mark.parametrize("size", [0.0, 1e-25])
def test_gradients_that_are_known_when_compiling_have_their_norm(size: float) -> None:
    # A parameter that the loss does not depend on has such a gradient, of zero.
    transformation = adam(0.1, clipnorm=1.0)
    state = transformation.init(PARAMS)

    @jax.jit
    def taken(params: Any, state: Any) -> Any:
        return step(transformation, {**params, "bias": jnp.full(3, size)}, state, params)

    given = {**PARAMS, "bias": jnp.full(3, size)}
    close(taken(PARAMS, state), trained(transformation, PARAMS, [given]), 4)


def meta_loss(config: dict[str, Any], is_checkpointed: bool = False) -> Callable[..., Any]:
    """Return the loss after two steps from some parameters, with some learning rate."""
    curvature = jnp.asarray([0.0, 1.0, 2.0, 0.5])

    def loss(params: Any) -> Any:
        # The first element of `a` has a gradient of exactly zero, all of `flat` have.
        return jnp.sum(curvature * params["a"] ** 2) + params["b"] ** 2 + 0.0 * params["flat"].sum()

    def after(params: Any, rate: Any) -> Any:
        transformation = adam(rate, **config)
        state = transformation.init(params)

        def taken(params: Any, state: Any) -> Any:
            return step(transformation, jax.grad(loss)(params), state, params)

        taken = jax.checkpoint(taken) if is_checkpointed else taken
        for _ in range(2):
            params, state = taken(params, state)
        return loss(params) + params["a"].sum() + averaged(state, params)["b"]

    return after


START: dict[str, Any] = {"a": [0.3, 1.0, -2.0, 0.5], "b": 3.0, "flat": [1.0, -1.0]}


def start(dtype: Any) -> dict[str, Any]:
    return {name: jnp.asarray(value, dtype) for name, value in START.items()}


SMOOTH: dict[str, dict[str, Any]] = {
    "clipped together": {"global_clipnorm": 1.0, "weight_decay": 0.1},
    "clipped each": {"clipnorm": 1.0, "amsgrad": True, "epsilon_hat": False},
    "everything": {"global_clipnorm": 1.0, "use_ema": True, "ema_overwrite_frequency": 2,
                   "on_nonfinite": "skip", "gradient_accumulation_steps": 2},
}  # fmt: skip


@pytest.mark.parametrize("config", SMOOTH.values(), ids=SMOOTH)
def test_derivatives_through_steps_are_those_of_differences(config: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        after = jax.jit(meta_loss(config))
        params, rate, width = start(np.float64), jnp.asarray(0.1), 1e-6
        found, by_rate = jax.jit(jax.grad(meta_loss(config), argnums=(0, 1)))(params, rate)

        def difference(*moved: Any) -> float:
            ahead, back = (
                after(*jax.tree.map(lambda x, d: x + sign * d, (params, rate), moved))  # noqa: B023
                for sign in (width, -width)
            )
            return float(ahead - back) / (2 * width)

        nowhere = jax.tree.map(jnp.zeros_like, params)
        # Differences of this width are good to about 1e-9 times the loss, which is about 10.
        assert float(by_rate) == pytest.approx(difference(nowhere, 1.0), rel=1e-5, abs=1e-7)
        for name, leaf in params.items():
            for index in np.ndindex(leaf.shape):
                unit = {**nowhere, name: nowhere[name].at[index].set(1.0)}
                expected = difference(unit, 0.0)
                assert float(found[name][index]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_derivatives_are_finite_in_float32_and_checkpointed_alike() -> None:
    params, config = start(np.float32), SMOOTH["clipped together"]
    plain, saving = (
        jax.jit(jax.grad(meta_loss(config, is_checkpointed)))(params, jnp.asarray(0.1))
        for is_checkpointed in (False, True)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plain))
    # The same operations, compiled in two ways.
    close(saving, plain, 32)


# JAX's own checks


@pytest.mark.parametrize("name", ["plain", "everything scaled"])
def test_the_strictest_settings_find_nothing(name: str) -> None:
    transformation = made(*MADE[name])
    mixed = {**PARAMS, "kernel": PARAMS["kernel"].astype(jnp.bfloat16)}
    halves = [{**grads, "bias": grads["bias"].astype(np.float16)} for grads in GRADS[:2]]
    zeros = jax.tree.map(jnp.zeros_like, halves[0])
    with (
        jax.debug_nans(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        params, state = trained(transformation, mixed, [zeros, *halves, zeros])
        averaged(state, params)
        jax.block_until_ready(params)


def test_the_strictest_settings_would_find_something() -> None:
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        trained(adam(), PARAMS, [jax.tree.map(lambda leaf: leaf * np.nan, GRADS[0])])
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones(2) + jnp.ones((2, 2))
    with jax.numpy_dtype_promotion("strict"), pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2) + jnp.ones(2, jnp.bfloat16)


# Counters that are larger than 32 bits


LARGE = [2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**40 + 7, 2**63]


def words(count: int) -> Any:
    return jnp.asarray([count % 2**32, count >> 32], np.uint32)


def test_counters_go_on_beyond_32_bits() -> None:
    transformation = adam(**EVERYTHING)
    taken = compiled(transformation)
    for count in LARGE:
        far = transformation.init(PARAMS)._replace(
            calls=words(count), updates=words(count), accumulated_calls=jnp.asarray(1)
        )
        _, state = taken(PARAMS, far, GRADS[0])
        assert (metrics(state)["calls"], metrics(state)["updates"]) == (count + 1, count + 1)
        broken = jax.tree.map(lambda leaf: leaf * np.inf, GRADS[0])
        _, state = taken(PARAMS, state._replace(skipped_calls=words(count)), broken)
        assert metrics(state)["skipped_calls"] == count + 1


def test_the_bias_is_corrected_by_the_whole_count() -> None:
    beta = 1.0 - 1e-9
    transformation = adam(0.1, 0.0, beta, epsilon=1e-12)
    taken = compiled(transformation)
    for count in (1, 2**31, 2**32, 2**33):
        state = transformation.init(PARAMS)._replace(updates=words(count - 1))
        params, _ = taken(PARAMS, state, GRADS[0])
        correction = -np.expm1(count * np.log(beta))
        grad = np.asarray(GRADS[0]["bias"], np.float64)
        moved = 0.1 * np.sqrt(correction) * grad / np.sqrt(1e-9 * grad**2)
        # The moved distance is a difference of two float32 numbers.
        np.testing.assert_allclose(
            np.asarray(PARAMS["bias"] - params["bias"], np.float64),
            moved, rtol=1e-5, atol=1e-6,
        )  # fmt: skip


@pytest.mark.parametrize("frequency", [1, 2, 3, 7, 2**16 + 1, 2**31 - 1])
def test_multiples_are_found_among_large_counts(frequency: int) -> None:
    near = [frequency * (count // frequency) for count in (0, *LARGE[:-1])]
    counts = sorted({max(count + more, 0) for count in (*near, *LARGE) for more in (-1, 0, 1)})
    found = jax.jit(_numbers.is_multiple, static_argnums=1)(_numbers.counter(counts), frequency)
    assert found.tolist() == [count % frequency == 0 for count in counts]


@pytest.mark.parametrize("count", [2**31 + 1, 2**32 + 1])
def test_averages_overwrite_at_large_counts(count: int) -> None:
    first = count + -count % 3
    transformation = adam(0.1, use_ema=True, ema_overwrite_frequency=3)
    taken = compiled(transformation)
    params, state = PARAMS, transformation.init(PARAMS)._replace(updates=words(first - 3))
    for number, grads in enumerate(GRADS[:3], 1):
        params, state = taken(params, state, grads)
        is_overwritten = bool((averaged(state, params)["bias"] == params["bias"]).all())
        # The first of all averages is the parameters.
        assert is_overwritten == (number in (1, 3))


def test_schedules_are_given_the_largest_number_that_there_is() -> None:
    seen: Any = adam(lambda calls: calls.astype(jnp.float32))
    taken = compiled(seen)
    for count in LARGE:
        _, state = taken(PARAMS, seen.init(PARAMS)._replace(calls=words(count)), GRADS[0])
        assert metrics(state)["learning_rate"] == np.float32(min(count, 2**31 - 1))
    with jax.enable_x64(True):
        for count in LARGE[:-1]:
            assert _numbers.as_step(words(count)) == count


# Functions in place of numbers


class Dial:
    """A function without arguments that answers another number each time, and counts."""

    def __init__(self, *answers: float) -> None:
        self.answers = answers
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.answers[(self.asked - 1) % len(self.answers)]


def test_functions_are_asked_on_every_call_of_compiled_code() -> None:
    rates, beta = (0.1, 0.01, 0.05), Dial(0.9, 0.8)
    dial = Dial(*rates)
    transformation = adam(dial, beta_1=beta)
    taken = compiled(transformation)
    params, state = PARAMS, transformation.init(PARAMS)
    plain_params, plain_state = PARAMS, adam().init(PARAMS)
    plainly = compiled(adam())
    assert dial.asked == beta.asked == 0
    for number, grads in enumerate(GRADS):
        params, state = jax.block_until_ready(taken(params, state, grads))
        assert dial.asked == beta.asked == number + 1
        assert metrics(state)["learning_rate"] == np.float32(rates[number % 3])
        other = adam(rates[number % 3], beta_1=(0.9, 0.8)[number % 2])
        plain_params, plain_state = plainly(
            plain_params, changed(plain_state, other, PARAMS), grads
        )
    assert taken._cache_size() == 1
    close(params, plain_params, 2)


def test_functions_are_asked_on_every_round_of_a_scan() -> None:
    dial = Dial(0.1, 0.2, 0.3, 0.4)
    transformation = adam(dial)

    def taken(carry: Any, grads: Any) -> tuple[Any, Any]:
        params, state = step(transformation, grads, carry[1], carry[0])
        return (params, state), state.rates.learning_rate

    _, rates = jax.lax.scan(taken, (PARAMS, transformation.init(PARAMS)), stacked(GRADS))
    np.testing.assert_array_equal(rates, np.float32([0.1, 0.2, 0.3, 0.4]))
    assert dial.asked == 4


def test_one_function_for_two_arguments_is_asked_once() -> None:
    dial = Dial(0.5, 0.25)
    transformation = adam(dial, beta_1=dial, beta_2=dial)
    taken = compiled(transformation)
    state = transformation.init(PARAMS)
    for answer in dial.answers:
        _, state = jax.block_until_ready(taken(PARAMS, state, GRADS[0]))
        found = (state.rates.learning_rate, 1 - state.rates.beta_1.complement,
                 1 - state.rates.beta_2.complement)  # fmt: skip
        assert [float(one) for one in found] == [answer] * 3
    assert dial.asked == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"learning_rate": lambda: -1.0},
            r"ValueError: learning_rate must be .* -1\.0 .* returned",
        ),
        ({"beta_2": lambda: "high"}, "TypeError: beta_2 must be a number in .* 'high'"),
        ({"beta_1": lambda: 1 / 0}, "ZeroDivisionError: division by zero"),
    ],
    ids=["out of range", "no number", "raises"],
)
def test_what_is_wrong_with_a_function_is_said(config: dict[str, Any], message: str) -> None:
    transformation = adam(**config)
    taken, state = compiled(transformation), transformation.init(PARAMS)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(taken(PARAMS, state, GRADS[0]))


SCHEDULES: dict[str, Any] = {
    "ours": CosineDecay(0.1, 3),
    "pieces": PiecewiseConstantDecay([1], [0.1, 0.02]),
    "optax": optax.warmup_cosine_decay_schedule(0.01, 0.1, 2, 4),
    "function": lambda calls: 0.1 / (1 + calls),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_are_evaluated_on_the_number_of_calls(schedule: Any) -> None:
    transformation = adam(schedule, gradient_accumulation_steps=2)
    taken = compiled(transformation)
    params, state = PARAMS, transformation.init(PARAMS)
    assert float(state.rates.learning_rate) == pytest.approx(float(schedule(0)), rel=1e-6)
    for call, grads in enumerate(GRADS):
        params, state = taken(params, state, grads)
        # Schedules are computed in float32 there, in a few operations.
        expected = pytest.approx(float(schedule(call)), rel=1e-5)
        assert metrics(state)["learning_rate"] == expected
    assert taken._cache_size() == 1


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue"])
def test_traced_numbers_compute_what_known_ones_do(clip: str) -> None:
    numbers = {
        "learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.97, "epsilon": 1e-3, "weight_decay": 0.1,
        "ema_momentum": 0.5, "loss_scale_factor": 4.0, clip: 0.5,
    }  # fmt: skip
    plain = adam(**numbers, use_ema=True)

    @jax.jit
    def taken(numbers: Any, params: Any, state: Any, grads: Any) -> Any:
        return step(adam(**numbers, use_ema=True), grads, state, params)

    given = jax.tree.map(jnp.asarray, numbers)
    params, state = PARAMS, plain.init(PARAMS)
    for grads in GRADS:
        params, state = taken(given, params, state, grads)
    expected, _ = trained(plain, PARAMS, GRADS)
    # Weights of betas that are not known as numbers are computed in float32: 1 - 0.97 loses five
    # bits, and the moved distance is a tenth of the parameter.
    close(params, expected, 32)
    other, _ = taken({**given, "learning_rate": jnp.asarray(0.0)}, params, state, GRADS[0])
    same(other, params)
    assert taken._cache_size() == 1


def test_configs_of_the_shared_cases_differ() -> None:
    found = [trained(made(config), PARAMS, GRADS[:2])[0] for config in
             (PLAIN, CLIPPED, AVERAGED, ACCUMULATING)]  # fmt: skip
    for number, one in enumerate(found):
        for other in found[:number]:
            with pytest.raises(AssertionError):
                same(one, other)

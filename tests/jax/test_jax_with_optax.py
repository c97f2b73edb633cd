"""The JAX door inside of optax, Flax, Equinox and Orbax, and the loss scale around them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_cases import (
    AVERAGED,
    CLIPPED,
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

from oneadam.jax import (
    adam,
    averaged,
    finalize,
    loss_scale,
    metrics,
    scale_loss,
    set_learning_rate,
)

PARAMS = parameters()
GRADS = [gradients(number) for number in range(6)]
BROKEN = {**GRADS[0], "scale": jnp.float32(np.inf)}


def updated(transformation: Any, params: Any, every: Any, state: Any = None) -> Any:
    """Return parameters and state after calls of a transformation as optax makes them."""

    @jax.jit
    def taken(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params) if state is None else state
    for grads in every:
        params, state = taken(params, state, grads)
    return params, state


# What optax makes of transformations


def test_a_chain_hands_on_what_comes_before_and_after() -> None:
    chain = optax.chain(optax.scale(0.5), adam(**CLIPPED), optax.scale(1.0))
    found, state = updated(chain, PARAMS, GRADS)
    halves = [jax.tree.map(lambda leaf: leaf * 0.5, grads) for grads in GRADS]
    close(found, updated(adam(**CLIPPED), PARAMS, halves)[0], 1)
    assert metrics(state)["updates"] == 6
    other = set_learning_rate(state, 0.0)
    assert metrics(other)["learning_rate"] == 0.0


def test_several_of_ours_train_their_own_parameters() -> None:
    labels = {"bias": "slow", "kernel": "fast", "scale": "frozen"}
    parts = {"slow": adam(0.01, use_ema=True), "fast": adam(**PLAIN), "frozen": optax.set_to_zero()}
    found, state = updated(optax.multi_transform(parts, labels), PARAMS, GRADS)
    for label, name in (("slow", "bias"), ("fast", "kernel")):
        one = {name: PARAMS[name]}
        alone, after = updated(parts[label], one, [{name: grads[name]} for grads in GRADS])
        close(found[name], alone[name], 1)
        if label == "slow":
            close(averaged(state, found)["bias"], averaged(after, alone)["bias"], 1)
    same(found["scale"], PARAMS["scale"])
    same(averaged(state, found)["kernel"], found["kernel"])
    assert metrics(state.inner_states["slow"])["updates"] == 6


def test_masked_parameters_are_left_to_others() -> None:
    mask = {"bias": False, "kernel": True, "scale": True}
    found, state = updated(optax.masked(adam(**CLIPPED), mask), PARAMS, GRADS[:1])
    # optax hands the updates that are masked on as they are: its gradients.
    close(found["bias"], PARAMS["bias"] + GRADS[0]["bias"], 1)
    rest = {name: PARAMS[name] for name in ("kernel", "scale")}
    alone, _ = updated(adam(**CLIPPED), rest, [{name: GRADS[0][name] for name in rest}])
    close({name: found[name] for name in rest}, alone, 1)
    assert metrics(state)["gradient_norm"] < float(optax.tree.norm(GRADS[0]))


def test_integers_are_masked() -> None:
    params = {"w": jnp.ones(2), "count": jnp.asarray(3)}
    masked = optax.masked(adam(**PLAIN), {"w": True, "count": False})
    grads = {"w": jnp.ones(2), "count": jnp.asarray(0)}
    found, _ = updated(masked, params, [grads])
    assert found["count"] == 3
    assert found["w"] == pytest.approx(0.9)


def test_multi_steps_of_optax_are_the_accumulation_of_ours() -> None:
    theirs = optax.MultiSteps(adam(**AVERAGED), 3).gradient_transformation()
    found, state = updated(theirs, PARAMS, GRADS)
    ours, after = updated(adam(**AVERAGED, gradient_accumulation_steps=3), PARAMS, GRADS)
    # Theirs is a running mean, of which each step is rounded.
    close(found, ours, 8)
    close(averaged(state, found), averaged(after, ours), 8)
    assert metrics(state)["updates"] == metrics(after)["updates"] == 2


def test_apply_if_finite_passes_calls_over() -> None:
    careful = optax.apply_if_finite(adam(**CLIPPED), max_consecutive_errors=5)
    found, state = updated(careful, PARAMS, [GRADS[0], BROKEN, GRADS[1]])
    ours, after = updated(
        adam(**CLIPPED, on_nonfinite="skip"), PARAMS, [GRADS[0], BROKEN, GRADS[1]]
    )
    close(found, ours, 1)
    assert state.total_notfinite == metrics(after)["skipped_calls"] == 1


# Hyperparameters in the state of optax

STATIC = ("gradient_accumulation_steps", "ema_overwrite_frequency")


def test_injected_hyperparameters_may_change_without_compiling() -> None:
    inject = optax.inject_hyperparams(adam, static_args=STATIC)
    transformation = inject(**CLIPPED, gradient_accumulation_steps=2)
    taken = jax.jit(transformation.update)
    params, state = PARAMS, transformation.init(PARAMS)
    for grads in GRADS[:2]:
        updates, state = taken(grads, state, params)
        params = optax.apply_updates(params, updates)
    plain, _ = updated(made({**CLIPPED, "gradient_accumulation_steps": 2}), PARAMS, GRADS[:2])
    # 1 - beta_2 has lost ten bits of a float32 beta_2, in the moment and in its correction alike.
    close(params, plain, 16)
    assert set(state.hyperparams) >= {"learning_rate", "beta_1", "global_clipnorm", "weight_decay"}
    compiled_before = taken._cache_size()
    for rate in (0.02, 0.0):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        state.hyperparams["beta_1"] = jnp.float32(0.5)
        for grads in GRADS[:2]:
            updates, state = taken(grads, state, params)
        assert any(leaf.any() for leaf in jax.tree.leaves(updates)) == (rate > 0.0)
    assert taken._cache_size() == compiled_before


def test_injected_hyperparameters_are_taken_eagerly_too() -> None:
    transformation = optax.inject_hyperparams(adam, static_args=STATIC)(**PLAIN)
    state = transformation.init(PARAMS)
    updates, state = transformation.update(GRADS[0], state, PARAMS)
    # The first step is as long as the learning rate.
    np.testing.assert_allclose(abs(updates["bias"]), 0.1, rtol=1e-5)
    state.hyperparams["learning_rate"] = jnp.asarray(0.01)
    for _ in range(2):
        updates, state = transformation.update(GRADS[0], state, PARAMS)
        np.testing.assert_allclose(abs(updates["bias"]), 0.01, rtol=1e-4)
    assert metrics(state)["learning_rate"] == np.float32(0.01)


def test_injected_schedules_are_those_of_optax() -> None:
    schedule = optax.linear_schedule(0.1, 0.0, 4)
    injected = optax.inject_hyperparams(adam, static_args=STATIC)(learning_rate=schedule)
    found, _ = updated(injected, PARAMS, GRADS)
    close(found, updated(adam(schedule), PARAMS, GRADS)[0], 16)


def test_injected_spellings_and_shapes_that_cannot_be_are_refused() -> None:
    inject = optax.inject_hyperparams(adam)
    message = r"b1 must not be .*\(under optax.inject_hyperparams b1: it always gives beta_1\)"
    with pytest.raises(ValueError, match=message):
        inject(b1=0.8).init(PARAMS)
    with pytest.raises(TypeError, match=r"gradient_accumulation_steps must be .* in static_args"):
        jax.jit(inject(gradient_accumulation_steps=2).init)(PARAMS)


# Agreement with optax's own


@pytest.mark.parametrize(
    "config",
    [{}, {"weight_decay": 0.01}, {"b1": 0.95, "b2": 0.98, "eps": 1e-4}],
    ids=str,
)
def test_a_thousand_updates_are_those_of_adamw_in_float64(config: dict[str, Any]) -> None:
    given = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    given |= config
    count, size = 1000, 64
    draw = np.random.default_rng(0)
    grads = jnp.asarray(draw.normal(size=(count, size)) + 0.3, np.float32)
    begin = jnp.asarray(draw.normal(size=size), np.float32)

    def run(transformation: Any, begin: Any, grads: Any) -> Any:
        def taken(carry: Any, grad: Any) -> Any:
            params, state, largest = carry
            updates, state = transformation.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state, jnp.maximum(largest, abs(params))), None

        first = begin, transformation.init(begin), abs(begin)
        return jax.jit(lambda first: jax.lax.scan(taken, first, grads))(first)[0]

    ours, _, _ = run(adam(**given, epsilon_hat=False), begin, grads)
    with jax.enable_x64(True):
        exact, _, largest = run(
            optax.adamw(**given), begin.astype(np.float64), grads.astype(np.float64)
        )
        assert exact.dtype == np.float64
    hat, _, _ = run(adam(**given), begin, grads)
    spacings = np.spacing(np.asarray(largest, np.float32)).astype(np.float64)

    def apart(found: Any) -> float:
        return float((np.abs(np.asarray(found, np.float64) - np.asarray(exact)) / spacings).max())

    # docs/definition.md, section 3. Updates that are added are rounded once more than steps.
    assert apart(ours) <= 64
    if given["eps"] > 1e-6:
        assert apart(hat) > 64


# Flax, Equinox, Orbax


def test_an_nnx_optimizer_trains_with_ours() -> None:
    nnx = pytest.importorskip("flax.nnx")

    def make() -> Any:
        return nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), np.float32)

    def loss(model: Any) -> Any:
        return ((model(x) - 1.0) ** 2).mean()

    @nnx.jit
    def taken(model: Any, optimizer: Any) -> Any:
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    model = make()
    optimizer = nnx.Optimizer(model, adam(**AVERAGED), wrt=nnx.Param)
    losses = [float(taken(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    other = make()
    pure = nnx.as_pure(nnx.state(other, nnx.Param))
    graph = nnx.graphdef(other)
    grads_of = jax.jit(jax.grad(lambda params: loss(nnx.merge(graph, params))))
    transformation = adam(**AVERAGED)
    state, taken_alone = transformation.init(pure), compiled(transformation)
    for _ in range(20):
        pure, state = taken_alone(pure, state, grads_of(pure))
    # nnx adds updates, which is rounded once more in each of the twenty.
    close(nnx.as_pure(nnx.state(model, nnx.Param)), pure, 64)
    after = nnx.as_pure(optimizer.opt_state)
    assert metrics(after)["updates"] == 20
    close(finalize(after, pure), finalize(state, pure), 64)


def test_a_train_state_of_flax_trains_with_ours() -> None:
    train_state = pytest.importorskip("flax.training.train_state")
    state = train_state.TrainState.create(
        apply_fn=lambda params, x: x, params=PARAMS, tx=adam(**AVERAGED)
    )
    taken = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    for grads in GRADS:
        state = taken(state, grads)
    params, after = updated(adam(**AVERAGED), PARAMS, GRADS)
    close((state.params, state.opt_state.average), (params, after.average), 1)


def test_an_equinox_module_trains_with_ours() -> None:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), np.float32)
    transformation = adam(**AVERAGED)
    state = transformation.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_value_and_grad
    def loss(model: Any) -> Any:
        return ((jax.vmap(model)(x) - 1.0) ** 2).mean()

    @eqx.filter_jit
    def taken(model: Any, state: Any) -> Any:
        value, grads = loss(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = transformation.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(20):
        model, state, value = taken(model, state)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    smooth = finalize(state, eqx.filter(model, eqx.is_inexact_array))
    finished = eqx.combine(smooth, model)
    assert jax.tree.structure(finished) == jax.tree.structure(model)


def test_a_run_saved_by_orbax_resumes_to_the_last_bit(tmp_path: Path) -> None:
    checkpoints = pytest.importorskip("orbax.checkpoint")
    transformation = made(EVERYTHING, True)
    whole = trained(transformation, PARAMS, GRADS)
    half = trained(transformation, PARAMS, GRADS[:3])
    with checkpoints.StandardCheckpointer() as saver:
        saver.save(tmp_path / "half", half)
    fresh = jax.tree.map(jnp.zeros_like, PARAMS), transformation.init(PARAMS)
    with checkpoints.StandardCheckpointer() as saver:
        restored = saver.restore(tmp_path / "half", fresh)
    same(restored, half)
    params, state = restored
    same(trained(transformation, params, GRADS[3:], state), whole)


# The loss scale

AROUND: dict[str, Any] = {
    "ours": partial(adam, **CLIPPED, gradient_accumulation_steps=2),
    "a chain": lambda: optax.chain(optax.clip(1.0), adam(**CLIPPED)),
    "optax": lambda: optax.adam(0.1),
}


def scaled(grads: Any, scale: float) -> Any:
    return jax.tree.map(lambda leaf: leaf * scale, grads)


@pytest.mark.parametrize("inner", AROUND.values(), ids=AROUND)
def test_the_scale_halves_doubles_and_skips_around_anything(inner: Any) -> None:
    transformation = loss_scale(inner(), 8.0, 3, minimum_scale=2.0)
    taken = compiled(transformation)
    params, state = PARAMS, transformation.init(PARAMS)
    scales = []
    calls = [0, 1, None, 2, None, None, None, 3, 4, 5, 0]
    for call in calls:
        before = params, state
        grads = BROKEN if call is None else scaled(GRADS[call], float(state.scale))
        params, state = taken(params, state, grads)
        if call is None:
            same((params, state.inner), (before[0], before[1].inner))
        scales.append(float(state.scale))
    assert scales == [8, 8, 4, 4, 2, 2, 2, 2, 2, 4, 4]
    assert state.skipped_calls.tolist() == [4, 0]
    assert taken._cache_size() == 1  # type: ignore[attr-defined]
    plain = inner()
    alone, after = trained(plain, PARAMS, [GRADS[call] for call in calls if call is not None])
    # Powers of two scale without rounding; what is compiled inside of a branch may fuse otherwise.
    close((params, state.inner), (alone, after), 4)


def test_updates_of_a_skipped_call_are_zero() -> None:
    for inner in (adam(**PLAIN), optax.adam(0.1)):
        transformation = loss_scale(inner, 8.0)
        updates, _ = jax.jit(transformation.update)(BROKEN, transformation.init(PARAMS), PARAMS)
        same(updates, jax.tree.map(jnp.zeros_like, PARAMS))


def test_gradients_of_a_scaled_loss_in_float16_are_not_lost() -> None:
    tiny = jnp.asarray(2.0**-13, np.float16)
    transformation = loss_scale(adam(0.5), 2.0**15)

    def loss(params: Any, state: Any) -> Any:
        value = (params["w"].astype(np.float16) * tiny * tiny).sum()
        return value if state is None else scale_loss(state, value)

    params = {"w": jnp.ones(2)}
    state = transformation.init(params)
    assert not jax.grad(loss)(params, None)["w"].any()
    after, _ = compiled(transformation)(params, state, jax.grad(loss)(params, state))
    # epsilon is a tenth of the root of the second moment, 2**-26 * 0.03.
    assert (params["w"] - after["w"] > 0.0).all()


@pytest.mark.parametrize("window", [1, 2])
def test_what_is_not_finite_once_it_is_unscaled_and_summed_is_skipped(window: int) -> None:
    huge = {"w": jnp.full(2, 3e38)}
    params = {"w": jnp.ones(2)}
    config = {**PLAIN, "gradient_accumulation_steps": window}
    transformation = loss_scale(adam(**config), 1.0, minimum_scale=0.25)
    if window == 1:
        # Three quarters of the largest number, unscaled by a half.
        state = transformation.init(params)._replace(scale=jnp.asarray(0.5))
        found, state = compiled(transformation)(params, state, huge)
        assert metrics(state)["calls"] == 0
    else:
        found, state = trained(transformation, params, [huge, huge])
        assert metrics(state)["calls"] == 1
        same(state.inner.gradient_accumulator, huge)
    assert metrics(state)["skipped_calls"] == 1
    same(found, params)


def test_fifty_skipped_calls_in_a_row_are_warned_of() -> None:
    transformation = loss_scale(adam(**PLAIN), 2.0**15)
    params, state = trained(transformation, PARAMS, [BROKEN] * 49)
    assert metrics(state)["loss_scale"] == 1.0
    params, state = trained(transformation, params, [BROKEN], state)
    with pytest.warns(UserWarning, match="50 calls in a row .* come down to 1.0"):
        assert metrics(state)["skipped_calls"] == 50
    _, state = trained(transformation, params, GRADS[:1], state)
    assert metrics(state)["calls"] == 1


def test_the_scale_stays_below_its_largest_number() -> None:
    transformation = loss_scale(adam(**PLAIN), 2.0**127, 1)
    _, state = trained(transformation, PARAMS, [jax.tree.map(jnp.zeros_like, PARAMS)] * 2)
    assert metrics(state)["loss_scale"] == 2.0**127


def test_a_missing_gradient_is_missing_under_a_loss_scale_too() -> None:
    transformation = loss_scale(adam(**PLAIN), 8.0)
    grads = {**scaled(GRADS[0], 8.0), "bias": None}
    state = transformation.init(PARAMS)
    with pytest.warns(UserWarning, match="for: bias"):
        params, state = trained(transformation, PARAMS, [grads], state)
    same(params["bias"], PARAMS["bias"])
    assert state.inner.absences.updates[0].tolist() == [0, 1, 1]

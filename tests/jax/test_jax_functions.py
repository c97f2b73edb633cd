"""The functions of the JAX door: what they return, what they refuse, and trees of every kind."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections import deque
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_cases import (
    AVERAGED,
    EVERYTHING,
    PLAIN,
    call,
    close,
    compiled,
    gradients,
    made,
    parameters,
    same,
    trained,
)

from oneadam import numpy as numpy_door
from oneadam.jax import (
    AdamState,
    LossScaleState,
    adam,
    averaged,
    expect_absences,
    finalize,
    flush,
    from_config,
    get_config,
    loss_scale,
    metrics,
    scale_loss,
    set_learning_rate,
    step,
)
from oneadam.schedules import CosineDecay

PARAMS = parameters()
GRADS = [gradients(number) for number in range(8)]


def test_the_helpers_tell_trees_apart() -> None:
    same({"a": jnp.zeros(2)}, {"a": jnp.zeros(2)})
    others = [{"a": jnp.zeros(3)}, {"b": jnp.zeros(2)}, {"a": jnp.zeros(2, np.float16)},
              {"a": jnp.full(2, -0.0)}, {"a": jnp.full(2, 1e-30)}]  # fmt: skip
    for other in others:
        with pytest.raises(AssertionError):
            same({"a": jnp.zeros(2)}, other)
    close({"a": jnp.ones(2)}, {"a": jnp.ones(2) + 2**-22}, 2)
    with pytest.raises(AssertionError):
        close({"a": jnp.ones(2)}, {"a": jnp.ones(2) + 2**-22}, 1)


# Steps


def test_updates_added_to_the_parameters_are_a_step_within_one_rounding() -> None:
    transformation = made(AVERAGED)
    params, state = trained(transformation, PARAMS, GRADS[:3])
    stepped, after = call(transformation, GRADS[3], state, params)
    updates, also_after = jax.jit(transformation.update)(GRADS[3], state, params)
    close(also_after, after, 1)
    # One rounding of the difference and one of the sum.
    close(optax.apply_updates(params, updates), stepped, 1)


def test_update_takes_extra_arguments_of_other_transformations() -> None:
    transformation = made(PLAIN)
    state = transformation.init(PARAMS)
    same(
        transformation.update(GRADS[0], state, PARAMS, value=1.0, grad_fn=None),
        transformation.update(GRADS[0], state, PARAMS),
    )


def test_the_state_is_named_tuples_of_arrays_only() -> None:
    transformation = made(EVERYTHING, scaled=True)
    state = expect_absences(transformation.init(PARAMS))
    assert isinstance(state, LossScaleState)
    assert isinstance(state.inner, AdamState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    for name in ("momentum", "velocity", "velocity_hat", "average", "gradient_accumulator"):
        assert jax.tree.structure(getattr(state.inner, name)) == jax.tree.structure(PARAMS)


def test_what_is_not_used_is_none_in_the_state() -> None:
    state = adam().init(PARAMS)
    optional = ("gradient_norm", "clip_scale", "absences", "velocity_hat", "average",
                "gradient_accumulator")  # fmt: skip
    assert [getattr(state, name) for name in optional] == [None] * 6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_parameters_have_float32_state_and_keep_their_dtype(dtype: str) -> None:
    narrow, transformation = parameters(dtype=jnp.dtype(dtype)), made(EVERYTHING)
    before = transformation.init(narrow)
    updates, after = jax.eval_shape(transformation.update, GRADS[0], before, narrow)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(updates)} == {dtype}
    for state in (before, after):
        for name in ("momentum", "velocity", "velocity_hat", "average", "gradient_accumulator"):
            dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(getattr(state, name))}
            assert dtypes == {"float32"}


def test_arrays_of_numpy_are_parameters_too() -> None:
    wide = {name: np.asarray(leaf, np.float64) for name, leaf in PARAMS.items()}
    transformation = made(EVERYTHING)
    state = transformation.init(wide)
    same(state, transformation.init(PARAMS))
    given = jax.tree.map(np.asarray, GRADS[0])
    same(call(transformation, given, state, wide), call(transformation, GRADS[0], state, PARAMS))


# Closing a window


def test_a_flush_closes_the_window_and_only_once() -> None:
    transformation = adam(**PLAIN, gradient_accumulation_steps=4)
    params, state = trained(transformation, PARAMS, GRADS[:2])
    same(params, PARAMS)
    closed, state = flush(transformation, state, params)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *GRADS[:2])
    expected, _ = call(made(PLAIN), mean, made(PLAIN).init(PARAMS), PARAMS)
    close(closed, expected, 4)
    assert (metrics(state)["calls"], metrics(state)["updates"]) == (2, 1)
    same(flush(transformation, state, closed), (closed, state))
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.gradient_accumulator))


def test_without_a_window_there_is_nothing_to_flush() -> None:
    transformation = made(PLAIN)
    state = transformation.init(PARAMS)
    same(flush(transformation, state, PARAMS), (PARAMS, state))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_flush_finds_our_state_wherever_it_is(scaled: bool) -> None:
    ours = made({**PLAIN, "gradient_accumulation_steps": 4}, scaled)
    chain = optax.chain(optax.clip(1e6), ours)
    scale = 8.0 if scaled else 1.0
    given = jax.tree.map(lambda leaf: leaf * scale, GRADS[0])
    _, state = chain.update(given, chain.init(PARAMS), PARAMS)
    closed, state = flush(ours, state, PARAMS)
    expected, _ = call(made(PLAIN), GRADS[0], made(PLAIN).init(PARAMS), PARAMS)
    close(closed, expected, 4)
    assert metrics(state)["updates"] == 1


# Averages


def test_averages_are_the_parameters_until_there_are_some() -> None:
    transformation = adam(**PLAIN, use_ema=True, ema_momentum=0.5)
    state = transformation.init(PARAMS)
    same(averaged(state, PARAMS), PARAMS)
    first, state = call(transformation, GRADS[0], state, PARAMS)
    same(averaged(state, first), first)
    second, state = call(transformation, GRADS[1], state, first)
    close(averaged(state, second), jax.tree.map(lambda a, b: (a + b) / 2, first, second), 2)
    same(finalize(state, second), averaged(state, second))
    same(finalize(adam().init(PARAMS), PARAMS), PARAMS)


def test_parameters_without_an_average_are_returned_as_they_are() -> None:
    masked = optax.masked(adam(**PLAIN, use_ema=True), {"bias": False, "kernel": True,
                                                        "scale": False})  # fmt: skip
    state = masked.init(PARAMS)
    params = PARAMS
    for grads in GRADS[:2]:
        updates, state = masked.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    found = averaged(state, params)
    same(found["bias"], params["bias"])
    assert (found["kernel"] != params["kernel"]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_overwritten_parameters_are_exactly_their_averages(dtype: str) -> None:
    narrow = parameters(dtype=jnp.dtype(dtype))
    transformation = made(AVERAGED)
    params, state = trained(transformation, narrow, GRADS[:3])
    assert (averaged(state, params)["kernel"] != params["kernel"]).any()
    params, state = call(transformation, GRADS[3], state, params)
    same(averaged(state, params), params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}


# Learning rate and metrics


@pytest.mark.parametrize("value", [0.02, 0, np.float32(0.02), jnp.asarray(0.02)], ids=repr)
def test_a_learning_rate_that_is_set_holds_from_the_next_call_on(value: Any) -> None:
    params, state = trained(made(PLAIN), PARAMS, GRADS[:2])
    changed = set_learning_rate(state, value)
    assert metrics(changed)["learning_rate"] == np.float32(value)
    other = adam(learning_rate=float(value))
    expected, _ = call(other, GRADS[2], state._replace(rates=other.init(PARAMS).rates), params)
    same(call(made(PLAIN), GRADS[2], changed, params)[0], expected)


def test_a_learning_rate_is_set_in_every_state_of_ours() -> None:
    both = optax.chain(optax.clip(1.0), adam(), optax.masked(adam(), True), loss_scale(adam()))
    state = set_learning_rate(both.init(PARAMS), 0.25)
    rates = [node.rates.learning_rate for node in jax.tree.leaves(state, is_leaf=is_ours)
             if is_ours(node)]  # fmt: skip
    assert [float(rate) for rate in rates] == [0.25] * 3


def is_ours(node: Any) -> bool:
    return isinstance(node, AdamState)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(-1.0, ValueError), (float("nan"), ValueError), ("0.1", TypeError), (True, TypeError),
     (jnp.ones(2), TypeError), (None, TypeError)],
    ids=str,
)  # fmt: skip
def test_a_learning_rate_that_is_none_is_refused(value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="learning_rate must be a finite number >= 0, received") as error:
        set_learning_rate(adam().init(PARAMS), value)
    assert repr(value)[:5] in str(error.value)


def test_metrics_are_plain_numbers() -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.inf, GRADS[0])
    _, state = trained(made(EVERYTHING), PARAMS, [*GRADS[:3], broken, GRADS[3]])
    found = metrics(state)
    assert all(type(value) in (int, float) for value in found.values())
    mean = np.concatenate([np.ravel(a + b) / 2 for a, b in
                           zip(GRADS[2].values(), GRADS[3].values(), strict=True)])  # fmt: skip
    norm = float(np.linalg.norm(mean))
    assert found == {
        "calls": 4,
        "updates": 2,
        "skipped_calls": 1,
        "learning_rate": pytest.approx(0.1, rel=1e-6),
        "gradient_norm": pytest.approx(norm, rel=1e-6),
        "clip_scale": pytest.approx(1 / norm, rel=1e-6),
    }


@pytest.mark.parametrize("function", [set_learning_rate, lambda state, _: metrics(state),
                                      lambda state, _: scale_loss(state, 1.0)])  # fmt: skip
def test_a_state_without_ours_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match=r"state must have an? \w+State in it, received tuple"):
        function(optax.adam(0.1).init(PARAMS), 0.1)


def test_metrics_of_two_states_are_refused() -> None:
    both = optax.chain(adam(), adam())
    with pytest.raises(ValueError, match="state must have one AdamState in it, received 2; pass"):
        metrics(both.init(PARAMS))


def test_a_scaled_loss_keeps_its_dtype() -> None:
    state = optax.chain(optax.clip(1.0), loss_scale(adam(), 8.0)).init(PARAMS)
    for loss in (jnp.asarray(0.5, jnp.bfloat16), jnp.asarray(0.5), np.float16(0.5)):
        assert scale_loss(state, loss) == 4.0
        assert scale_loss(state, loss).dtype == loss.dtype
    assert scale_loss(state, 0.5) == 4.0


# Configurations

WRITTEN: list[dict[str, Any]] = [
    {},
    EVERYTHING,
    {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "epsilon_hat": False, "name": "inner"},
    {"learning_rate": CosineDecay(0.1, 100)},
    {"weight_decay": 0.1, "exclude_from_weight_decay": ["bias", re.compile("scale$")]},
    {"loss_scale_factor": 128.0, "clipvalue": 0.5},
]


def scaled_if(scaled: bool, transformation: Any) -> Any:
    return loss_scale(transformation, 8.0, 3) if scaled else transformation


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("config", WRITTEN, ids=str)
def test_a_configuration_makes_the_same_again(config: dict[str, Any], scaled: bool) -> None:
    if scaled and "loss_scale_factor" in config:
        pytest.skip("refused, see test_what_cannot_be_scaled_is_refused")
    transformation = scaled_if(scaled, adam(**config))
    written = json.loads(json.dumps(get_config(transformation)))
    before = json.dumps(written)
    again = from_config(written)
    assert get_config(again) == get_config(transformation) == written
    assert json.dumps(written) == before
    assert lowered(again) == lowered(transformation)


def lowered(transformation: Any) -> str:
    """The step as it is handed to the compiler, and the state that it begins with."""
    state = transformation.init(PARAMS)
    return compiled(transformation).lower(PARAMS, state, GRADS[0]).as_text() + str(state)


def test_other_configurations_are_handed_to_the_compiler_otherwise() -> None:
    assert lowered(adam()) == lowered(adam())
    for config in WRITTEN[1:]:
        assert lowered(adam(**config)) != lowered(adam())


def test_a_configuration_is_that_of_the_other_doors() -> None:
    assert get_config(adam(b1=0.8)) == numpy_door.Adam(beta_1=0.8).get_config()
    assert get_config(adam(jnp.asarray(0.25))) == get_config(adam(0.25))


def test_a_configuration_of_keras_is_taken() -> None:
    keras = {
        "name": "adam", "learning_rate": 0.01, "weight_decay": None, "clipnorm": None,
        "global_clipnorm": 1.0, "clipvalue": None, "use_ema": False, "ema_momentum": 0.99,
        "ema_overwrite_frequency": None, "loss_scale_factor": None,
        "gradient_accumulation_steps": None, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-07,
        "amsgrad": False,
    }  # fmt: skip
    expected = get_config(adam(0.01, global_clipnorm=1.0))
    assert get_config(from_config(keras)) == expected
    scaled = {
        "name": "loss_scale_optimizer", "initial_scale": 16.0, "dynamic_growth_steps": 7,
        "inner_optimizer": {
            "module": "keras.optimizers", "class_name": "Adam", "config": keras,
            "registered_name": None,
        },
    }  # fmt: skip
    assert get_config(from_config(scaled)) == get_config(
        loss_scale(adam(0.01, global_clipnorm=1.0), 16.0, 7)
    )


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="on_nonfinite must be 'propagate' or 'skip' in JAX"):
        from_config({"on_nonfinite": "raise"})
    with pytest.raises(TypeError, match="get_config must be given what"):
        get_config(optax.adam(0.1))
    with pytest.raises(TypeError, match="of a chain, pass the part that is ours"):
        get_config(loss_scale(optax.adam(0.1)))
    with pytest.raises(ValueError, match="learning_rate must be a number or a Learn"):
        get_config(adam(lambda: 0.1))


# Refusals

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"learning_rate": -1.0}, ValueError, "learning_rate must be a finite number >= 0"),
    ({"learning_rate": "fast"}, TypeError, "learning_rate must be a finite number >= 0"),
    ({"learning_rate": jnp.ones(2)}, TypeError, "learning_rate must be a finite number >= 0"),
    ({"learning_rate": jnp.asarray(np.nan)}, ValueError, "learning_rate must be a finite number"),
    ({"learning_rate": lambda a, b: a}, TypeError, "learning_rate must be a number, a schedule"),
    ({"learning_rate": CosineDecay}, TypeError, "learning_rate must be a number or a callable"),
    ({"beta_1": 1.0}, ValueError, r"beta_1 must be a number in \[0, 1\)"),
    ({"b1": 1.0}, ValueError, r"beta_1 must be a number in \[0, 1\)"),
    ({"b2": -0.5}, ValueError, r"beta_2 must be a number in \[0, 1\)"),
    ({"beta_2": "0.9"}, TypeError, r"beta_2 must be a number in \[0, 1\)"),
    ({"beta_1": lambda calls: 0.9}, TypeError, "beta_1 must be a number or a callable without"),
    ({"eps": 0}, ValueError, "epsilon must be a finite number > 0"),
    ({"epsilon": True}, TypeError, "epsilon must be a finite number > 0"),
    ({"amsgrad": 1}, TypeError, "amsgrad must be True or False"),
    ({"weight_decay": -0.1}, ValueError, "weight_decay must be a finite number >= 0"),
    ({"clipnorm": 0.0}, ValueError, "clipnorm must be a number > 0"),
    ({"clipvalue": "1"}, TypeError, "clipvalue must be a number > 0"),
    ({"global_clipnorm": -1}, ValueError, "global_clipnorm must be a number > 0"),
    ({"clipnorm": 1.0, "clipvalue": 0.5}, ValueError, "At most one of clipnorm, clipvalue"),
    ({"use_ema": "yes"}, TypeError, "use_ema must be True or False"),
    ({"ema_momentum": 1.5}, ValueError, r"ema_momentum must be a number in \[0, 1\]"),
    ({"ema_overwrite_frequency": 0}, ValueError, "ema_overwrite_frequency must be an int >= 1"),
    ({"loss_scale_factor": 0.0}, ValueError, "loss_scale_factor must be a finite number > 0"),
    ({"gradient_accumulation_steps": 2.0}, TypeError, "gradient_accumulation_steps must be an int"),
    ({"name": ""}, ValueError, "name must be a non-empty str"),
    ({"epsilon_hat": None}, TypeError, "epsilon_hat must be True or False"),
    ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite must be one of"),
    ({"on_nonfinite": "raise"}, ValueError, "on_nonfinite must be 'propagate' or 'skip' in JAX"),
    ({"exclude_from_weight_decay": "bias"}, TypeError, "var_names must be a list"),
    ({"sharded_over": 3}, TypeError, "sharded_over must be the name of an axis"),
    ({"sharded_over": ("fsdp", 3)}, TypeError, "sharded_over must be the name of an axis"),
]


@pytest.mark.parametrize(("config", "kind", "rule"), REFUSED, ids=[case[2] for case in REFUSED])
def test_a_refused_argument_is_named_with_the_rule_and_the_value(
    config: dict[str, Any], kind: type[Exception], rule: str
) -> None:
    with pytest.raises(kind, match=rule) as error:
        adam(**config)
    message = str(error.value)
    for value in config.values():
        assert (value.__name__ if isinstance(value, type) else repr(value)) in message
    # The way out is a sentence or a clause of its own.
    assert re.search(r"(; |\. )(Pass|pass|Set|Wrap|use)", message)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_1": 0.8, "b1": 0.7},
        {"beta_1": 0.8, "b1": 0.8},
        {"beta_2": float("0.999"), "b2": 0.99},
        {"epsilon": 1e-3, "eps": 1e-8},
    ],
    ids=str,
)
def test_both_spellings_of_an_argument_are_refused(config: dict[str, float]) -> None:
    (ours, value), (theirs, other) = config.items()
    expected = f"{theirs} must not be given together with {ours}, .* {other!r} and {value!r}; leave"
    with pytest.raises(ValueError, match=expected):
        adam(**config)


def test_the_spellings_of_optax_mean_the_same() -> None:
    assert get_config(adam(b1=0.8, b2=0.95, eps=1e-3)) == get_config(
        adam(beta_1=0.8, beta_2=0.95, epsilon=1e-3)
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epsilon": 1e-40}, "epsilon must be a normal number of float32"),
        ({"loss_scale_factor": 1e39}, "loss_scale_factor must be a normal number of float32"),
    ],
)
def test_numbers_that_float32_loses_are_refused_once_parameters_are_known(
    config: Any, message: str
) -> None:
    transformation = adam(**config)
    with pytest.raises(ValueError, match=message):
        transformation.init(PARAMS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gradient_accumulation_steps", 2), ("ema_overwrite_frequency", 2), ("amsgrad", True),
     ("epsilon_hat", False)],
)  # fmt: skip
def test_traced_arguments_that_shape_the_step_are_refused(name: str, value: Any) -> None:
    expected = f"{name} must be known when the step is compiled, received the traced array .*; pass"
    with pytest.raises(TypeError, match=expected):
        jax.jit(lambda given: adam(**{name: given}).init(PARAMS))(value)


def test_a_traced_argument_that_is_no_number_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"beta_1 must be a number, received .* shape \(2,\); pass"
    ):
        jax.jit(lambda given: adam(beta_1=given).init(PARAMS))(jnp.ones(2))


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        (
            {"w": jnp.ones(2, np.int32)},
            TypeError,
            "params must have a real .* int32 for 'w'; leave",
        ),
        ({"w": jnp.ones(2, np.complex64)}, TypeError, "real floating .* complex64 for 'w'; leave"),
        ({"w": jax.random.key(0)}, TypeError, "params must have a real floating dtype"),
        ({"w": 1.0}, TypeError, r"params must be arrays, received 1.0 \(float\) as 'w'; convert"),
        ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, ValueError, "params must give .*; rename"),
    ],
    ids=lambda value: "",
)
def test_parameters_that_cannot_be_trained_are_refused(
    params: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        adam().init(params)


NOTHING = dict.fromkeys(PARAMS)

BAD_GRADIENTS: list[tuple[Any, type[Exception], str]] = [
    ({"bias": GRADS[0]["bias"]}, ValueError, "(?s)grads must have the structure .*; take"),
    ({**GRADS[0], "more": jnp.ones(1)}, ValueError, "grads must have the structure of params"),
    (list(GRADS[0].values()), ValueError, "grads must have the structure of params"),
    (None, ValueError, "grads must have the structure of params"),
    ({**GRADS[0], "bias": jnp.ones((3, 1))}, ValueError,
     r"grads must have the shapes .* \(3, 1\) for 'bias' of shape \(3,\); nothing is broadcast"),
    ({**GRADS[0], "bias": jnp.ones(3, np.int32)}, TypeError, "real floating .* int32 for 'bias';"),
    ({**GRADS[0], "bias": jnp.ones(3, np.complex64)}, TypeError, "complex64 for 'bias'; take"),
    ({**GRADS[0], "scale": 1.0}, TypeError, "grads must be arrays .* float for 'scale'; take"),
    (NOTHING, ValueError, "grads must have a gradient for at least one .*; check"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("grads", "kind", "message"), BAD_GRADIENTS, ids=[case[2][:40] for case in BAD_GRADIENTS]
)
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_that_do_not_fit_are_refused(
    grads: Any, kind: type[Exception], message: str, scaled: bool
) -> None:
    transformation = made(PLAIN, scaled)
    state = transformation.init(PARAMS)
    with pytest.raises(kind, match=message):
        transformation.update(grads, state, PARAMS)
    with pytest.raises(kind, match=message):
        step(transformation, grads, state, PARAMS)


def test_parameters_must_be_given() -> None:
    with pytest.raises(ValueError, match="params must be given to update, received None; call"):
        adam().update(GRADS[0], adam().init(PARAMS))


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        (
            adam().init({"w": jnp.ones(2)}),
            ValueError,
            "state must be that of these .* at bias, .*; make",
        ),
        (adam().init({**PARAMS, "bias": jnp.ones(4)}), ValueError, "state must be that of these"),
        (optax.adam(0.1).init(PARAMS), TypeError, "state must be an AdamState, received tuple;"),
        (adam(use_ema=True).init(PARAMS), ValueError, "transformation, .* one with average; make"),
        (adam(clipnorm=1.0).init(PARAMS), ValueError, "with gradient_norm and with clip_scale;"),
    ],
    ids=["fewer", "shape", "optax", "average", "clipping"],
)
def test_a_state_of_something_else_is_refused(
    state: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        adam().update(GRADS[0], state, PARAMS)


@pytest.mark.parametrize(
    "config",
    [{"use_ema": True}, {"amsgrad": True}, {"gradient_accumulation_steps": 2}, {"clipnorm": 1.0}],
    ids=str,
)
def test_a_state_that_lacks_a_part_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"state must be that of this .* without .*; make it with"):
        adam(**config).update(GRADS[0], adam().init(PARAMS), PARAMS)


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(
        TypeError, match="inner must be a gradient transformation, received 3; pass"
    ):
        loss_scale(3)
    with pytest.raises(ValueError, match=r"loss_scale_factor=None, .* received 2.0; leave it out"):
        loss_scale(adam(loss_scale_factor=2.0))
    for name in ("initial_scale", "minimum_scale", "dynamic_growth_steps"):
        with pytest.raises(ValueError, match=f"{name} must be .*, received 0 "):
            loss_scale(adam(), **{name: 0})


# Trees of every kind


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@partial(jax.tree_util.register_dataclass, data_fields=["bias", "kernel"], meta_fields=["rate"])
@dataclasses.dataclass
class Layer:
    bias: Any
    kernel: Any
    rate: float = 0.5


def module(kernel: Any, bias: Any) -> Any:
    eqx = pytest.importorskip("equinox")

    class Module(eqx.Module):
        kernel: Any
        bias: Any

    module.made = getattr(module, "made", Module)  # type: ignore[attr-defined]
    return module.made(kernel, bias)  # type: ignore[attr-defined]


TREES: dict[str, Any] = {
    "dict": lambda kernel, bias: {"kernel": kernel, "bias": bias},
    "nested": lambda kernel, bias: {"a": {"b": [kernel, (bias,)]}},
    "list": lambda kernel, bias: [kernel, bias],
    "tuple": lambda kernel, bias: (kernel, bias),
    "named tuple": Pair,
    "dataclass": lambda kernel, bias: Layer(bias, kernel),
    "equinox": module,
    "with None": lambda kernel, bias: {"kernel": kernel, "none": None, "rest": [None, bias]},
    "with empty": lambda kernel, bias: {"kernel": kernel, "none": {}, "rest": [(), bias]},
    "mixed": lambda kernel, bias: [Pair(kernel, None), Layer(None, {"bias": bias})],
}


SHORT = {**PLAIN, "global_clipnorm": 1.0, "use_ema": True}


@pytest.mark.parametrize("name", TREES)
def test_any_tree_is_trained_like_another(name: str) -> None:
    tree, transformation = TREES[name], made(SHORT)

    def arrays(of: dict[str, Any]) -> tuple[Any, Any]:
        return of["kernel"], of["bias"]

    params = tree(*arrays(PARAMS))
    found, state = trained(transformation, params, [tree(*arrays(grads)) for grads in GRADS[:2]])
    flat, _ = trained(transformation, arrays(PARAMS), [arrays(grads) for grads in GRADS[:2]])
    assert jax.tree.structure(found) == jax.tree.structure(params)
    # The norm may be a sum in another order.
    close(found, tree(*flat), 2)
    assert jax.tree.structure(averaged(state, found)) == jax.tree.structure(params)
    updates, _ = jax.eval_shape(transformation.update, params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize("empty", [{}, [], (), None, {"a": None}, [{}, ()]], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_tree_without_parameters_does_nothing(empty: Any, scaled: bool) -> None:
    transformation = made(EVERYTHING, scaled)
    state = transformation.init(empty)
    if empty is not None:
        assert flush(transformation, state, empty)[0] == empty
        assert transformation.update(empty, state, empty)[0] == empty
        assert step(transformation, empty, state, empty)[0] == empty
    assert averaged(state, empty) == empty
    assert metrics(state)["calls"] == 0


def test_empty_arrays_and_single_numbers_are_parameters_too() -> None:
    params = {"empty": jnp.zeros((0, 3)), "number": jnp.asarray(1.0)}
    grads = {"empty": jnp.zeros((0, 3)), "number": jnp.asarray(3.0)}
    found, state = trained(made(EVERYTHING), params, [grads] * 2)
    assert found["empty"].shape == (0, 3)
    assert found["number"] == pytest.approx(1.0 - 0.1 - 0.1 * 0.01, rel=1e-6)
    assert metrics(state)["gradient_norm"] == 3.0
    only = {"empty": jnp.zeros(0)}
    found, _ = trained(made(EVERYTHING), only, [only] * 2)
    same(found, only)


# Gradients that are None


def without(grads: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: None if name in names else grad for name, grad in grads.items()}


def test_missing_gradients_are_warned_of_once_for_each_set_of_names() -> None:
    transformation = adam(**PLAIN)
    state = transformation.init(PARAMS)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for names in (("bias",), ("bias",), ("bias", "kernel"), ("bias",), (), ("bias", "kernel")):
            _, state = step(transformation, without(GRADS[0], *names), state, PARAMS)
    told = [str(one.message).rpartition("for: ")[2] for one in heard]
    assert told == ["bias", "bias, kernel"]
    assert {one.filename for one in heard} == {__file__}


def test_the_first_missing_gradient_adds_counters_to_the_state() -> None:
    transformation = adam(**PLAIN)
    params, state = trained(transformation, PARAMS, GRADS[:2])
    assert state.absences is None
    with pytest.warns(UserWarning, match="for: bias"):
        params, state = call(transformation, without(GRADS[2], "bias"), state, params)
    assert state.absences.updates.tolist() == [[2, 3, 3], [0, 0, 0]]
    _, state = call(transformation, GRADS[3], state, params)
    assert state.absences.updates.tolist() == [[3, 4, 4], [0, 0, 0]]


@pytest.mark.parametrize("config", [EVERYTHING], ids=["everything"])
def test_states_that_expect_absences_compute_the_same(config: dict[str, Any]) -> None:
    transformation = made(config)
    first = transformation.init(PARAMS)
    expecting = expect_absences(first)
    same(expecting, expect_absences(expecting))
    plain, state = trained(transformation, PARAMS, GRADS[:3], first)
    counted, after = trained(transformation, PARAMS, GRADS[:3], expecting)
    assert jax.tree.structure(after) == jax.tree.structure(expecting)
    # The compiler may round other formulas for the same numbers otherwise.
    close(counted, plain, 2)
    close(after._replace(absences=None), state, 4)


WINDOW = {**PLAIN, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("config", [PLAIN, WINDOW], ids=["plain", "window"])
def test_each_parameter_is_corrected_by_its_own_count_as_in_numpy(config: dict[str, Any]) -> None:
    calls = [*(without(grads, "bias") for grads in GRADS[:4]), *GRADS[4:]]
    transformation = adam(**config)
    theirs = {name: np.array(leaf) for name, leaf in PARAMS.items()}
    optimizer = numpy_door.Adam(**config)
    optimizer.build(theirs)
    theirs_of = [{n: None if g is None else np.array(g) for n, g in call.items()} for call in calls]
    with pytest.warns(UserWarning, match="for: bias"):
        deque(map(optimizer.apply, theirs_of))
    with pytest.warns(UserWarning, match="for: bias"):
        ours, state = trained(transformation, PARAMS, calls)
    # Four spacings for each of up to eight updates and each door, growing like a square root.
    close(ours, theirs, 2 * 4 * 8**0.5)
    shared = optimizer.state_dict()
    window = config.get("gradient_accumulation_steps", 1)
    assert state.absences.updates[0].tolist() == [int(shared[f"{name}/updates"]) for name in PARAMS]
    assert shared["bias/updates"] == 4 // window


def test_a_parameter_that_is_unfrozen_takes_a_full_first_step() -> None:
    transformation = adam(**PLAIN)
    with pytest.warns(UserWarning, match="for: bias"):
        params, state = trained(transformation, PARAMS, [without(g, "bias") for g in GRADS[:4]])
    same(params["bias"], PARAMS["bias"])
    after, _ = call(transformation, GRADS[4], state, params)
    # With the count of all parameters it would be a third of that.
    np.testing.assert_allclose(abs(after["bias"] - params["bias"]), 0.1, rtol=1e-5)


# Exclusions


def test_parameters_are_exempt_from_decay_by_parts_of_their_paths() -> None:
    params = {"layers": [{"kernel": jnp.ones(2), "bias": jnp.ones(2)}], "norm1": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    excluded = ["0/bias", re.compile("norm[0-9]$")]
    transformation = adam(0.5, weight_decay=0.5, exclude_from_weight_decay=excluded)
    found, _ = call(transformation, zeros, transformation.init(params), params)
    assert float(found["layers"][0]["kernel"][0]) == 0.75
    same(found["layers"][0]["bias"], jnp.ones(2))
    same(found["norm1"], jnp.ones(2))


def test_a_call_that_is_skipped_changes_nothing_but_its_counter() -> None:
    transformation = made(EVERYTHING)
    params, state = trained(transformation, PARAMS, GRADS[:3])
    broken = {**GRADS[3], "scale": jnp.asarray(np.nan)}
    after, skipped = call(transformation, broken, state, params)
    same(after, params)
    same(skipped._replace(skipped_calls=state.skipped_calls), state)
    assert metrics(skipped)["skipped_calls"] == 1


def test_a_flush_that_would_leave_out_the_rest_of_a_chain_is_refused() -> None:
    own = adam(0.1, gradient_accumulation_steps=2)
    params = {"kernel": jnp.ones(3)}
    state = optax.chain(own, optax.scale(0.0)).init(params)
    with pytest.raises(TypeError, match="ends with EmptyState"):
        flush(own, state, params)


@pytest.mark.parametrize("shape", [(1,), (2,)])
def test_a_learning_rate_is_one_number(shape: tuple[int, ...]) -> None:
    params = {"kernel": jnp.ones(3), "bias": jnp.ones(())}
    with pytest.raises(ValueError, match="learning_rate must be one number"):
        adam(lambda calls: jnp.full(shape, 0.1)).init(params)
    state = adam().init(params)
    with pytest.raises(ValueError, match="learning_rate must be one number"):
        jax.jit(set_learning_rate)(state, jnp.full(shape, 0.1))


def test_a_state_of_another_precision_is_refused() -> None:
    params = {"kernel": jnp.ones(3)}
    transformation = adam(global_clipnorm=1.0)
    state = transformation.init(params)
    with jax.enable_x64(True), pytest.raises(ValueError, match="jax_enable_x64"):
        transformation.update(params, state, params)
    narrow = state._replace(momentum={"kernel": jnp.zeros(3, jnp.bfloat16)})
    with pytest.raises(ValueError, match="momentum differs"):
        transformation.update(params, narrow, params)


def test_averages_of_other_parameters_are_refused() -> None:
    state = adam(use_ema=True).init({"kernel": jnp.ones(3)})
    with pytest.raises(ValueError, match="average has"):
        averaged(state, {"kernel": jnp.ones(1)})


def test_the_rates_of_several_models_are_set_by_mapping() -> None:
    transformation = adam()
    states = jax.vmap(transformation.init)({"kernel": jnp.ones((2, 3))})
    states = jax.vmap(set_learning_rate)(states, jnp.asarray([0.25, 0.5]))
    assert states.rates.learning_rate.tolist() == [0.25, 0.5]

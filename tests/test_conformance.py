"""Every door against the oracle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from conformance import Run, check, run
from hypothesis import given, settings
from oracle import norm
from scenarios import (
    ByCalls,
    Call,
    Dial,
    Flush,
    Gradient,
    Scenario,
    Variable,
    constant,
    scenarios,
)

from oneadam import numpy as numpy_door

G = Gradient()
EVERYTHING: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.01,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_overwrite_frequency": 100,
}


def torch_door() -> Any:
    """The torch door, behind the interface of the NumPy door."""
    pytest.importorskip("torch")
    import torch_as_numpy

    return torch_as_numpy


def jax_door() -> Any:
    """The JAX door, behind the interface of the NumPy door."""
    pytest.importorskip("jax")
    import jax_as_numpy

    return jax_as_numpy


BACKEND = os.environ.get("KERAS_BACKEND")
"""Where it is set, the Keras door is tested on it, and no other door."""
READY, COMPILED = {
    None: (("numpy", "torch", "torch as on a device"), ("jax", "jax with 64 bits")),
    "torch": (("keras",), ()),
    "tensorflow": (("keras",), ("keras compiled",)),
    "jax": ((), ("keras",)),
}[BACKEND]


@contextmanager
def opened(name: str) -> Iterator[Any]:
    """A module with `Adam` and `LossScaleOptimizer`."""
    if name == "numpy":
        yield numpy_door
    elif name.startswith("keras"):
        import keras_as_numpy

        yield keras_as_numpy.COMPILED if "compiled" in name else keras_as_numpy
    elif name.startswith("jax"):
        found = jax_door()
        import jax

        with jax.enable_x64("64" in name):
            yield found
    else:
        with pytest.MonkeyPatch.context() as patch:
            if name == "torch as on a device":
                pytest.importorskip("torch")
                patch.setattr("oneadam._engines.torch.tensors.is_host", lambda device: False)
            yield torch_door()


@pytest.fixture(params=[*READY, *COMPILED], scope="module")
def door(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Every door."""
    with opened(request.param) as found:
        yield found


@pytest.fixture(params=READY, scope="module")
def ready_door(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The doors whose steps are there already."""
    with opened(request.param) as found:
        yield found


@pytest.fixture(params=COMPILED, scope="module")
def compiled_door(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The doors that compile a step for each set of options and shapes, which takes a second."""
    with opened(request.param) as found:
        yield found


def is_possible(door: Any, scenario: Scenario) -> bool:
    """Whether a door has what the scenario asks for."""
    return not hasattr(door, "can") or bool(door.can(scenario))


def fitted(door: Any, scenario: Scenario) -> Scenario:
    """The scenario, with what a door does not have exchanged for what comes next to it."""
    return door.fitting(scenario) if hasattr(door, "fitting") else scenario


def through(door: Any, scenario: Scenario, **options: Any) -> Run:
    """Takes a door through a scenario."""
    if not is_possible(door, scenario):
        pytest.skip("JAX has no float64 unless it is told to, XLA calls no function of Python")
    return run(door.Adam, scenario, wrap=door.LossScaleOptimizer, **options)


@given(scenarios())
def test_agrees_whatever_is_drawn(ready_door: Any, scenario: Scenario) -> None:
    check(ready_door.Adam, fitted(ready_door, scenario))


@given(scenarios(loss_scale=True))
def test_agrees_under_a_dynamic_loss_scale_whatever_is_drawn(
    ready_door: Any, scenario: Scenario
) -> None:
    fitting = fitted(ready_door, scenario)
    check(ready_door.Adam, fitting, wrap=ready_door.LossScaleOptimizer)


# A second or more for each, and more where gradients are None here and there.
@settings(max_examples=8)
@given(scenarios())
def test_agrees_compiled_whatever_is_drawn(compiled_door: Any, scenario: Scenario) -> None:
    check(compiled_door.Adam, fitted(compiled_door, scenario))


@settings(max_examples=4)
@given(scenarios(loss_scale=True))
def test_agrees_compiled_under_a_dynamic_loss_scale_whatever_is_drawn(
    compiled_door: Any, scenario: Scenario
) -> None:
    fitting = fitted(compiled_door, scenario)
    check(compiled_door.Adam, fitting, wrap=compiled_door.LossScaleOptimizer)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_1": 0.0, "beta_2": 0.99},
        {"beta_1": 0.9999999, "beta_2": 0.9999999},
        {"epsilon_hat": False, "epsilon": 1e-3},
        {"learning_rate": ByCalls(0.1, 0.01), "weight_decay": 0.1},
        EVERYTHING,
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["steady", "noisy"])
def test_thousand_updates(door: Any, config: dict[str, Any], kind: str) -> None:
    scenario = constant(config, calls=1000, gradient=Gradient(kind=kind))
    assert through(door, scenario, compare_at=lambda index: index % 100 == 0).oracle.updates == 1000


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_thousand_updates_of_other_dtypes(door: Any, dtype: str) -> None:
    variables = (Variable("kernel", (4,), dtype), Variable("bias", (2,), dtype))
    scenario = constant(EVERYTHING, calls=1000, variables=variables, gradient=Gradient(dtype))
    through(door, scenario, compare_at=lambda index: index % 100 == 0)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
@pytest.mark.parametrize("kind", ["wide", "huge"])
def test_extreme_gradients_are_clipped_without_overflow_or_underflow(
    door: Any, kind: str, clip: str, limit: float
) -> None:
    variables = (Variable("kernel", (5, 7)), Variable("bias", (3,)))
    gradient = Gradient(kind=kind)
    through(door, constant({clip: limit}, calls=4, variables=variables, gradient=gradient))


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_tiny_gradients_are_not_lost_to_an_underflowing_norm(door: Any, clip: str) -> None:
    gradient = Gradient(size=1e-25)
    through(door, constant({clip: 1e-26}, calls=1, gradient=gradient))


def test_accumulated_gradients_near_the_largest_number_are_judged_by_their_sum(door: Any) -> None:
    config = {"gradient_accumulation_steps": 2, "on_nonfinite": "skip", "clipnorm": 1.0}
    both = through(door, constant(config, calls=3, gradient=Gradient(kind="huge")))
    assert both.oracle.skipped_calls == 2


@pytest.mark.parametrize("beta_2", [0.0, 0.5, 0.9, 0.999, 0.99999, 0.9999999])
@pytest.mark.parametrize("beta_1", [0.0, 0.5, 0.9, 0.999, 0.9999999])
def test_betas_from_zero_to_almost_one(door: Any, beta_1: float, beta_2: float) -> None:
    config = {"beta_1": beta_1, "beta_2": beta_2}
    through(door, constant(config, calls=10, gradient=Gradient(kind="steady")))


def test_betas_and_learning_rate_may_change_on_every_call(door: Any) -> None:
    config = {
        "learning_rate": Dial((0.1, 0.01, 0.03)),
        "beta_1": Dial((0.9, 0.8)),
        "beta_2": Dial((0.999, 0.99)),
        "gradient_accumulation_steps": 2,
    }
    through(door, constant(config, calls=9))


@pytest.mark.parametrize("config", [{}, EVERYTHING, {"gradient_accumulation_steps": 3}], ids=str)
def test_a_variable_unfrozen_late_starts_like_a_new_one(door: Any, config: dict[str, Any]) -> None:
    steps = (Call((G, None)),) * 200 + (Call((G, G)),) * 20
    through(door, constant(config, steps=steps), compare_at=lambda index: index > 195)


def test_a_flushed_window_is_an_update_like_another(door: Any) -> None:
    config = {**EVERYTHING, "gradient_accumulation_steps": 3, "ema_overwrite_frequency": 2}
    whole, part = Call((G, G)), Call((None, G))
    through(
        door, constant(config, steps=(whole, Flush(), part, whole, Flush(), Flush(), *[part] * 4))
    )


def test_large_and_many_tensors(door: Any) -> None:
    variables = (
        Variable("large", (70_001,)),
        Variable("odd", (333, 11), layout="strided"),
        Variable("half", (2_049,), "bfloat16"),
        *(Variable(f"small_{i}", (i % 5,)) for i in range(300)),
    )
    through(door, constant(EVERYTHING, calls=2, variables=variables))


def test_many_nonfinite_calls_and_recoveries_under_a_dynamic_loss_scale(door: Any) -> None:
    broken = Call((Gradient(poison=float("inf")), G))
    whole = Call((G, None))
    steps = (whole, broken, whole, whole, *[broken] * 12, *[whole] * 30)
    scale = {"initial_scale": 2.0**6, "dynamic_growth_steps": 3, "minimum_scale": 0.5}
    config = {**EVERYTHING, "gradient_accumulation_steps": 2}
    through(door, constant(config, steps=steps, loss_scale=scale))


def test_a_narrow_gradient_of_a_wide_parameter_is_unscaled_as_wide_as_the_parameter(
    door: Any,
) -> None:
    variables = [Variable(f"of_{dtype}", (7,), "float64") for dtype in ("bf", "half", "single")]
    step = Call(tuple(Gradient(dtype) for dtype in ("bfloat16", "float16", "float32")))
    scale = {"initial_scale": 3.0}
    through(door, constant(steps=(step, step), variables=tuple(variables), loss_scale=scale))


def test_metrics_tell_what_the_last_call_used(door: Any) -> None:
    optimizer = door.Adam(learning_rate=ByCalls(0.1), global_clipnorm=2.0)
    variables = [np.zeros(2, np.float32), np.zeros((), np.float32)]
    gradients = [np.array([3.0, 4.0], np.float32), np.array(12.0, np.float32)]
    optimizer.build(variables)
    optimizer.apply(gradients)
    optimizer.apply(gradients)
    metrics = optimizer.metrics()
    assert norm([3.0, 4.0, 12.0]) == 13.0
    assert metrics["gradient_norm"] == pytest.approx(13.0, rel=1e-6)
    assert metrics["clip_scale"] == pytest.approx(2.0 / 13.0, rel=1e-6)
    assert metrics["learning_rate"] == pytest.approx(0.05, rel=1e-6)
    assert (metrics["calls"], metrics["updates"], metrics["skipped_calls"]) == (2, 2, 0)

"""The JAX door with a deliberate fault in one of its parts, which the oracle must notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from conformance import ConformanceError, run  # noqa: E402
from jax_as_numpy import Adam, LossScaleOptimizer  # noqa: E402
from scenarios import Call, Gradient, Scenario, constant  # noqa: E402

from oneadam._exclusions import Exclusions  # noqa: E402
from oneadam._plan import Weights  # noqa: E402
from oneadam.jax import _adam, _loss_scale, _norms, _numbers, _shards, _update  # noqa: E402

G = Gradient()
HUGE = constant({"global_clipnorm": 1.0}, calls=2, gradient=Gradient(kind="huge"))
LATE = constant({}, steps=(*[Call((G, None))] * 5, *[Call((G, G))] * 2))
WINDOW = constant({"gradient_accumulation_steps": 2}, calls=4)
AVERAGES = constant({"use_ema": True, "ema_overwrite_frequency": 2}, calls=4)
SPARED = constant({"weight_decay": 0.5}, calls=2, exclude=("bias",))
BROKEN = constant({"on_nonfinite": "skip"}, steps=(Call((Gradient(poison=float("inf")), G)),))
SLOW = constant(
    {"beta_1": 0.9999999, "beta_2": 0.9999999}, calls=20, gradient=Gradient(kind="steady")
)
SCALED = constant(
    {}, calls=6, loss_scale={"initial_scale": 8.0, "dynamic_growth_steps": 2, "minimum_scale": 1.0}
)


def rounded_weights(beta: Any) -> Weights:
    narrow = np.float32(beta)
    return Weights(*map(jnp.float32, (1 - narrow, np.log(narrow), 1, 1)))


FAULTS: dict[str, tuple[Scenario, Any, str, Any]] = {
    "norms overflow": (
        HUGE,
        _norms,
        "_RANGES",
        {"float32": _norms._RANGES["float32"]._replace(factor=1.0)},
    ),
    "factors underflow": (
        HUGE,
        _update,
        "_clipped",
        lambda norm, limit: (limit / norm.size * norm.power, jnp.float32(1)),
    ),
    "weights of betas are computed in float32": (SLOW, _numbers, "weights", rounded_weights),
    "parameters share a count": (LATE, _adam, "_counting_absences", lambda state, given: state),
    "a window is not emptied": (WINDOW, _adam, "emptied_if", lambda is_closed, sums: sums),
    "averages do not overwrite": (AVERAGES, _numbers, "is_multiple", lambda *_: jnp.array(False)),
    "nothing is spared from decay": (SPARED, Exclusions, "covers", lambda *_: False),
    "counters stay": (AVERAGES, _numbers, "counted", lambda counter, more: counter),
    "an inf is no reason to skip": (
        BROKEN,
        _shards,
        "anywhere",
        lambda flag: flag & False,
    ),
    "the loss scale stays": (
        SCALED,
        _loss_scale,
        "_next",
        lambda state, finite, settings: state,
    ),
}


@pytest.fixture(autouse=True)
def _nothing_compiled_before_or_after() -> Iterator[None]:
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, module, name, wrong = FAULTS[fault]
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(ConformanceError):
        run(Adam, scenario, wrap=LossScaleOptimizer)


def test_without_a_fault_there_is_nothing_to_notice() -> None:
    for scenario in {id(fault[0]): fault[0] for fault in FAULTS.values()}.values():
        run(Adam, scenario, wrap=LossScaleOptimizer)

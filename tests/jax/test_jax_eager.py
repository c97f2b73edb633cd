"""Steps from plain Python, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from oneadam.jax import adam, flush, loss_scale, step  # noqa: E402

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextmanager
def counting() -> Iterator[list[str]]:
    """What is compiled meanwhile."""
    seen: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event == COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def scaled_adam(**config: Any) -> Any:
    return loss_scale(adam(**config))


@pytest.mark.parametrize("make", [adam, scaled_adam])
@pytest.mark.parametrize(
    "config",
    [{"global_clipnorm": 1.0}, {"gradient_accumulation_steps": 2, "on_nonfinite": "skip"}],
    ids=str,
)
def test_steps_from_plain_python_are_compiled_once(make: Any, config: dict[str, Any]) -> None:
    transformation = make(**config)
    params = {"kernel": jnp.ones(3), "bias": jnp.ones(())}
    state = transformation.init(params)

    def steps() -> None:
        after, new = step(transformation, params, state, params)
        transformation.update(params, new, after)
        flush(transformation, new, after)

    with counting() as first:
        steps()
    with counting() as second:
        steps()
        steps()
    assert first
    assert not second


def test_what_is_no_array_is_refused_before_anything_is_compiled() -> None:
    transformation = loss_scale(adam())
    params = {"kernel": jnp.ones(())}
    with pytest.raises(TypeError, match="grads"):
        transformation.update({"kernel": 1.0}, transformation.init(params), params)

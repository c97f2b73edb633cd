"""The array engine, under every namespace, and what the comparison rejects."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
from engines.differential import (
    EVERYTHING,
    Case,
    Engine,
    EngineError,
    cases,
    check,
    scalars,
    values,
)

from oneadam import _rule
from oneadam._engines import Buffers, Options, arrays
from oneadam._plan import Scalars

ALL = cases(("float16", "bfloat16", "float64", "float32"),
            ("float32", "float16", "bfloat16", "float64", None))  # fmt: skip
WIDE = cases(("float64", "float32"), ("float32", "float64", None))


def with_numpy(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    with np.errstate(all="ignore"):
        return arrays.update(buffers, s, options, np)


def through(convert: Callable[[Any], Any], back: Callable[[Any], np.ndarray], xp: Any) -> Engine:
    """The array engine under a namespace whose arrays NumPy's are converted to and from."""

    def engine(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
        given = Buffers(*(None if a is None else convert(a) for a in buffers))
        after = arrays.update(given, s, options, xp)
        return Buffers(*(None if a is None else back(a) for a in after))

    return engine


@pytest.mark.parametrize("case", ALL, ids=str)
def test_under_numpy(case: Case) -> None:
    check(with_numpy, case)


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_under_the_strictest_namespace(case: Case) -> None:
    # It has no narrow floats, and promotes nothing that the standard does not promise.
    with np.errstate(all="ignore"):
        check(through(array_api_strict.asarray, np.asarray, array_api_strict), case)


def _torch_engine() -> Engine:
    torch = pytest.importorskip("torch")

    def convert(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def back(tensor: Any) -> np.ndarray:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    inner = through(convert, back, torch)

    def engine(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
        if options.limit is not None:  # its maximum takes tensors only
            dtype = torch.float64 if buffers.param.dtype == np.float64 else torch.float32
            options = options._replace(limit=torch.tensor(options.limit, dtype=dtype))
        return inner(buffers, s, options)

    return engine


@pytest.mark.parametrize("case", ALL, ids=str)
def test_under_torch(case: Case) -> None:
    check(_torch_engine(), case)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_under_jax(case: Case, compiled: bool) -> None:
    jax = pytest.importorskip("jax")

    def update(buffers: Buffers, s: Scalars, limit: Any) -> Buffers:
        return arrays.update(buffers, s, case.options._replace(limit=limit), jax.numpy)

    step = jax.jit(update) if compiled else update

    def engine(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
        wide = buffers.param.dtype == np.float64 or case.grad == "float64"
        with jax.enable_x64(True) if wide else nullcontext():
            dtype = "float64" if buffers.param.dtype == np.float64 else "float32"
            given = jax.tree.map(jax.numpy.asarray, buffers)
            numbers = jax.tree.map(lambda x: jax.numpy.asarray(x, dtype), s)
            limit = None if options.limit is None else jax.numpy.asarray(options.limit, dtype)
            return jax.tree.map(np.asarray, step(given, numbers, limit))

    # XLA flushes subnormal numbers to zero.
    check(engine, case, subnormals=False)


def test_jax_compiles_an_update_once() -> None:
    jax = pytest.importorskip("jax")
    traced = 0

    def update(buffers: Buffers, s: Scalars) -> Buffers:
        nonlocal traced
        traced += 1
        return arrays.update(buffers, s, Options(), jax.numpy)

    step = jax.jit(update)
    for seed in range(3):
        given = jax.tree.map(jax.numpy.asarray, values(Case(), seed=seed))
        numbers = jax.tree.map(lambda x: jax.numpy.asarray(x, "float32"), scalars(seed))
        step(given, numbers)
    assert traced == 1


@pytest.mark.parametrize("size", [0, 1, 3])
def test_small_sizes(size: int) -> None:
    check(with_numpy, Case(**EVERYTHING), size=size, poison=False)


def test_arguments_are_left_alone() -> None:
    before = values(Case(**EVERYTHING))
    for array in before:
        array.setflags(write=False)
    with_numpy(before, scalars(), Case(**EVERYTHING).options)


_right = {name: getattr(_rule, name) for name in ("accumulate", "clip", "adam", "moving_average")}


def _wrong_rule(**changed: Callable[..., Any]) -> Engine:
    def engine(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
        with patch.multiple(_rule, **changed):
            return with_numpy(buffers, s, options)

    return engine


def _wrong_adam(change: Callable[..., Any]) -> Engine:
    return _wrong_rule(adam=change)


def _no_epsilon(p, g, m, v, vmax, d, s, sqrt, maximum):
    return _right["adam"](p, g, m, v, vmax, d, s._replace(epsilon=0.0), sqrt, maximum)


def _epsilon_in_the_root(p, g, m, v, vmax, d, s, sqrt, maximum):
    root = lambda x: sqrt(x + s.epsilon) - s.epsilon  # noqa: E731
    return _right["adam"](p, g, m, v, vmax, d, s, root, maximum)


def _amsgrad_ignored(p, g, m, v, vmax, d, s, sqrt, maximum):
    return *_right["adam"](p, g, m, v, None, d, s, sqrt, maximum)[:3], vmax


def _amsgrad_drops_nan(p, g, m, v, vmax, d, s, sqrt, maximum):
    return _right["adam"](p, g, m, v, vmax, d, s, sqrt, np.fmax)


def _decay_after_the_step(p, g, m, v, vmax, d, s, sqrt, maximum):
    p, m, v, vmax = _right["adam"](p, g, m, v, vmax, None, s, sqrt, maximum)
    return (p if d is None else p - p * d), m, v, vmax


def _decay_coupled(p, g, m, v, vmax, d, s, sqrt, maximum):
    g = g if d is None else g + p * d
    return _right["adam"](p, g, m, v, vmax, None, s, sqrt, maximum)


def _decay_ignored(p, g, m, v, vmax, d, s, sqrt, maximum):
    return _right["adam"](p, g, m, v, vmax, None, s, sqrt, maximum)


def _betas_swapped(p, g, m, v, vmax, d, s, sqrt, maximum):
    s = s._replace(one_minus_beta_1=s.one_minus_beta_2, one_minus_beta_2=s.one_minus_beta_1)
    return _right["adam"](p, g, m, v, vmax, d, s, sqrt, maximum)


def _nesterov(p, g, m, v, vmax, d, s, sqrt, maximum):
    after = _right["adam"](p, g, m, v, vmax, d, s, sqrt, maximum)
    ahead = _right["adam"](p, g, after[1], v, vmax, d, s, sqrt, maximum)
    return ahead[0], *after[1:]


def _last_velocity(p, g, m, v, vmax, d, s, sqrt, maximum):
    after = _right["adam"](p, g, m, v, vmax, d, s, sqrt, maximum)
    frozen = s._replace(one_minus_beta_2=0.0)
    return _right["adam"](p, g, m, v, vmax, d, frozen, sqrt, maximum)[0], *after[1:]


def _scale_ignored(g, limit, s, maximum, minimum):
    return _right["clip"](g, limit, s._replace(grad_scale=1.0), maximum, minimum)


def _power_ignored(g, limit, s, maximum, minimum):
    return _right["clip"](g, limit, s._replace(grad_scale_power=1.0), maximum, minimum)


def _clipped_before_scaled(g, limit, s, maximum, minimum):
    g = g if limit is None else minimum(maximum(g, -limit), limit)
    return _right["clip"](g, None, s, maximum, minimum)


def _clipped_above_only(g, limit, s, maximum, minimum):
    return _right["clip"](g, limit, s, lambda x, low: x, minimum)


def _clipping_heals_nan(g, limit, s, maximum, minimum):
    return _right["clip"](g, limit, s, np.fmax, np.fmin)


def _narrow_moments(p, g, m, v, vmax, d, s, sqrt, maximum):
    p, m, v, vmax = _right["adam"](p, g, m, v, vmax, d, s, sqrt, maximum)
    return p, m.astype(ml_dtypes.bfloat16).astype(m.dtype), v, vmax


def _average_of_the_unrounded(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    wide = buffers._replace(param=buffers.param.astype(np.float32))
    after = with_numpy(wide, s, options)
    return after._replace(param=after.param.astype(buffers.param.dtype))


def _truncated(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    after = with_numpy(buffers._replace(param=buffers.param.astype(np.float32)), s, options)
    cut = (after.param.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return after._replace(param=cut.astype(buffers.param.dtype) * np.float32(1 - 2**-8))


def _keeps_accumulator(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    return with_numpy(buffers, s, options)._replace(accumulator=buffers.accumulator)


def _multiplies_accumulator_by_zero(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    with np.errstate(all="ignore"):
        return with_numpy(buffers, s, options)._replace(accumulator=buffers.accumulator * 0)


def _computes_in_float32(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    with np.errstate(all="ignore"):
        narrow = Buffers(*(None if a is None else a.astype(np.float32) for a in buffers))
        after = with_numpy(narrow, s, options)
    return Buffers(*(None if a is None else a.astype(np.float64) for a in after))


def _never_overwrites(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    return with_numpy(buffers, s, options._replace(overwrite=False))


WRONG: dict[str, tuple[Engine, Case]] = {
    "no epsilon": (_wrong_adam(_no_epsilon), Case()),
    "epsilon in the root": (_wrong_adam(_epsilon_in_the_root), Case()),
    "amsgrad ignored": (_wrong_adam(_amsgrad_ignored), Case(maximum=True)),
    "amsgrad drops NaN": (_wrong_adam(_amsgrad_drops_nan), Case(maximum=True)),
    "decay after the step": (_wrong_adam(_decay_after_the_step), Case(decays=True)),
    "decay coupled": (_wrong_adam(_decay_coupled), Case(decays=True)),
    "decay ignored": (_wrong_adam(_decay_ignored), Case(decays=True)),
    "betas swapped": (_wrong_adam(_betas_swapped), Case()),
    "Nesterov": (_wrong_adam(_nesterov), Case()),
    "last velocity": (_wrong_adam(_last_velocity), Case()),
    "narrow moments": (_wrong_adam(_narrow_moments), Case()),
    "scale ignored": (_wrong_rule(clip=_scale_ignored), Case()),
    "power ignored": (_wrong_rule(clip=_power_ignored), Case()),
    "clipped before scaled": (_wrong_rule(clip=_clipped_before_scaled), Case(limited=True)),
    "clipped above only": (_wrong_rule(clip=_clipped_above_only), Case(limited=True)),
    "clipping heals NaN": (_wrong_rule(clip=_clipping_heals_nan), Case(limited=True)),
    "loss scale ignored": (
        _wrong_rule(accumulate=lambda a, g, _: _right["accumulate"](a, g, None)),
        Case(scaled=True),
    ),
    "loss scale twice": (
        _wrong_rule(accumulate=lambda a, g, c: _right["accumulate"](a, g / c, c)),
        Case(scaled=True),
    ),
    "accumulator unscaled too": (
        _wrong_rule(accumulate=lambda a, g, c: (a + g) / c),
        Case(scaled=True, accumulated=True),
    ),
    "window forgotten": (
        _wrong_rule(accumulate=lambda a, g, c: _right["accumulate"](None, g, c)),
        Case(accumulated=True),
    ),
    "average the wrong way round": (
        _wrong_rule(moving_average=lambda a, p, s: _right["moving_average"](p, a, s)),
        Case(averaged=True),
    ),
    "average not moved": (_wrong_rule(moving_average=lambda a, p, s: a), Case(averaged=True)),
    "average of the unrounded": (_average_of_the_unrounded, Case("bfloat16", averaged=True)),
    "truncated": (_truncated, Case("bfloat16")),
    "keeps the accumulator": (_keeps_accumulator, Case(accumulated=True)),
    "accumulator times zero": (_multiplies_accumulator_by_zero, Case(accumulated=True)),
    "float64 in float32": (_computes_in_float32, Case("float64", "float64")),
    "never overwrites": (_never_overwrites, Case(averaged=True, overwrite=True)),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_wrong_engines_are_rejected(name: str) -> None:
    engine, case = WRONG[name]
    check(with_numpy, case)
    with pytest.raises(EngineError):
        check(engine, case)


@pytest.mark.parametrize("name", sorted(WRONG))
def test_wrong_engines_are_rejected_with_everything_on(name: str) -> None:
    engine, case = WRONG[name]
    case = Case(case.param, case.grad, **{**EVERYTHING, "overwrite": case.overwrite})
    check(with_numpy, case)
    with pytest.raises(EngineError):
        check(engine, case)

"""Norms: neither overflow nor underflow, and nothing that is not finite goes unseen."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from engines import hosts
from engines.differential import DTYPES

from oneadam._engines import Buffers, Options
from oneadam._engines.cpu.pieces import PIECE


def norms(
    *grads: np.ndarray | None,
    accumulators: list[np.ndarray] | None = None,
    loss_scale: float | None = None,
    param: str | None = None,
) -> np.ndarray:
    """The norms of gradients, by the host engine."""
    rows = []
    for number, grad in enumerate(grads):
        shape = (1,) if grad is None else grad.shape
        dtype = DTYPES[param or ("float32" if grad is None else grad.dtype.name)]
        state = np.zeros(shape, np.float64 if dtype == np.float64 else np.float32)
        accumulator = None if accumulators is None else accumulators[number]
        rows.append(Buffers(np.zeros(shape, dtype), grad, accumulator, state, state, None, None))
    host = hosts.made(rows)
    options = Options(loss_scale=loss_scale)
    return host.norms(hosts.seen(host, rows), options, accumulated=accumulators is not None)


def exact(numbers: np.ndarray) -> float:
    """The norm, in rational arithmetic up to the root."""
    total = sum(Fraction(float(number)) ** 2 for number in np.ravel(numbers))
    exponent = total.numerator.bit_length() - total.denominator.bit_length()
    exponent -= exponent % 2
    return math.ldexp(math.sqrt(total / Fraction(2) ** exponent), exponent // 2)


def strided(array: np.ndarray) -> np.ndarray:
    """The same elements, every other of a larger array."""
    host = np.full(2 * array.size, np.nan, array.dtype)
    host[::2] = array
    return host[::2]


LAYOUTS = [np.asarray, strided]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_magnitudes_of_float32_in_one_tensor(dtype: str, layout) -> None:
    rng = np.random.default_rng(1)
    for low, high in ((-25, 30), (-25, -20), (-44, -38), (37, 38.4), (-45, 38)):
        numbers = (10.0 ** rng.uniform(low, high, 3000) * rng.choice([-1, 1], 3000)).astype(dtype)
        assert norms(layout(numbers))[0] == pytest.approx(exact(numbers), rel=1e-13, abs=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "numbers",
    [
        [1e200, 3e200], [1e-200, 2e-200], [1e200, 1e-200, 1.0], [5e-324], [5e-324] * 1000,
        [1e308] * 100, [1.7e308, 1.7e308], [1e154] * 3, [1e-154] * 3, [1e-162, 1e-140],
        [1e-320, 1e-300], [1e150] * 4000, [1e-141] * 3, [0.0, 0.0], [],
    ],
    ids=lambda numbers: f"{numbers[:2]}x{len(numbers)}",
)  # fmt: skip
def test_all_magnitudes_of_float64(numbers: list[float], layout) -> None:
    array = np.array(numbers, np.float64)
    norm = norms(layout(array))[0]
    try:
        wanted = exact(array)
    except OverflowError:
        wanted = math.inf
    # What cannot be said in float64 is infinite; the smallest numbers have few bits.
    assert norm == pytest.approx(wanted, rel=1e-13, abs=5e-324)


def test_each_variable_has_its_own_rescue() -> None:
    grads = [
        np.array([3e200, 4e200]), np.array([3e-200, 4e-200]), np.array([3.0, 4.0]),
        np.array([3.0, 4.0], np.float32), np.array([np.inf]), np.array([np.nan, 1e300]),
        np.zeros(4), np.zeros(0), np.array([3e-38, 4e-38], np.float32),
        strided(np.array([3e-180, 4e-180])), None,
    ]  # fmt: skip
    found = norms(*grads)
    assert found[4] == math.inf
    assert math.isnan(found[5])
    finite = [0, 1, 2, 3, 6, 7, 8, 9, 10]
    wanted = [5e200, 5e-200, 5.0, 5.0, 0.0, 0.0, 5e-38, 5e-180, 0.0]
    np.testing.assert_allclose(found[finite], wanted, rtol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_wherever_it_is(bad: float, dtype: str, layout) -> None:
    size = PIECE + 21
    for place in (0, 1, 7, PIECE - 1, PIECE, size - 2, size - 1):
        numbers = np.ones(size, DTYPES[dtype])
        numbers[place] = bad
        found = norms(layout(numbers), np.ones(3, DTYPES[dtype]))
        assert not np.isfinite(found[0]), place
        assert np.isfinite(found[1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_largest_numbers_are_finite(dtype: str, layout) -> None:
    largest = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028234e38}[dtype]
    numbers = np.full(5000, largest, DTYPES[dtype])
    assert norms(layout(numbers))[0] == pytest.approx(exact(numbers), rel=1e-13)


def test_opposite_infinities_do_not_cancel() -> None:
    numbers = np.array([np.inf, -np.inf], np.float32)
    assert not np.isfinite(norms(numbers)[0])
    zeros = np.zeros(2, np.float32)
    assert not np.isfinite(norms(numbers, accumulators=[zeros])[0])
    assert np.isnan(norms(numbers, accumulators=[-numbers])[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unscaled_and_accumulated(layout) -> None:
    grad = layout(np.array([30.0, 0.0, 6.0], np.float32))
    accumulator = np.array([0.0, 4.0, -2.0], np.float32)
    assert norms(grad, loss_scale=10.0)[0] == pytest.approx(exact(np.array([3, 0, 0.6])), 1e-7)
    found = norms(grad, accumulators=[accumulator], loss_scale=3.0)[0]
    assert found == pytest.approx(exact(np.array([10.0, 4.0, 0.0])))
    # A variable that sits this call out has the sum of those before.
    assert norms(None, accumulators=[np.array([5.0], np.float32)])[0] == 5.0
    assert norms(None)[0] == 0.0
    # What overflows float32 once unscaled or summed is not finite, though its parts are.
    assert norms(np.array([3e38], np.float32), loss_scale=0.5)[0] == math.inf
    large = np.array([3e38], np.float32)
    assert norms(large, accumulators=[large.copy()])[0] == math.inf
    # A wide gradient of a narrow variable is computed in float32.
    assert norms(np.array([1e39]), param="float32")[0] == math.inf
    assert norms(np.array([1e39]), param="float64")[0] == 1e39


def test_norms_of_pieces_add_up() -> None:
    rng = np.random.default_rng(4)
    for size in (PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5):
        numbers = rng.normal(size=size).astype(np.float32)
        wanted = math.sqrt(math.fsum(numbers.astype(np.float64) ** 2))
        assert norms(numbers)[0] == pytest.approx(wanted, rel=1e-13)
        assert norms(strided(numbers))[0] == pytest.approx(wanted, rel=1e-13)

"""Narrow numbers: widened exactly, rounded to nearest even, for every pattern of bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from engines import hosts
from engines.differential import DTYPES, scalars

from oneadam._engines import Buffers, Options, strided

NARROW = ("float16", "bfloat16")
Round = Callable[[np.ndarray, str], np.ndarray]


def patterns(dtype: str) -> np.ndarray:
    """All 65,536 numbers of a narrow dtype."""
    return np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])


def between(dtype: str) -> np.ndarray:
    """All numbers of a narrow dtype, all halfway cases, and their neighbours, in float32."""
    numbers = patterns(dtype).astype(np.float32)
    finite = np.unique(numbers[np.isfinite(numbers)])
    halfway = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    # Where infinity begins: half a spacing above the largest number.
    edge = np.float32(finite[-1].astype(np.float64) + (finite[-1] - finite[-2]) / 2.0)
    others = np.array([edge, -edge, 3.4e38, -3.4e38, 1e-45, -1e-45], np.float32)
    exact = np.concatenate([numbers, halfway, others])
    with np.errstate(all="ignore"):  # signaling NaNs among them
        around = [np.nextafter(exact, np.float32(to)) for to in (-np.inf, np.inf)]
    # Their upper halves are those of infinity and, rounded up, of zero.
    nans = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32)
    return np.concatenate([exact, *around, nans.view(np.float32)])


def rounded_by_numpy(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """What NumPy and ml_dtypes make of float32 numbers."""
    with np.errstate(all="ignore"):
        return numbers.astype(DTYPES[dtype])


def assert_rounds(round_to: Round, dtype: str) -> None:
    """Hold a way of rounding to NumPy's, bit by bit; a NaN need only be NaN, of its sign."""
    # An average that is infinite does not keep still; what becomes infinite is here.
    numbers = between(dtype)
    numbers = numbers[~np.isinf(numbers)]
    got, wanted = round_to(numbers, dtype), rounded_by_numpy(numbers, dtype)
    nan = np.isnan(numbers)
    assert np.isnan(got[nan].astype(np.float32)).all()
    wrong = np.flatnonzero((got.view(np.uint16) != wanted.view(np.uint16)) & ~nan)
    assert not wrong.size, f"{numbers[wrong[0]]!r} became {got[wrong[0]]!r} ({wrong.size} wrong)"
    signs = got.view(np.uint16) >> 15, numbers.view(np.uint32) >> 31
    np.testing.assert_array_equal(*signs)


# An average that keeps still, taken into the variable: -0.0 leaves the sign of a zero alone.
STILL = scalars(decays=False, step_size=0.0, one_minus_ema_momentum=-0.0)
OVERWRITE = Options(overwrite=True)


def _row(numbers: np.ndarray, dtype: str) -> Buffers:
    zeros = np.zeros(numbers.shape, np.float32)
    param = np.zeros(numbers.shape, DTYPES[dtype])
    ones = np.ones(numbers.shape, np.float32)
    return Buffers(param, ones, None, zeros, zeros.copy(), None, numbers.copy())


def by_updating(numbers: np.ndarray, dtype: str) -> np.ndarray:
    return hosts.update([_row(numbers, dtype)], STILL, OVERWRITE)[0].param


def by_averaging(numbers: np.ndarray, dtype: str) -> np.ndarray:
    row = _row(numbers, dtype)._replace(grad=None)
    return hosts.update([row], STILL, OVERWRITE, participants=[False])[0].param


def by_blocks(numbers: np.ndarray, dtype: str) -> np.ndarray:
    row = _row(numbers, dtype)
    with np.errstate(all="ignore"):
        strided.average(row, STILL, OVERWRITE)
    return row.param


def by_stepping(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Through a step: a float32 step onto a variable of zero gives minus the step."""
    zeros = np.zeros(numbers.shape, np.float32)
    row = Buffers(
        zeros.astype(DTYPES[dtype]), zeros, None, numbers.copy(), zeros.copy(), None, None
    )
    s = scalars(decays=False, one_minus_beta_1=0.0, step_size=-1.0, epsilon=1.0)
    return hosts.update([row], s, Options())[0].param


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("way", [by_updating, by_averaging, by_blocks])
def test_rounds_to_nearest_even(way: Round, dtype: str) -> None:
    assert_rounds(way, dtype)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_step_rounds_to_nearest_even(dtype: str) -> None:
    numbers = between(dtype)
    numbers = numbers[np.isfinite(numbers)]
    got, wanted = by_stepping(numbers, dtype), rounded_by_numpy(numbers, dtype)
    np.testing.assert_array_equal(got.astype(np.float32), wanted.astype(np.float32))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("param", ["float32", "float64", *NARROW])
def test_gradients_are_widened_exactly(dtype: str, param: str) -> None:
    grad = patterns(dtype)
    computed = np.float64 if param == "float64" else np.float32
    zeros = np.full(grad.shape, -0.0, computed)
    row = Buffers(zeros.astype(DTYPES[param]), grad, zeros.copy(), zeros, zeros, None, None)
    host = hosts.made([row])
    host.accumulate(hosts.seen(host, [row]), Options())
    with np.errstate(invalid="ignore"):  # signaling NaNs
        wanted = grad.astype(computed)
    np.testing.assert_array_equal(row.accumulator, wanted)
    np.testing.assert_array_equal(np.signbit(row.accumulator), np.signbit(wanted))


@pytest.mark.parametrize("dtype", NARROW)
def test_variables_that_stand_still_keep_every_bit(dtype: str) -> None:
    numbers = patterns(dtype)
    zeros = np.zeros(numbers.shape, np.float32)
    row = Buffers(numbers.copy(), zeros, None, zeros.copy(), zeros.copy(), None, None)
    after = hosts.update([row], scalars(decays=False), Options())[0].param
    with np.errstate(invalid="ignore"):
        nan = np.isnan(numbers.astype(np.float32))
    assert (after.view(np.uint16) == numbers.view(np.uint16))[~nan].all()
    assert np.isnan(after.astype(np.float32))[nan].all()


def test_float64_gradients_are_rounded_once_to_float32() -> None:
    rng = np.random.default_rng(3)
    exact = rng.normal(size=10_000).astype(np.float32)
    ulp = np.spacing(exact).astype(np.float64)
    grad = np.concatenate([exact + ulp * share for share in (0.5, -0.5, 0.4999999, 0.5000001, 0)])
    zeros = np.zeros(grad.shape, np.float32)
    row = Buffers(zeros, grad, zeros.copy(), zeros.copy(), zeros.copy(), None, None)
    host = hosts.made([row])
    host.accumulate(hosts.seen(host, [row]), Options())
    np.testing.assert_array_equal(row.accumulator, grad.astype(np.float32))


def _bits(numbers: np.ndarray) -> Any:
    return numbers.view(np.uint32).astype(np.uint64)


def _truncating(numbers: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16":
        with np.errstate(all="ignore"):
            toward = np.nextafter(numbers, np.float32(0))
        return rounded_by_numpy(toward, dtype)
    return (_bits(numbers) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)


def _away_from_zero(numbers: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        away = np.nextafter(numbers, np.where(numbers > 0, np.inf, -np.inf).astype(np.float32))
    return rounded_by_numpy(np.where(numbers == 0, numbers, away), dtype)


def _carrying_nan(numbers: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16":
        return np.where(np.isnan(numbers), np.float16(np.inf), rounded_by_numpy(numbers, dtype))
    return (
        ((_bits(numbers) + 0x7FFF + (_bits(numbers) >> 16 & 1)) >> 16)
        .astype(np.uint16)
        .view(ml_dtypes.bfloat16)
    )


def _flushing(numbers: np.ndarray, dtype: str) -> np.ndarray:
    tiny = float(ml_dtypes.finfo(DTYPES[dtype]).tiny)
    flushed = np.where(np.abs(numbers) < tiny, np.copysign(np.float32(0), numbers), numbers)
    return rounded_by_numpy(flushed, dtype)


def _saturating(numbers: np.ndarray, dtype: str) -> np.ndarray:
    largest = np.float32(ml_dtypes.finfo(DTYPES[dtype]).max)
    clipped = np.where(np.isinf(numbers), numbers, np.clip(numbers, -largest, largest))
    return rounded_by_numpy(clipped, dtype)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "way", [_truncating, _away_from_zero, _carrying_nan, _flushing, _saturating]
)
def test_wrong_roundings_are_rejected(way: Round, dtype: str) -> None:
    assert_rounds(rounded_by_numpy, dtype)
    with pytest.raises(AssertionError):
        assert_rounds(way, dtype)

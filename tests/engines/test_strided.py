"""Arrays that are no plain run of elements: the same bits as the plain path gives."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from engines import hosts
from engines.differential import BARE, EVERYTHING, Case, copied, scalars, values

from oneadam._engines import Buffers
from oneadam._engines.strided import BLOCK

SHAPE = (24, 31)
Layout = Callable[[np.ndarray], np.ndarray]


def transposed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.T).T


def sliced(array: np.ndarray) -> np.ndarray:
    rows, *rest = array.shape
    host = np.full((2 * rows, *(2 * n + 1 for n in rest)), np.nan, array.dtype)
    place = (slice(1, None, 2), *(slice(1, None, 2) for _ in rest))
    host[place] = array
    return host[place]


def reversed_(array: np.ndarray) -> np.ndarray:
    turned = (slice(None, None, -1),) * array.ndim
    return np.array(array[turned], order="C")[turned]


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    shifted = memory[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


def byte_swapped(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


def subclassed(array: np.ndarray) -> np.ndarray:
    class Mine(np.ndarray):
        pass

    return array.copy().view(Mine)


def in_a_record(array: np.ndarray) -> np.ndarray:
    records = np.zeros(array.shape, [("tag", "u1"), ("number", array.dtype)])
    records["number"] = array
    return records["number"]


LAYOUTS = [
    transposed, sliced, reversed_, misaligned, byte_swapped, subclassed, in_a_record,
]  # fmt: skip
PARAMS = ("float16", "bfloat16", "float32", "float64")
# ml_dtypes has no byte-swapped bfloat16.
PAIRS = [(layout, param) for layout in LAYOUTS for param in PARAMS
         if (layout, param) != (byte_swapped, "bfloat16")]  # fmt: skip


def laid_out(layout: Layout, array: np.ndarray) -> np.ndarray:
    """The same elements in another layout, which the kernels must not take for a plain one."""
    changed = layout(array)
    plain = type(changed) is np.ndarray and changed.flags.c_contiguous
    assert not (plain and changed.flags.aligned and changed.dtype.isnative)
    assert np.asarray(changed, array.dtype, order="C").tobytes() == array.tobytes()
    return changed


def shaped(buffers: Buffers, shape: tuple[int, ...]) -> Buffers:
    return Buffers(*(None if a is None else a.reshape(shape) for a in buffers))


@pytest.mark.parametrize("switches", [BARE, EVERYTHING], ids=["bare", "everything"])
@pytest.mark.parametrize(("layout", "param"), PAIRS)
@pytest.mark.parametrize("which", ["param", "grad", "both"])
def test_the_same_bits_as_plain_arrays(
    layout: Layout, param: str, which: str, switches: dict[str, bool]
) -> None:
    size = SHAPE[0] * SHAPE[1]
    case = Case(param, param, **switches)
    s = scalars(decays=case.decays)
    before = shaped(values(case, size, poison=True), SHAPE)
    plain = hosts.engine(before, s, case.options)
    odd = copied(before)
    if which in ("param", "both"):
        odd = odd._replace(param=laid_out(layout, before.param))
    if which in ("grad", "both"):
        odd = odd._replace(grad=laid_out(layout, before.grad))
    kept = odd.param
    after = hosts.update([odd], s, case.options)[0]
    assert after.param is kept
    assert hosts.same_bits(after, plain)


@pytest.mark.parametrize("grad", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("param", PARAMS)
def test_gradients_of_another_dtype(param: str, grad: str) -> None:
    case = Case(param, grad, **EVERYTHING)
    s = scalars(decays=case.decays)
    before = shaped(values(case, 60, poison=True), (6, 10))
    odd = copied(before)._replace(grad=sliced(before.grad), param=transposed(before.param))
    after = hosts.update([odd], s, case.options)[0]
    assert hosts.same_bits(after, hosts.engine(before, s, case.options))


@pytest.mark.parametrize("kind", [np.longdouble, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_gradients_of_dtypes_that_no_kernel_knows(kind: type) -> None:
    case = Case()
    s = scalars(decays=case.decays)
    before = values(case, 50)
    few = np.linspace(-3, 3, 50).astype(kind)
    odd = copied(before)._replace(grad=few)
    plain = before._replace(grad=few.astype(np.float32))
    after = hosts.update([odd], s, case.options)[0]
    assert hosts.same_bits(after, hosts.engine(plain, s, case.options))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 11])
@pytest.mark.parametrize("param", ["bfloat16", "float32", "float64"])
def test_more_than_one_block(param: str, size: int) -> None:
    case = Case(param, **EVERYTHING)
    s = scalars(decays=case.decays)
    before = values(case, size)
    odd = copied(before)._replace(param=sliced(before.param))
    gaps = odd.param.base.tobytes()
    after = hosts.update([odd], s, case.options)[0]
    assert hosts.same_bits(after, hosts.engine(before, s, case.options))
    odd.param[...] = before.param
    assert odd.param.base.tobytes() == gaps, "the memory between the elements has changed"


def test_three_dimensions_in_every_order_of_axes() -> None:
    case = Case(**EVERYTHING)
    s = scalars(decays=case.decays)
    before = shaped(values(case, 4 * 5 * 6), (4, 5, 6))
    plain = hosts.engine(before, s, case.options)
    for axes in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        param = np.ascontiguousarray(before.param.transpose(axes)).transpose(np.argsort(axes))
        grad = np.asfortranarray(before.grad)[:, ::-1][:, ::-1]
        odd = copied(before)._replace(param=param, grad=grad)
        assert hosts.same_bits(hosts.update([odd], s, case.options)[0], plain)


def test_broadcast_gradients() -> None:
    case = Case(**EVERYTHING)
    s = scalars(decays=case.decays)
    before = shaped(values(case, 60), (6, 10))
    grad = np.broadcast_to(np.float32(0.7), (6, 10))
    odd = copied(before)._replace(grad=grad)
    plain = before._replace(grad=np.array(grad))
    after = hosts.update([odd], s, case.options)[0]
    assert hosts.same_bits(after, hosts.engine(plain, s, case.options))


@pytest.mark.parametrize(("layout", "param"), PAIRS)
def test_who_sits_out(layout: Layout, param: str) -> None:
    case = Case(param, None, **EVERYTHING)
    s = scalars(decays=case.decays)
    before = shaped(values(case, 60), (6, 10))
    odd = copied(before)._replace(param=laid_out(layout, before.param))
    after = hosts.update([odd], s, case.options, participants=[False])[0]
    plain = hosts.update([copied(before)], s, case.options, participants=[False])[0]
    assert hosts.same_bits(after, plain)


@pytest.mark.parametrize(("layout", "param"), PAIRS)
def test_accumulation_and_norms(layout: Layout, param: str) -> None:
    case = Case(param, param, **EVERYTHING)
    before = shaped(values(case, 700), (20, 35))
    odd = copied(before)._replace(
        param=laid_out(layout, before.param), grad=laid_out(layout, before.grad)
    )
    found = []
    for row in (copied(before), odd):
        host = hosts.made([row])
        gradients = hosts.seen(host, [row])
        found.append(host.norms(gradients, case.options, accumulated=False)[0])
        host.accumulate(gradients, case.options)
        found.append(host.norms(gradients, case.options, accumulated=True)[0])
        found.append(row.accumulator)
    # A sum of squares depends on the order, within a rounding or two of float64.
    assert found[0] == pytest.approx(found[3], rel=1e-13)
    assert found[1] == pytest.approx(found[4], rel=1e-13)
    np.testing.assert_array_equal(found[2], found[5])

"""The compiled engine: every combination of dtypes and options, sizes, and any thread count."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from engines import hosts
from engines.differential import (
    BARE,
    EVERYTHING,
    SWITCHES,
    Case,
    Engine,
    EngineError,
    cases,
    check,
    compare,
    copied,
    reference,
    scalars,
    values,
)

import oneadam
from oneadam._engines import Buffers, Options, arrays
from oneadam._engines.cpu.pieces import PIECE, SHARE, cut
from oneadam._plan import Scalars

PARAMS = ("float16", "bfloat16", "float64", "float32")
GRADS = ("float32", "float16", "bfloat16", "float64", None)


def with_numpy(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
    with np.errstate(all="ignore"):
        return arrays.update(buffers, s, options, np)


@pytest.mark.parametrize("case", cases(PARAMS, GRADS), ids=str)
def test_every_kernel(case: Case) -> None:
    check(hosts.engine, case)


@pytest.mark.parametrize("case", cases(PARAMS, GRADS)[::3], ids=str)
def test_gives_the_same_bits_as_the_array_engine(case: Case) -> None:
    # Both take the same operations of IEEE 754 in the same order, each rounded once.
    before, s = values(case, 300, poison=True), scalars(decays=case.decays)
    one = hosts.engine(before, s, case.options)
    other = with_numpy(copied(before), s, case.options)
    assert hosts.same_bits(one, other)
    assert not hosts.same_bits(one, copied(before)._replace(grad=None))


@pytest.mark.parametrize("size", [0, 1, 2, 15, 17, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 7])
def test_sizes(size: int) -> None:
    check(hosts.engine, Case(**EVERYTHING), size=size)


@pytest.mark.parametrize("shape", [(), (1, 1), (0, 3), (2, 0, 4), (3, 5, 7)])
def test_shapes(shape: tuple[int, ...]) -> None:
    case = Case(**EVERYTHING)
    flat = values(case, int(np.prod(shape)))
    shaped = Buffers(*(a.reshape(shape) for a in copied(flat)))
    s = scalars(decays=case.decays)
    after = hosts.update([shaped], s, case.options)[0]
    assert after.param.shape == shape
    after = Buffers(*(None if a is None else a.ravel() for a in after))
    compare(flat, after, reference(flat, s, case.options), case, s)


def _mixed(switches: dict[str, bool]) -> list[tuple[Case, Buffers]]:
    """Variables of all dtypes and of several sizes, in an order that mixes them."""
    grads = [g for g in GRADS if g is not None or switches["accumulated"]]
    kinds = [Case(p, g, **switches) for p in PARAMS for g in grads]
    sizes = (5, PIECE + 3, 0, 1, 257)
    order = np.random.default_rng(5).permutation(len(kinds) * 2).tolist()
    drawn = [(kinds[i % len(kinds)], sizes[i % len(sizes)], i) for i in order]
    return [(case, values(case, size, seed, poison=True)) for case, size, seed in drawn]


@pytest.mark.parametrize("switches", [BARE, EVERYTHING], ids=["bare", "everything"])
def test_many_variables_of_all_kinds_at_once(switches: dict[str, bool]) -> None:
    mixed, s = _mixed(switches), scalars(decays=switches["decays"])
    rows = [copied(before) for _, before in mixed]
    after = hosts.update(rows, s, mixed[0][0].options)
    for (case, before), row in zip(mixed, after, strict=True):
        compare(before, row, reference(before, s, case.options), case, s)


def test_each_variable_has_its_own_scalars() -> None:
    case = Case(**{**EVERYTHING, "overwrite": False})
    befores = [values(case, 100 + i, i) for i in range(20)]
    each = [scalars(i) for i in range(20)]
    rows = [copied(before) for before in befores]
    host = hosts.made(rows)
    host.update(
        hosts.seen(host, rows),
        Scalars(*(np.array(column, np.float64) for column in zip(*each, strict=True))),
        case.options,
        participants=np.ones(20, np.bool_),
        accumulated=True,
    )
    for before, row, s in zip(befores, rows, each, strict=True):
        wanted = reference(before, s, case.options)
        compare(before, row._replace(grad=None), wanted, case, s)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_who_sits_out_moves_its_average_only(param: str, overwrite: bool) -> None:
    case = Case(param, **{**EVERYTHING, "overwrite": overwrite})
    befores, s = [values(case, 70, seed) for seed in range(3)], scalars(decays=case.decays)
    rows = [copied(before) for before in befores]
    rows[1] = rows[1]._replace(grad=None)
    after = hosts.update(rows, s, case.options, participants=[True, False, True])
    out, before = after[1], befores[1]
    sitting = arrays.average(copied(before), s, case.options, np)
    assert hosts.same_bits(out, sitting._replace(grad=None))
    assert overwrite or out.param.tobytes() == before.param.tobytes()
    assert out.momentum.tobytes() == before.momentum.tobytes()
    assert out.accumulator.tobytes() == before.accumulator.tobytes()
    compare(befores[2], after[2], reference(befores[2], s, case.options), case, s)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("grad", GRADS[:-1])
@pytest.mark.parametrize("scaled", [False, True])
def test_accumulate(param: str, grad: str, scaled: bool) -> None:
    case = Case(param, grad, accumulated=True, scaled=scaled)
    before = values(case, PIECE + 40, poison=True)
    rows = [copied(before), copied(before)._replace(grad=None)]
    host = hosts.made(rows)
    host.accumulate(hosts.seen(host, rows), case.options)
    with np.errstate(all="ignore"):
        added = before.grad.astype(before.accumulator.dtype)
        added = added / before.accumulator.dtype.type(3.0) if scaled else added
        wanted = before.accumulator + added
    np.testing.assert_array_equal(rows[0].accumulator, wanted)
    assert rows[0].param.tobytes() == before.param.tobytes()
    assert rows[0].momentum.tobytes() == before.momentum.tobytes()
    assert rows[1].accumulator.tobytes() == before.accumulator.tobytes()


def test_float32_scalars_do_not_reach_float64_variables() -> None:
    # 0.1 is another number in float32, and 2**-200 none at all.
    case = Case("float64", "float64", decays=True)
    s = scalars(grad_scale_power=2.0**-100, decay=0.1)
    before = values(case)
    before = before._replace(grad=before.grad * 2.0**90)
    compare(before, hosts.engine(before, s, case.options), reference(before, s, case.options),
            case, s)  # fmt: skip


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_bits_do_not_depend_on_the_threads(count: int) -> None:
    oneadam.set_num_threads(1)
    alone = _large_step()
    oneadam.set_num_threads(count)
    together = _large_step()
    assert all(map(hosts.same_bits, alone[0], together[0]))
    assert alone[1].tobytes() == together[1].tobytes()


def _large_step() -> tuple[list[Buffers], np.ndarray]:
    case = Case(**EVERYTHING)
    rows = [values(case, size, size) for size in (3 * SHARE + 5, 10, SHARE, 2 * PIECE)]
    host, options = hosts.made(rows), case.options
    gradients = hosts.seen(host, rows)
    norms = host.norms(gradients, options, accumulated=True)
    host.accumulate(gradients, options)
    count = len(rows)
    host.update(
        gradients,
        hosts.columns(scalars(grad_scale=1.0 / norms[0]), count),
        options,
        participants=np.array([True] * 3 + [False]),
        accumulated=True,
    )
    return [row._replace(grad=None) for row in rows], norms


def test_the_work_is_shared_at_all() -> None:
    sizes = (3 * SHARE + 5, 10, SHARE, 0)
    pieces = cut(np.arange(4), np.array(sizes, np.int64))
    rows, edges = pieces.table.array, pieces.edges.array.tolist()
    assert len(edges) - 1 >= 4
    assert edges == sorted({*edges, 0, len(rows)})
    assert pieces.elements == sum(sizes)
    for variable, size in enumerate(sizes):
        own = rows[rows[:, 0] == variable]
        covered = [number for _, first, end in own for number in range(first, end)]
        assert covered == list(range(size))
        assert (own[:, 2] - own[:, 1] <= PIECE).all()


def test_ever_other_sets_of_variables_do_not_fill_the_memory() -> None:
    rows = [values(Case(averaged=True), 3, seed) for seed in range(7)]
    host = hosts.made(rows)
    sizes = []
    for number in range(1, 2**7):
        present = [bool(number >> bit & 1) for bit in range(7)]
        given = [r if p else r._replace(grad=None) for r, p in zip(rows, present, strict=True)]
        host.update(
            hosts.seen(host, given),
            hosts.columns(scalars(decays=False), 7),
            Options(),
            participants=np.array(present),
            accumulated=False,
        )
        sizes.append(len(pickle.dumps(host._known)))
    assert max(sizes[64:]) <= max(sizes[:64])


def test_no_two_elements_are_updated_twice_or_never() -> None:
    case = replace(Case(), param="float32")
    size = 2 * SHARE + 3 * PIECE + 1
    ones = np.ones(size, np.float32)
    zeros = np.zeros_like
    before = Buffers(zeros(ones), ones, None, zeros(ones), zeros(ones), None, None)
    s = scalars(decays=False, one_minus_beta_1=1.0, grad_scale=1.0, grad_scale_power=1.0)
    after = hosts.engine(before, s, case.options)
    assert (after.momentum == 1.0).all()
    assert np.unique(after.param).size == 1


def _wrong(kind: str) -> Engine:
    def wrong(buffers: Buffers, s: Scalars, options: Options) -> Buffers:
        if kind == "last element missed":
            part = Buffers(*(None if a is None else a[:-1] for a in buffers))
            after = hosts.engine(part, s, options)
            joined = [
                None if a is None else np.append(a, b[-1:])
                for a, b in zip(after, buffers, strict=True)
            ]
            return Buffers(*joined)._replace(grad=None)
        if kind == "updated twice":
            once = hosts.engine(buffers, s, options)
            return hosts.engine(once._replace(grad=buffers.grad), s, options)
        return hosts.engine(buffers._replace(grad=buffers.grad[::-1]), s, options)

    return wrong


@pytest.mark.parametrize("kind", ["last element missed", "updated twice", "gradient reversed"])
def test_wrong_kernels_are_rejected(kind: str) -> None:
    with pytest.raises(EngineError):
        check(_wrong(kind), Case(**dict.fromkeys(SWITCHES, False)))

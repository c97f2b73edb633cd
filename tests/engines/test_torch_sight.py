"""What the torch door finds out about tensors: with DLPack's C exchange API, and without."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from oneadam._engines import Buffers
from oneadam._engines.cpu import layout
from oneadam._engines.cpu.formats import FORMATS
from oneadam._engines.gradients import ABSENT, LOOK_CLOSER, Gradients
from oneadam._engines.torch import inspection
from oneadam._engines.torch.inspection import Inspector
from oneadam._engines.torch.sight import Sight

Parameter = torch.nn.Parameter
HAS_API = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
SHAPES = [(), (1,), (5,), (0,), (3, 0, 2), (3, 5), (4, 5, 3, 3), (1, 7, 1)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=["kernel", "python"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have tensors asked by the kernel, or from Python; both must find out the same."""
    if request.param == "python":
        monkeypatch.setattr(inspection, "layout_holds", lambda: False)
    elif not HAS_API:
        pytest.skip("this PyTorch does not publish DLPack's C exchange API")
    return str(request.param)


class Foreign(torch.Tensor):
    """A subclass that lets nobody look at it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was asked of a subclass")


class Looks:
    """A sight of parameters with two arrays of state, and what it sees."""

    def __init__(self, params: list[Any], velocity: list[Any] | None = None) -> None:
        self.params = params
        self.momentum, zeros = ([state_of(param) for param in params] for _ in range(2))
        self.velocity = zeros if velocity is None else velocity
        written = {"param": params, "momentum": self.momentum, "velocity": self.velocity}
        self.sight = Sight(Buffers(**{**dict.fromkeys(Buffers._fields), **written}))
        self.table = np.zeros((len(params), layout.COLUMNS), np.int64)
        self.sight.place(self.table)
        self.closer: list[int] = []
        """Which gradients the last look looked at more closely."""

    def look(self, grads: list[Any], closer: Callable[[int, Any], Any] | None = None) -> Gradients:
        self.closer = []

        def noted(row: int, grad: Any) -> Any:
            self.closer.append(row)
            return grad if closer is None else closer(row, grad)

        return self.sight.look(grads, noted, self.table)

    def addresses(self) -> list[int]:
        found: list[int] = self.table[:, layout.GRAD].tolist()
        return found


def state_of(param: Any) -> Any:
    """An array of state: of the parameter's shape and order, in the dtype of the computation."""
    return torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32))


def gradients_of(params: list[Any]) -> list[Any]:
    return [torch.randn(p.shape, dtype=torch.float64).to(p.dtype) for p in params]


def test_the_kernel_is_used_where_there_is_the_api(way: str) -> None:
    assert inspection.layout_holds() == (way == "kernel")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_everyday_gradients_are_taken_as_they_are(dtype: Any) -> None:
    looks = Looks([Parameter(torch.ones(shape, dtype=dtype)) for shape in SHAPES])
    grads = gradients_of(looks.params)
    seen = looks.look(grads)
    assert looks.closer == []
    assert looks.addresses() == [grad.data_ptr() for grad in grads]
    assert all(one is other for one, other in zip(seen.arrays, grads, strict=True))
    name = str(dtype).removeprefix("torch.")
    assert seen.formats.tolist() == [FORMATS.index(name)] * len(SHAPES)
    assert looks.sight.formats.tolist() == seen.formats.tolist()
    for column, tensors in (
        (layout.PARAM, looks.params),
        (layout.MOMENTUM, looks.momentum),
        (layout.VELOCITY, looks.velocity),
    ):
        assert looks.table[:, column].tolist() == [tensor.data_ptr() for tensor in tensors]


def test_gradients_may_be_of_another_dtype_than_their_parameters() -> None:
    looks = Looks([Parameter(torch.ones(3)) for _ in FORMATS])
    grads = [torch.ones(3, dtype=getattr(torch, name)) for name in FORMATS]
    assert looks.look(grads).formats.tolist() == list(range(len(FORMATS)))
    assert looks.closer == []


def test_a_gradient_in_the_order_of_its_parameter_is_taken_as_it_is() -> None:
    channels_last = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    params = [torch.ones(4, 3).T, channels_last, torch.ones(1, 3)]
    looks = Looks([Parameter(param) for param in params])
    grads = [torch.ones(4, 3).T, channels_last.clone(), torch.ones(3, 1).T]
    assert [grad.is_contiguous() for grad in grads] == [False, False, True]
    assert (looks.look(grads).formats == FORMATS.index("float32")).all()
    assert looks.closer == []
    other = [grad.contiguous() for grad in grads]
    assert looks.look(other).formats.tolist() == [LOOK_CLOSER, LOOK_CLOSER, 0]
    assert looks.closer == [0, 1]


def sparse() -> Any:
    return torch.eye(4).to_sparse()


def freed() -> Any:
    grad = torch.ones(4, 4)
    grad.untyped_storage().resize_(0)
    return grad


ODD: dict[str, Callable[[], Any]] = {
    "sparse": sparse,
    "compressed": lambda: torch.eye(4).to_sparse_csr(),
    "meta": lambda: torch.ones(4, 4, device="meta"),
    "subclass": lambda: torch.ones(4, 4).as_subclass(Foreign),
    "parameter": lambda: Parameter(torch.ones(4, 4)),
    "no tensor": lambda: np.ones((4, 4), np.float32),
    "number": lambda: 1.0,
    "negated": lambda: torch._neg_view(torch.ones(4, 4)),
    "imaginary": lambda: torch.ones(4, 4, dtype=torch.complex64).conj().imag,
    "complex": lambda: torch.ones(4, 4, dtype=torch.complex64),
    "zero": lambda: torch._efficientzerotensor((4, 4)),
    "freed": freed,
    "expanded": lambda: torch.ones(4, 1).expand(4, 4),
    "strided": lambda: torch.ones(4, 8)[:, ::2],
    "transposed": lambda: torch.ones(4, 4).T,
    "of other shape and as many bytes": lambda: torch.ones(2, 8),
    "of more axes": lambda: torch.ones(4, 4, 1),
    "of fewer axes": lambda: torch.ones(16),
    "of a scalar's shape": lambda: torch.ones(()),
    "empty": lambda: torch.ones(4, 0),
    "float8": lambda: torch.ones(4, 4).to(torch.float8_e4m3fn),
    "int32": lambda: torch.ones(4, 4, dtype=torch.int32),
    "int64": lambda: torch.ones(4, 4, dtype=torch.int64),
    "bool": lambda: torch.ones(4, 4, dtype=torch.bool),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint32),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*deprecated")
@pytest.mark.parametrize("kind", ODD)
def test_odd_gradients_are_looked_at_more_closely(kind: str) -> None:
    looks = Looks([Parameter(torch.ones(4, 4)) for _ in range(5)])
    dense = torch.full((4, 4), 7.0)
    for _ in range(3):
        grads = [torch.ones(4, 4), None, ODD[kind](), torch.ones(4, 4), torch.ones(4, 4)]
        seen = looks.look(grads, lambda row, grad: dense)
        assert looks.closer == [2]
        assert seen.arrays[2] is dense
        assert grads[2] is not dense
        expected = [grad.data_ptr() if row != 2 else dense.data_ptr()
                    for row, grad in enumerate(grads) if grad is not None]  # fmt: skip
        assert looks.addresses() == [expected[0], 0, *expected[1:]]
        assert seen.formats.tolist() == [0, ABSENT, 0, 0, 0]
        assert seen.present.tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,)], ids=str)
def test_negated_views_are_noticed_whatever_their_shape(shape: tuple[int, ...]) -> None:
    looks = Looks([Parameter(torch.ones(shape)), Parameter(torch.ones(shape))])
    negated = [torch._neg_view(torch.ones(shape)), torch.ones(shape)]
    seen = looks.look(negated, lambda row, grad: grad.resolve_neg())
    assert looks.closer == [0]
    assert (seen.arrays[0] == -1.0).all()
    looks.look([torch.ones(shape), torch._neg_view(torch._neg_view(torch.ones(shape)))])
    assert looks.closer == []


def test_a_closer_look_may_find_that_there_is_no_gradient() -> None:
    looks = Looks([Parameter(torch.ones(4, 4)), Parameter(torch.ones(4, 4))])
    seen = looks.look([torch.ones(4, 4), sparse()], lambda row, grad: None)
    assert seen.formats.tolist() == [0, ABSENT]
    assert looks.addresses()[1] == 0


def test_gradients_are_found_after_the_last_foreign_code_has_run() -> None:
    looks = Looks([Parameter(torch.ones(4, 4)) for _ in range(2)])
    grads, elsewhere = [torch.ones(4, 4), sparse()], torch.zeros(4, 4)

    def closer(row: int, grad: Any) -> Any:
        grads[0].data = elsewhere
        return torch.ones(4, 4)

    looks.look(grads, closer)
    assert looks.addresses()[0] == elsewhere.data_ptr() == grads[0].data_ptr()


def test_gradients_of_parameters_that_are_no_dense_run_are_looked_at_closely() -> None:
    looks = Looks([Parameter(torch.ones(4, 8)[:, ::2]), Parameter(torch.ones(4, 4))])
    assert looks.sight.formats.tolist() == [LOOK_CLOSER, 0]
    seen = looks.look([torch.ones(4, 8)[:, ::2], torch.ones(4, 4)])
    assert looks.closer == [0]
    assert seen.formats.tolist() == [LOOK_CLOSER, 0]


@pytest.mark.parametrize("kind", ["param", "momentum", "velocity"])
def test_gradients_that_share_memory_with_what_is_written_are_copied(kind: str) -> None:
    looks = Looks([Parameter(torch.ones(4, 4)), Parameter(torch.ones(4))])
    written = {"param": looks.params, "momentum": looks.momentum, "velocity": looks.velocity}
    shared = written[kind][0].detach()
    for _ in range(2):
        seen = looks.look([shared, torch.ones(4)])
        assert seen.arrays[0] is not shared
        assert looks.addresses()[0] == seen.arrays[0].data_ptr() != shared.data_ptr()
        assert (seen.arrays[0] == shared).all()
    own = shared.clone()
    assert looks.look([own, torch.ones(4)]).arrays[0] is own


def test_a_strided_gradient_that_comes_to_share_memory_is_copied() -> None:
    memory = torch.ones(64)
    looks = Looks([Parameter(memory[32:36])])
    for step, is_copied in ((2, False), (20, True), (2, False)):
        grad = memory.as_strided((4,), (step,))
        assert (looks.look([grad]).arrays[0] is not grad) == is_copied


CHANGES: dict[str, Callable[[Looks], Any]] = {
    "elsewhere": lambda o: setattr(o.params[1], "data", torch.ones(4, 4)),
    "freed": lambda o: o.params[1].untyped_storage().resize_(0),
    "freed state": lambda o: o.velocity[2].untyped_storage().resize_(0),
    "state elsewhere": lambda o: setattr(o.momentum[0], "data", torch.ones(4, 4)),
    "transposed": lambda o: setattr(o.params[1], "data", o.params[1].data.t()),
    "transposed state": lambda o: setattr(o.velocity[2], "data", o.velocity[2].data.t()),
    "other shape": lambda o: setattr(o.params[0], "data", o.params[0].data.view(2, 8)),
    "other state shape": lambda o: setattr(o.momentum[0], "data", o.momentum[0].view(16)),
    "smaller": lambda o: setattr(o.params[0], "data", o.params[0].data[:2]),
    "expanded": lambda o: setattr(o.params[2], "data", o.params[2].data[:1].expand(4, 4)),
    "other dtype": lambda o: setattr(o.params[2], "data", o.params[2].data.double()),
    "other dtype there": lambda o: setattr(
        o.momentum[2], "data", o.momentum[2].data.view(torch.int32)
    ),
    "other half dtype there": lambda o: setattr(
        o.params[5], "data", o.params[5].data.view(torch.float16)
    ),
    "meta": lambda o: torch.utils.swap_tensors(
        o.params[0], Parameter(torch.ones(4, 4, device="meta"))
    ),
    "strided": lambda o: setattr(o.params[3], "data", o.params[3].data.as_strided((4,), (2,))),
    "contiguous": lambda o: setattr(o.params[4], "data", o.params[4].data.as_strided((4,), (1,))),
    "of strided elsewhere": lambda o: setattr(o.params[4], "data", torch.ones(8)[::2]),
    "resized": lambda o: o.momentum[1].resize_(5, 5),
    "set": lambda o: o.momentum[1].set_(torch.ones(4, 4)),
    "odd state": lambda o: setattr(o.velocity[4], "data", o.velocity[4].view(torch.float64)),
    "odd state elsewhere": lambda o: setattr(o.velocity[4], "data", o.velocity[4].clone()),
}
HARMLESS: dict[str, Callable[[Looks], Any]] = {
    "nothing": lambda o: None,
    "values": lambda o: [tensor.data.fill_(3) for tensor in (*o.params, *o.velocity)],
    "detached": lambda o: setattr(o.params[0], "data", o.params[0].data),
    "frozen": lambda o: o.params[0].requires_grad_(False),
    "gradient": lambda o: setattr(o.params[0], "grad", torch.ones(4, 4)),
}


def six() -> Looks:
    """Three squares, one with room behind it, one strided that has odd state, one in half."""
    params = [torch.ones(4, 4) for _ in range(3)]
    params += [torch.ones(8)[:4], torch.ones(8)[::2], torch.ones(4, dtype=torch.bfloat16)]
    velocity = list(map(state_of, params))
    velocity[4] = torch.ones(4, dtype=torch.int64)
    return Looks(list(map(Parameter, params)), velocity)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_parameters_and_state_are_noticed(change: str) -> None:
    looks = six()
    assert looks.sight.is_current()
    CHANGES[change](looks)
    assert not looks.sight.is_current()
    assert not looks.sight.is_current()


@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_no_memory_is_no_change(change: str) -> None:
    looks = six()
    HARMLESS[change](looks)
    assert looks.sight.is_current()


def test_what_the_kernels_cannot_take_is_said() -> None:
    looks = six()
    assert looks.sight.formats.tolist() == [0, 0, 0, 0, LOOK_CLOSER, FORMATS.index("bfloat16")]
    negated = Parameter(torch._neg_view(torch.ones(3)))
    half = Parameter(torch.ones(3, dtype=torch.bfloat16))
    state = [torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16), torch.zeros(6)[::2]]
    odd = Looks([negated, half, Parameter(torch.ones(3))], state)
    assert odd.sight.formats.tolist() == [LOOK_CLOSER] * 3
    assert odd.sight.is_current()


@pytest.mark.parametrize("kind", ["param", "momentum"])
def test_what_has_no_memory_is_refused(kind: str) -> None:
    looks = Looks([Parameter(torch.ones(4)), Parameter(torch.ones(0))])
    written = {"param": looks.params, "momentum": looks.momentum}
    written[kind][0].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"must have memory, received a tensor of shape \(4,\)"):
        Sight(Buffers(**{**dict.fromkeys(Buffers._fields), **written}))


def random_tensor(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """A tensor of one of many dtypes, orders and kinds, of a shape or nearly."""
    dtypes = [*DTYPES, torch.int32, torch.float8_e4m3fn]
    dtype = dtypes[rng.choice(len(dtypes), p=[0.6, 0.1, 0.1, 0.1, 0.05, 0.05])]
    if rng.random() < 0.1:
        shape = tuple(rng.permutation(shape).tolist())
    axes = rng.permutation(len(shape)).tolist() if rng.random() < 0.3 else range(len(shape))
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = step * rng.choice([0, 1, 2, 7], p=[0.02, 0.9, 0.04, 0.04])
        step *= max(shape[axis], 1)
    memory = torch.zeros(7 * 4**4).to(dtype)
    tensor = memory.as_strided(shape, strides, rng.integers(4))
    kind = rng.random()
    if kind < 0.05 and dtype == torch.float32:
        return torch._neg_view(tensor)
    if kind < 0.1:
        return None if rng.random() < 0.5 else tensor.to("meta")
    return Parameter(tensor, requires_grad=False) if kind < 0.2 else tensor


def pairs(seed: int, count: int) -> tuple[list[Any], list[Any]]:
    """Strided tensors, and others that are like them, or nearly."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(0, 4, rng.integers(0, 5)).tolist()) for _ in range(count)]
    likes = []
    for shape in shapes:
        like = None
        while like is None or like.is_meta:
            like = random_tensor(rng, shape)
        likes.append(like)
    return likes, [random_tensor(rng, tuple(like.shape)) for like in likes]


@pytest.mark.parametrize("way", ["kernel"], indirect=True)
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "written"])
@pytest.mark.parametrize("seed", range(5))
def test_both_ways_find_out_the_same(way: str, seed: int, gradients: bool) -> None:
    likes, others = pairs(seed, 1000)
    for tensors in (others, likes):
        one, other = (Inspector(likes, gradients=gradients) for _ in range(2))
        one._ask_kernel(tensors)
        other._ask_python(tensors)
        differing = np.flatnonzero(one.formats != other.formats).tolist()
        assert [(likes[row], tensors[row]) for row in differing] == []
        assert one.addresses.tolist() == other.addresses.tolist()
        # Of all kinds there were some.
        assert len(np.unique(one.formats)) >= len(FORMATS) + 1
        assert 50 < np.count_nonzero(one.formats == LOOK_CLOSER) < 900


@pytest.mark.parametrize("way", ["kernel"], indirect=True)
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "written"])
def test_both_ways_find_out_the_same_of_single_tensors(way: str, gradients: bool) -> None:
    at_once = 0
    for like, tensor in zip(*pairs(11, 1000), strict=True):
        one, other = (Inspector([like], gradients=gradients) for _ in range(2))
        one._ask_kernel([tensor])
        at_once += other._found_at_once([tensor]) is not None
        other._ask_python([tensor])
        assert one.formats == other.formats, (like, tensor)
        assert one.addresses == other.addresses, (like, tensor)
    assert 300 < at_once < 900


def expected(like: Any, tensor: Any) -> bool:
    """Whether a gradient may be taken as it is, said in another way than the package does."""
    if type(tensor) is not torch.Tensor or tensor.is_meta or tensor.is_neg():
        return False
    if tensor.shape != like.shape or str(tensor.dtype).removeprefix("torch.") not in FORMATS:
        return False
    if tensor.numel() < 2:
        return True
    axes = np.argsort([-step for step in like.stride()], kind="stable").tolist()
    in_order = like.permute(axes).is_contiguous() and tensor.permute(axes).is_contiguous()
    return bool(in_order)


@pytest.mark.parametrize("seed", range(5, 10))
def test_gradients_that_may_be_taken_are_and_no_others(seed: int) -> None:
    likes, others = pairs(seed, 1000)
    inspector = Inspector(likes, gradients=True)
    inspector.inspect(others)
    found = inspector.formats != LOOK_CLOSER
    for row, (like, other) in enumerate(zip(likes, others, strict=True)):
        assert found[row] == (other is None or expected(like, other)), (like, other)
        at = other.data_ptr() if found[row] and other is not None else 0
        assert inspector.addresses[row] == at
    assert 100 < np.count_nonzero(found) < 900


def test_ten_thousand_tensors() -> None:
    looks = Looks([Parameter(torch.ones(1 + row % 3)) for row in range(10_000)])
    assert looks.sight.is_current()
    grads = gradients_of(looks.params)
    grads[7777] = None
    looks.look(grads)
    assert looks.closer == []
    assert looks.addresses() == [0 if grad is None else grad.data_ptr() for grad in grads]
    looks.velocity[9999].data = looks.velocity[9999].clone()
    assert not looks.sight.is_current()


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_a_list_of_another_length_is_not_read_beyond_its_end(count: int) -> None:
    inspector = Inspector([torch.ones(2) for _ in range(5)], gradients=True)
    tensors = [torch.ones(2) for _ in range(count)]
    inspector.inspect(tensors)
    found = [tensor.data_ptr() for tensor in tensors[:5]]
    assert inspector.addresses.tolist() == found + [0] * (5 - len(found))
    assert inspector.formats.tolist() == [0] * len(found) + [LOOK_CLOSER] * (5 - len(found))


def test_nothing_is_leaked_in_ten_thousand_looks() -> None:
    looks = Looks([Parameter(torch.ones(4, 4)) for _ in range(6)])
    grads = [torch.ones(4, 4), None, sparse(), torch.ones(4, 4).as_subclass(Foreign),
             torch._neg_view(torch.ones(4, 4)), torch.ones(4, 4)]  # fmt: skip
    dense = torch.ones(4, 4)

    def look() -> None:
        looks.look(grads, lambda row, grad: dense)
        assert looks.sight.is_current()

    watched = [*grads, dense, *looks.params, *looks.momentum, torch.Tensor, RuntimeError]
    look()
    gc.collect()
    before, objects = list(map(sys.getrefcount, watched)), len(gc.get_objects())
    for _ in range(10_000):
        look()
    gc.collect()
    assert list(map(sys.getrefcount, watched)) == before
    assert len(gc.get_objects()) <= objects + 5
    watched.append(looks.params[0])
    assert list(map(sys.getrefcount, watched))[:-1] != before, "nothing would be noticed"


def test_what_cannot_be_read_neither_leaks_nor_leaves_an_error() -> None:
    odd, like = [sparse(), torch.eye(4, device="meta"), torch.eye(4)], [torch.eye(4)] * 3

    def inspect() -> None:
        inspector = Inspector(like, gradients=True)
        inspector.inspect(odd)
        assert inspector.formats.tolist() == [LOOK_CLOSER, LOOK_CLOSER, 0]

    inspect()
    gc.collect()
    watched = [*odd, torch.Tensor, RuntimeError]
    before, objects = list(map(sys.getrefcount, watched)), len(gc.get_objects())
    for _ in range(50):
        inspect()
    gc.collect()
    assert list(map(sys.getrefcount, watched)) == before
    assert len(gc.get_objects()) <= objects + 5


def test_a_gradient_that_was_odd_once_may_be_plain_again() -> None:
    looks = Looks([Parameter(torch.ones(4, 4)) for _ in range(2)])
    for grad in (sparse(), torch.ones(4, 4), sparse(), torch.ones(4, 4)):
        seen = looks.look([grad, torch.ones(4, 4)], lambda row, grad: grad.to_dense())
        assert seen.formats.tolist() == [0, 0]
        assert looks.addresses() == [array.data_ptr() for array in seen.arrays]


def test_parameters_and_state_are_freed_when_nobody_needs_them() -> None:
    looks = Looks([Parameter(torch.ones(4, 4))])
    # As a hook that steps the optimizer does.
    looks.params[0].owner = looks
    dead = [weakref.ref(tensor) for tensor in (*looks.params, *looks.momentum, *looks.velocity)]
    looks.look([torch.ones(4, 4)])
    assert all(ref() is not None for ref in dead)
    del looks
    gc.collect()
    assert [ref() for ref in dead] == [None] * 3


def test_a_module_may_exchange_its_parameters_while_a_sight_is_kept() -> None:
    looks = Looks([Parameter(torch.ones(4, 4))])
    other = Parameter(torch.zeros(4, 4))
    address = other.data_ptr()
    torch.utils.swap_tensors(looks.params[0], other)
    assert looks.params[0].data_ptr() == address
    assert not looks.sight.is_current()


def test_threads_look_at_their_own_tensors_at_once() -> None:
    failed: list[BaseException] = []
    barrier = Barrier(4)

    def work(number: int) -> None:
        try:
            looks = Looks([Parameter(torch.full((3,), number * 1.0)) for _ in range(50)])
            barrier.wait()
            for call in range(200):
                grads = [torch.ones(3) for _ in range(50)]
                grads[number] = sparse() if call % 50 == 0 else None
                seen = looks.look(grads, lambda row, grad: torch.zeros(3))
                at = [0 if grad is None else grad.data_ptr() for grad in seen.arrays]
                assert looks.addresses() == at
                assert looks.sight.is_current()
                if call % 20 == 0:
                    looks.params[call % 50].data = torch.ones(3)
                    assert not looks.sight.is_current()
                    looks = Looks(looks.params)
        except BaseException as error:
            failed.append(error)

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.fixture
def untried() -> Iterator[None]:
    """Have the API tried anew, and again after the test."""
    functions = inspection._functions
    functions.cache_clear()
    yield
    functions.cache_clear()


holds: Callable[[], bool] = inspection.layout_holds.__wrapped__


LIES = {"data": 4, "device": 1, "ndim": 1, "dtype": 1, "shape": 8, "strides": 8, "offset": 8}
"""What is added to what PyTorch says, for each field that is read."""


@pytest.mark.parametrize("way", ["kernel"], indirect=True)
@pytest.mark.usefixtures("way", "untried")
class TestTheApiIsTried:
    """Before it is trusted; each of these would make a kernel read what it must not."""

    class Described(ctypes.Structure):
        """A `DLTensor`."""

        _fields_ = (
            *(("data", ctypes.c_int64), ("device", ctypes.c_int32)),
            *(("device_number", ctypes.c_int32), ("ndim", ctypes.c_int32)),
            *(("dtype", ctypes.c_uint32), ("shape", ctypes.c_int64)),
            *(("strides", ctypes.c_int64), ("offset", ctypes.c_int64)),
        )

    def lying(self, monkeypatch: pytest.MonkeyPatch, field: str, by: int) -> Any:
        get_item, describe, clear = inspection._functions()
        prototype = ctypes.PYFUNCTYPE(
            ctypes.c_int, ctypes.py_object, ctypes.POINTER(self.Described)
        )
        truth = prototype(describe)

        def lie(tensor: Any, described: Any) -> int:
            if getattr(tensor, "is_sparse", True) or tensor.is_meta:
                return -1
            truth(tensor, described)
            setattr(described[0], field, getattr(described[0], field) + by)
            return 0

        function = prototype(lie)
        address = ctypes.cast(function, ctypes.c_void_p).value
        monkeypatch.setattr(inspection, "_functions", lambda: (get_item, address, clear))
        return function

    def test_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert holds()
        kept = self.lying(monkeypatch, "data", 0)
        assert holds()
        del kept

    @pytest.mark.parametrize("field", LIES)
    def test_other_fields(self, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
        kept = self.lying(monkeypatch, field, LIES[field])
        assert not holds()
        del kept

    def test_other_dtypes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inspection, "_DTYPES", inspection._DTYPES[::-1].copy())
        assert not holds()

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
        assert not holds()

    @pytest.mark.parametrize("other", [None, 5, object()], ids=["None", "number", "object"])
    def test_no_capsule(self, monkeypatch: pytest.MonkeyPatch, other: Any) -> None:
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", other)
        assert not holds()

    @pytest.mark.parametrize(
        ("major", "minor", "name", "is_known"),
        [
            (1, 3, b"dlpack_exchange_api", True),
            (1, 9, b"dlpack_exchange_api", True),
            (2, 3, b"dlpack_exchange_api", False),
            (1, 2, b"dlpack_exchange_api", False),
            (1, 3, b"another", False),
        ],
    )
    def test_other_versions(
        self, monkeypatch: pytest.MonkeyPatch, major: int, minor: int, name: bytes, is_known: bool
    ) -> None:
        _, describe, _ = inspection._functions()
        inspection._functions.cache_clear()
        table = inspection._Api(major=major, minor=minor, describe=describe)
        new = ctypes.PYFUNCTYPE(
            ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
        )(("PyCapsule_New", ctypes.pythonapi))
        capsule = new(ctypes.addressof(table), name, None)
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", capsule)
        assert bool(inspection._functions()[1]) == is_known
        assert holds() == is_known

    def test_a_table_without_the_function(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inspection, "_functions", lambda: (1, 0, 1))
        assert not holds()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_trial_does_not_depend_on_defaults(dtype: Any) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            assert holds() == HAS_API
    finally:
        torch.set_default_dtype(before)


def test_a_trial_that_finds_nothing_proves_nothing() -> None:
    with FakeTensorMode():
        assert not holds()

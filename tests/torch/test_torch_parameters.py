"""Parameters and gradients of every layout and kind, frozen ones and tied ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import Beside, array_of, give, parameters, train, unchanged
from torch import Tensor, nn
from torch.nn import Parameter

from oneadam.torch import Adam

EVERYTHING: dict[str, Any] = {
    "amsgrad": True, "weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True,
    "ema_overwrite_frequency": 3, "gradient_accumulation_steps": 2, "loss_scale_factor": 4.0,
}  # fmt: skip


def strided(tensor: Tensor) -> Tensor:
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "channels last": lambda t: t.clone(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "with gaps": strided,
    "inside another": lambda t: torch.nn.functional.pad(t, (1, 1, 1, 1))[..., 1:-1, 1:-1],
}


@pytest.mark.parametrize("config", [{}, {"clipnorm": 1.0}, EVERYTHING], ids=["bare", "clip", "all"])
@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("of_parameter", LAYOUTS)
def test_the_layout_does_not_matter(
    of_parameter: str, of_gradient: str, config: dict[str, Any]
) -> None:
    (plain,) = parameters((2, 3, 4, 2))
    param = Parameter(LAYOUTS[of_parameter](plain.data))
    strides, address = param.stride(), param.data_ptr()
    one, other = Adam([param], lr=0.1, **config), Adam([plain], lr=0.1, **config)
    for seed in range(5):
        give([plain], seed)
        param.grad = LAYOUTS[of_gradient](plain.grad)
        one.step()
        other.step()
    torch.testing.assert_close(param, plain, rtol=1e-6, atol=1e-6)
    assert (param.stride(), param.data_ptr()) == (strides, address)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,), (1, 1), (7,)], ids=str)
def test_of_every_size_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    params = parameters(shape, (3,), dtype=dtype)
    judge = Beside(Adam(params), {}, [{}])
    for seed in range(20):
        give(params, seed)
        judge.step()
    assert optimizer_dtypes(judge.optimizer) == {
        torch.float64 if dtype == torch.float64 else torch.float32
    }


def optimizer_dtypes(optimizer: Adam) -> set[torch.dtype]:
    return {own["exp_avg"].dtype for own in optimizer.state.values()}


def test_of_several_dtypes_at_once() -> None:
    params = [
        p
        for number, dtype in enumerate(
            [torch.float16, torch.float64, torch.bfloat16, torch.float32]
        )
        for p in parameters((3,), (2, 2), dtype=dtype, seed=number)
    ]
    judge = Beside(Adam(params, weight_decay=0.1), {"weight_decay": 0.1}, [{}])
    for seed in range(20):
        give(params, seed)
        judge.step()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "expanded": (lambda: Parameter(torch.ones(1).expand(4)), "overlap"),
    "overlapping": (lambda: Parameter(torch.ones(4).as_strided((3, 2), (1, 1))), "overlap"),
    "complex": (lambda: Parameter(torch.ones(3, dtype=torch.complex64)), "complex64"),
    "integer": (lambda: Parameter(torch.ones(3, dtype=torch.int32), False), "int32"),
    "bool": (lambda: Parameter(torch.ones(3, dtype=torch.bool), False), "bool"),
    "float8": (lambda: Parameter(torch.ones(3).to(torch.float8_e4m3fn)), "float8"),
    "meta": (lambda: Parameter(torch.ones(3, device="meta")), "meta"),
    "lazy": (lambda: nn.LazyLinear(3).weight, "lazy"),
    "sparse": (lambda: Parameter(torch.ones(3).to_sparse()), "sparse"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_at_once(kind: str) -> None:
    make, word = REFUSED[kind]
    with pytest.raises((TypeError, ValueError), match=f"parameter 'odd'.*{word}"):
        Adam([("odd", make())])


def test_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        param = Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="inference_mode"):
        Adam([param])


def test_lazy_ones_are_taken_once_they_have_a_shape() -> None:
    model = nn.LazyLinear(3)
    model(torch.ones(2, 4))
    train(Adam(model.parameters()), model.parameters(), range(2))


class TestSharedMemory:
    """No two parameters may be the same memory."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda x: [Parameter(x), Parameter(x)],
            lambda x: [Parameter(x), Parameter(x[1:])],
            lambda x: [Parameter(x), Parameter(x.view(2, 2))],
        ],
        ids=["same", "part", "view"],
    )
    def test_is_refused(self, make: Callable[[Tensor], list[Parameter]]) -> None:
        with pytest.raises(ValueError, match="share memory"):
            Adam(make(torch.ones(4)))

    def test_neighbours_in_one_buffer_are_none(self) -> None:
        flat = torch.ones(7)
        params = [Parameter(flat[:3]), Parameter(flat[3:3]), Parameter(flat[3:])]
        train(Adam(params), params, range(2))
        assert (flat != 1).all()

    def test_a_tied_parameter_is_one(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        optimizer = Adam(model.named_parameters())
        assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "1.bias"]
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        assert model[1].weight is model[0].weight


class TestFrozen:
    """Parameters that do not take part, for a while or at all."""

    def test_a_frozen_one_has_no_state_and_no_warning(self) -> None:
        params = parameters((3,), (2,))
        params[1].requires_grad_(False)
        before = array_of(params[1])
        optimizer = Adam(params, weight_decay=0.1, use_ema=True)
        train(optimizer, params[:1], range(5))
        assert (array_of(params[1]) == before).all()
        assert params[1] not in optimizer.state

    @pytest.mark.parametrize(
        "config", [{}, {"amsgrad": True, "weight_decay": 0.1}, {"clipnorm": 0.5, "epsilon": 0.1}]
    )
    def test_unfrozen_and_frozen_again(self, config: dict[str, Any]) -> None:
        params = parameters((3,), (2,))
        params[1].requires_grad_(False)
        judge = Beside(Adam(params, **config), config, [{}])
        for seed in range(120):
            give(params, seed)
            if seed < 100 or seed > 110:
                params[1].grad = None
            params[1].requires_grad_(100 <= seed <= 110)
            judge.step()
        assert [int(judge.optimizer.state[p]["step"]) for p in params] == [120, 11]

    def test_one_without_a_gradient_is_warned_of_once(self) -> None:
        params = parameters((3,), (2,), (4,))
        optimizer = Adam([(n, p) for n, p in zip("abc", params, strict=True)])
        with pytest.warns(UserWarning, match="b"):
            train(optimizer, params[::2], [0])
        train(optimizer, params[::2], range(3))
        for p in params[1:]:
            p.grad = None
        with pytest.warns(UserWarning, match="b, c"):
            train(optimizer, params[:1], [1])
        train(optimizer, params[:1], range(3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(optimizer, params, range(3))

    def test_no_gradient_at_all_is_refused(self) -> None:
        params = parameters((3,), (2,))
        optimizer = Adam(params)
        with pytest.raises(ValueError, match="gradient for at least one"):
            optimizer.step()
        train(optimizer, params, range(2))
        optimizer.zero_grad()
        with unchanged(optimizer), pytest.raises(ValueError, match="gradient for at least one"):
            optimizer.step()

    def test_the_average_of_one_without_a_gradient_goes_on(self) -> None:
        params = parameters((3,), (2,))
        optimizer = Adam(params, use_ema=True, ema_momentum=0.5)
        train(optimizer, params, range(2))
        other = optimizer.state[params[1]]
        distance = (other["average"] - params[1]).abs()
        params[1].grad = None
        with pytest.warns(UserWarning, match="1"):
            train(optimizer, params[:1], [2])
        torch.testing.assert_close((other["average"] - params[1]).abs(), distance / 2)

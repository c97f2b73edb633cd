"""Gradients of odd kinds, and those that do not fit."""

from __future__ import annotations

import pytest
import torch
from beside import alike, array_of, parameters, train, unchanged
from torch import Tensor

from oneadam.torch import Adam


class TestGradients:
    """Gradients of odd kinds."""

    def test_negated_views_count_as_their_values(self) -> None:
        for shape in ((3,), (1,), ()):
            (param,) = params = parameters(shape)
            (other,) = others = alike(params)
            param.grad = torch._neg_view(torch.ones(shape))
            other.grad = -torch.ones(shape)
            Adam(params).step()
            Adam(others).step()
            assert torch.equal(param, other)

    def test_imaginary_parts_are_gradients(self) -> None:
        (param,) = parameters((3,))
        param.grad = torch.tensor([1j, -2j, 3j]).conj().imag
        before = param.detach().clone()
        Adam([param], lr=0.5).step()
        assert (param > before).tolist() == [True, False, True]

    def test_zeros_without_memory_are_zeros(self) -> None:
        (param,) = params = parameters((3,))
        before = array_of(param)
        optimizer = Adam(params)
        param.grad = torch._efficientzerotensor((3,))
        optimizer.step()
        assert (array_of(param) == before).all()
        assert optimizer.updates == 1

    @pytest.mark.parametrize("what", ["parameter", "gradient", "state"])
    def test_memory_that_was_given_back_is_noticed(self, what: str) -> None:
        (param,) = params = parameters((3,))
        optimizer = Adam(params)
        train(optimizer, params, range(2))
        assert param.grad is not None
        gone = {"parameter": param, "gradient": param.grad}.get(what)
        gone = optimizer.state[param]["exp_avg"] if gone is None else gone
        gone.untyped_storage().resize_(0)
        with pytest.raises((ValueError, RuntimeError), match=r"memory|storage"):
            optimizer.step()

    def test_a_gradient_of_another_dtype(self) -> None:
        (param,) = params = parameters((4,))
        (other,) = others = alike(params)
        optimizer, beside = Adam(params, lr=0.1, clipnorm=1.0), Adam(others, lr=0.1, clipnorm=1.0)
        for seed, dtype in enumerate([torch.float64, torch.float16, torch.bfloat16] * 2):
            wide = torch.randn(4, generator=torch.Generator().manual_seed(seed)).to(dtype)
            param.grad, other.grad = torch.zeros(4), wide.float()
            param.grad.data = wide
            optimizer.step()
            beside.step()
        assert torch.equal(param, other)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(8, 2), torch.ones(16), torch.ones(1), torch.ones(4, 4, 1), torch.ones(4, 5),
        torch.ones(4, 4, dtype=torch.complex64), torch.ones(4, 4, dtype=torch.int32),
    ],
    ids=lambda wrong: f"{tuple(wrong.shape)} {wrong.dtype}",
)  # fmt: skip
def test_a_gradient_that_does_not_fit_is_refused(wrong: Tensor) -> None:
    (param,) = params = parameters((4, 4))
    optimizer = Adam(params)
    train(optimizer, params, range(2))
    param.grad.data = wrong
    with unchanged(optimizer), pytest.raises((TypeError, ValueError), match="gradient of '0'"):
        optimizer.step()

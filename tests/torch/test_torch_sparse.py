"""Sparse gradients equal dense ones, whatever the options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import same, snapshot, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.amp import GradScaler

from oneadam.torch import Adam, LossScaleOptimizer

# What torch says about sparse tensors as such.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant")

CONFIGS: dict[str, dict[str, Any]] = {
    "bare": {},
    "decay": {"weight_decay": 0.1, "maximize": True},
    "clipnorm": {"clipnorm": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.1, "use_ema": True, "ema_overwrite_frequency": 2},
    "clipvalue": {"clipvalue": 0.01, "amsgrad": True},
    "window": {"gradient_accumulation_steps": 3, "clipnorm": 0.1},
    "unscaled": {"loss_scale_factor": 4.0, "global_clipnorm": 0.1},
    "skip": {"on_nonfinite": "skip", "epsilon_hat": False},
    "raise": {"on_nonfinite": "raise", "epsilon": 1e-3},
}
Make = Callable[..., Any]


def plain(params: Any, **config: Any) -> Any:
    return Adam(params, lr=0.1, **config)


def pair(make: Make, config: dict[str, Any], dtype: torch.dtype) -> list[tuple[nn.Module, Any]]:
    """A model with sparse gradients and the same with dense ones, each with its optimizer."""
    sparse, dense = (
        nn.Sequential(nn.Embedding(10, 3, sparse=is_sparse), nn.Linear(3, 2)).to(dtype)
        for is_sparse in (True, False)
    )
    dense.load_state_dict(sparse.state_dict())
    return [(model, make(model.parameters(), **config)) for model in (sparse, dense)]


def call(model: nn.Module, optimizer: Any, seed: int) -> None:
    """One call with words of which some come twice."""
    words = torch.randint(0, 10, (8,), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    optimizer.scale_loss((model(words) ** 2).sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_equal_dense_ones(name: str, dtype: torch.dtype) -> None:
    (sparse, one), (dense, other) = pair(plain, CONFIGS[name], dtype)
    for seed in range(7):
        call(sparse, one, seed)
        call(dense, other, seed)
        assert sparse[0].weight.grad.is_sparse
        assert not sparse[0].weight.grad.is_coalesced()
    same(snapshot(one), snapshot(other))


def test_under_a_dynamic_loss_scale_equal_dense_ones() -> None:
    make = lambda p, **config: LossScaleOptimizer(plain(p, **config), initial_scale=8.0)  # noqa: E731
    (sparse, one), (dense, other) = pair(make, CONFIGS["window"], torch.float32)
    for seed in range(7):
        call(sparse, one, seed)
        call(dense, other, seed)
    same(snapshot(one), snapshot(other))
    indices = torch.tensor([[0, 0]])
    sparse[0].weight.grad = torch.sparse_coo_tensor(
        indices, torch.full((2, 3), float("inf")), (10, 3)
    )
    one.step()
    assert one.scale == 4.0


def test_under_a_gradient_scaler_equal_dense_ones() -> None:
    both = pair(plain, CONFIGS["global_clipnorm"], torch.float32)
    for model, optimizer in both:
        scaler = GradScaler("cpu", init_scale=8.0)
        for seed in range(5):
            words = torch.randint(0, 10, (8,), generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            scaler.scale((model(words) ** 2).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    same(snapshot(both[0][1]), snapshot(both[1][1]))


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=4),
    st.sampled_from(list(CONFIGS)),
)
def test_with_any_rows_any_number_of_times(rows: list[list[int]], name: str) -> None:
    (sparse,), (dense,) = ([nn.Parameter(torch.ones(5, 2))] for _ in range(2))
    one, other = plain([sparse], **CONFIGS[name]), plain([dense], **CONFIGS[name])
    for seed, indices in enumerate(rows):
        source = torch.Generator().manual_seed(seed)
        values = torch.randn(len(indices), 2, generator=source)
        sparse.grad = torch.sparse_coo_tensor(
            torch.tensor([indices], dtype=torch.int64), values, (5, 2)
        )
        dense.grad = sparse.grad.to_dense()
        one.step()
        other.step()
    same(snapshot(one), snapshot(other))


def coo(size: tuple[int, ...]) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, *size[1:]), size)


def test_a_sparse_gradient_is_left_as_it_is() -> None:
    (sparse, one), _ = pair(plain, {"clipnorm": 0.1}, torch.float32)
    call(sparse, one, 0)
    grad = sparse[0].weight.grad
    before = grad._indices().clone(), grad._values().clone()
    one.step()
    assert torch.equal(grad._indices(), before[0])
    assert torch.equal(grad._values(), before[1])
    assert not grad.is_coalesced()


def test_dense_and_sparse_ones_may_take_turns() -> None:
    (param,), (other,) = ([nn.Parameter(torch.ones(5, 2))] for _ in range(2))
    one, beside = plain([param]), plain([other])
    for seed in range(6):
        grad = torch.zeros(5, 2).index_fill(0, torch.tensor([seed % 5]), 1.0)
        param.grad = grad.to_sparse() if seed % 2 else grad.clone()
        other.grad = grad
        one.step()
        beside.step()
    same(snapshot(one), snapshot(beside))


def test_of_another_shape_is_refused() -> None:
    param = nn.Parameter(torch.ones(5, 2))
    optimizer = plain([param])
    param.grad = coo((5, 2))
    optimizer.step()
    param.grad.sparse_resize_((6, 2), 1, 1)
    with unchanged(optimizer), pytest.raises(ValueError, match="shape"):
        optimizer.step()

"""Parameters, gradients and state that somebody exchanges between two steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import alike, give, gradients, parameters, same, snapshot, train
from torch import Tensor, nn
from torch.nn import Parameter

from oneadam.torch import Adam

MASK = torch.tensor([True, False, True, True, False, True])


def exchange(
    optimizer: Any, number: int, new: Tensor, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Puts another parameter into a group and takes the old one's state along, changed.

    This is how points are pruned and added in Gaussian splatting.
    """
    group = optimizer.param_groups[number]
    old = group["params"][0]
    state = optimizer.state.get(old)
    del optimizer.state[old]
    group["params"][0] = Parameter(new.requires_grad_(True))
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = change(state[key])
    optimizer.state[group["params"][0]] = state
    param: Tensor = group["params"][0]
    return param


class TestExchangedParameters:
    """Points pruned and points added, with their state."""

    def made(self, **options: Any) -> tuple[Adam, list[Parameter]]:
        params = parameters((6,), (6, 3))
        groups = [
            {"params": [p], "name": n, "lr": 0.1} for p, n in zip(params, ("a", "b"), strict=True)
        ]
        return Adam(groups, **options), params

    @pytest.mark.parametrize(
        "options", [{}, {"global_clipnorm": 1.0, "weight_decay": 0.1}], ids=str
    )
    def test_pruned_and_added_as_if_made_so(self, options: dict[str, Any]) -> None:
        optimizer, params = self.made(**options)
        train(optimizer, params, range(5))
        rest = exchange(optimizer, 1, params[1].detach()[MASK], lambda m: m[MASK])
        added = exchange(
            optimizer,
            1,
            torch.cat([rest.detach(), torch.ones(2, 3)]),
            lambda m: torch.cat([m, torch.zeros(2, 3)]),
        )
        # Beside it, an optimizer that was given the same through a checkpoint.
        others = [*alike([params[0]]), *alike([added])]
        other = Adam([{"params": [p], "lr": 0.1} for p in others], **options)
        other.load_state_dict(optimizer.state_dict())
        train(optimizer, [params[0], added], range(5, 12))
        train(other, others, range(5, 12))
        same(snapshot(optimizer), snapshot(other))
        assert optimizer.param_groups[1]["name"] == "b"
        assert int(optimizer.state[added]["step"]) == 12

    def test_replaced_moments(self) -> None:
        optimizer, params = self.made()
        train(optimizer, params, range(5))
        reset = exchange(optimizer, 1, params[1].detach() * 0, torch.zeros_like)
        train(optimizer, [params[0], reset], [5])
        assert (reset != 0).all()
        assert torch.allclose(optimizer.state[reset]["exp_avg"], 0.1 * reset.grad)

    def test_a_state_that_was_not_pruned_is_refused(self) -> None:
        optimizer, params = self.made(use_ema=True)
        train(optimizer, params, range(3))
        rest = exchange(optimizer, 1, params[1].detach()[MASK], lambda m: m[MASK])
        rest.grad = torch.ones_like(rest)
        before = rest.detach().clone()
        with pytest.raises(ValueError, match="average"):
            optimizer.step()
        assert torch.equal(rest, before)
        optimizer.state[rest]["average"] = optimizer.state[rest]["average"][MASK]
        optimizer.step()

    def test_a_state_thrown_away_starts_afresh(self) -> None:
        optimizer, params = self.made()
        train(optimizer, params, range(5))
        optimizer.state.clear()
        others = alike(params)
        other = Adam([{"params": [p], "lr": 0.1} for p in others])
        train(optimizer, params, range(3))
        train(other, others, range(3))
        assert all(map(torch.equal, params, others))
        del optimizer.state[params[0]]
        train(optimizer, params, range(1))
        assert [int(optimizer.state[p]["step"]) for p in params] == [1, 4]
        assert optimizer.calls == 9

    def test_a_parameter_taken_out(self) -> None:
        optimizer, params = self.made(global_clipnorm=1.0)
        train(optimizer, params, range(3))
        del optimizer.param_groups[1]
        before = params[1].detach().clone()
        train(optimizer, params, range(3, 6))
        assert torch.equal(params[1], before)


def bigger(tensor: Tensor) -> Tensor:
    """The same values with gaps between them."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "moved": torch.clone,
    "transposed": lambda t: t.t().contiguous().t(),
    "with gaps": bigger,
}


class TestExchangedData:
    """`.data` of parameters, state and gradients, in another place and order."""

    def pair(self, **options: Any) -> tuple[Adam, Adam, list[Parameter], list[Parameter]]:
        params = parameters((3, 3), (4, 3))
        others = alike(params)
        return Adam(params, lr=0.1, **options), Adam(others, lr=0.1, **options), params, others

    @pytest.mark.parametrize("name", LAYOUTS)
    @pytest.mark.parametrize("what", ["param", "exp_avg", "average", "grad"])
    def test_is_right_wherever_it_lies(self, what: str, name: str) -> None:
        optimizer, other, params, others = self.pair(use_ema=True, clipnorm=1.0)
        for seed in range(12):
            for p, g in zip(params, gradients(params, seed), strict=True):
                p.grad = g
                if seed % 3 == 1:
                    tensor = {"param": p, "grad": p.grad}.get(what)
                    if tensor is None:
                        tensor = optimizer.state[p][what]
                    tensor.data = LAYOUTS[name](tensor.data)
            optimizer.step()
            train(other, others, [seed])
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("what", ["param", "exp_avg"])
    def test_is_right_when_transposed_in_its_place(self, what: str) -> None:
        optimizer, other, params, others = self.pair()
        for seed in range(4):
            train(optimizer, params, [seed])
            train(other, others, [seed])
            for o, p in ((optimizer, params[0]), (other, others[0])):
                tensor = p if what == "param" else o.state[p][what]
                turned = tensor.data.t()
                tensor.data = turned if o is optimizer else turned.contiguous()
        assert torch.equal(params[0], others[0])

    def test_is_right_as_another_view_of_the_same_buffer(self) -> None:
        buffer = torch.zeros(8)
        param = Parameter(buffer[:4])
        optimizer = Adam([param], lr=0.5)
        train(optimizer, [param], [0])
        first = buffer.clone()
        param.data = buffer[::2]
        train(optimizer, [param], [1])
        assert torch.equal(buffer[1::2], first[1::2])
        assert (buffer[::2] != first[::2]).all()

    def test_expanded_in_its_place_is_refused(self) -> None:
        (param,) = params = parameters((4,))
        optimizer = Adam(params)
        train(optimizer, params, [0])
        param.data = param.data[:1].expand(4)
        with pytest.raises(ValueError, match="overlap"):
            optimizer.step()

    def test_two_that_share_memory_now_are_refused(self) -> None:
        params = parameters((4,), (4,))
        optimizer = Adam(params)
        train(optimizer, params, [0])
        params[0].data = params[1].data
        with pytest.raises(ValueError, match="share memory"):
            optimizer.step()

    def test_swapped_to_and_fro_at_every_step(self) -> None:
        (param,) = params = parameters((3, 3))
        (other,) = others = alike(params)
        optimizer, beside = Adam(params, lr=0.1), Adam(others, lr=0.1)
        for seed in range(20):
            train(optimizer, params, [seed])
            train(beside, others, [seed])
            with torch.no_grad():
                param.data = param.data.double().half().to(torch.float32)
                other.copy_(other.double().half().to(torch.float32))
                averages = param.data.clone()
                param.data, averages = averages, param.data
        assert torch.equal(param, other)


class TestSharedMemory:
    """State and gradients that are the same memory as something that a step writes."""

    def started(self) -> tuple[Adam, list[Parameter]]:
        params = parameters((4,), (4,))
        optimizer = Adam(params, use_ema=True, lr=0.1)
        train(optimizer, params, range(2))
        return optimizer, params

    @pytest.mark.parametrize(
        "share",
        [
            lambda o, p, q: setattr(p, "data", o.state[p]["average"]),
            lambda o, p, q: o.state[p].update(average=p.data),
            lambda o, p, q: o.state[p].update(exp_avg=o.state[p]["exp_avg_sq"]),
            lambda o, p, q: o.state[p].update(exp_avg=o.state[q]["exp_avg"]),
            lambda o, p, q: o.state[p].update(exp_avg=q.data),
            lambda o, p, q: setattr(o.state[p]["exp_avg"], "data", q.data),
        ],
        ids=range(6),
    )
    def test_of_state_is_refused_or_undone(self, share: Callable[[Any, Any, Any], None]) -> None:
        optimizer, params = self.started()
        share(optimizer, *params)
        others = alike(params)
        other = Adam(others, use_ema=True, lr=0.1)
        other.load_state_dict(optimizer.state_dict())
        give(params, 5)
        with contextlib.suppress(ValueError):
            optimizer.step()
            train(other, others, [5])
        same(snapshot(optimizer), snapshot(other))

    @pytest.mark.parametrize("what", ["param", "exp_avg", "average", "other"])
    def test_of_a_gradient_counts_as_the_gradient_that_it_was(self, what: str) -> None:
        optimizer, params = self.started()
        param = params[0]
        for p in params:
            p.grad = torch.ones(4)
        shared = {"param": param.data, "other": params[1].data}.get(what)
        shared = optimizer.state[param][what] if shared is None else shared
        others = alike(params)
        other = Adam(others, use_ema=True, lr=0.1)
        other.load_state_dict(optimizer.state_dict())
        others[0].grad, others[1].grad = shared.clone(), torch.ones(4)
        param.grad = shared
        optimizer.step()
        other.step()
        same(snapshot(optimizer), snapshot(other))


class TestDtypes:
    """Parameters that change their dtype between two steps."""

    @pytest.mark.parametrize("to", [torch.float64, torch.float16, torch.bfloat16])
    def test_a_model_converted(self, to: torch.dtype) -> None:
        model = nn.Linear(3, 2)
        optimizer = Adam(model.parameters(), lr=0.1, use_ema=True)
        train(optimizer, model.parameters(), range(3))
        moments = [own["exp_avg"].clone() for own in optimizer.state.values()]
        model.to(to)
        wide = torch.float64 if to == torch.float64 else torch.float32
        params = [*model.parameters()]
        others = alike(params)
        other = Adam(others, lr=0.1, use_ema=True)
        other.load_state_dict(optimizer.state_dict())
        for which, own in ((optimizer, params), (other, others)):
            for param in own:
                param.grad = None
            train(which, own, [3])
            assert all(s["exp_avg"].dtype == wide for s in which.state.values())
        same(snapshot(optimizer), snapshot(other))
        for own, moment in zip(optimizer.state.values(), moments, strict=True):
            assert (own["exp_avg"] != moment).any()

"""State in torch's own form, of this optimizer or of torch's, by position or by name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from oneadam import _interrupts
from oneadam._messages import listed
from oneadam._plan import Counters
from oneadam._warnings import warn
from oneadam.torch import _slots
from oneadam.torch._run import Run
from oneadam.torch._spelling import OWN, Group

State = defaultdict[Any, dict[str, Any]]

_WITHOUT_EFFECT = ("foreach", "fused")
_REQUIRED = ("step", "exp_avg", "exp_avg_sq")


_AFRESH = "started afresh, because the saved state lacks it"
_LEFT_OUT = "left out, because this optimizer does not use it"


def load(
    optimizer: torch.optim.Optimizer,
    run: Run,
    state_dict: dict[str, Any],
    check: Callable[[Group], object] = lambda group: None,
) -> None:
    """Take over what `state_dict` of this optimizer or of torch's Adam or AdamW returned.

    Args:
        optimizer: whose hooks are run.
        run: the optimizer's.
        state_dict: with `state` and `param_groups`.
        check: refuses a group, before anything has changed.
    """
    run.check_trained()
    _check_form(state_dict)
    state_dict = state_dict.copy()
    for before in optimizer._optimizer_load_state_dict_pre_hooks.values():
        given = before(optimizer, state_dict)
        state_dict = state_dict if given is None else given
    old, saved = run.param_groups, deepcopy(state_dict["param_groups"])
    _check_sizes(old, saved)
    told: dict[str, list[str]] = defaultdict(list)
    groups = [_merged(group, other, run, told) for group, other in zip(old, saved, strict=True)]
    for group, new in zip(old, groups, strict=True):
        run.groups.follow(group, new)
        run.groups.of(new)
        check(new)
    state = _state_of(run, groups, saved, state_dict["state"], told)
    counters = _counters(groups, state)
    if "gradient_accumulator" in chain(told[_AFRESH], told[_LEFT_OUT]):
        # Without all of its sums a window is begun anew.
        counters = counters._replace(accumulated_calls=0)
        for own in state.values():
            for key in own.keys() & {"gradient_accumulator", "in_window"}:
                own[key] = torch.zeros_like(own[key])
    _report(told)
    with _interrupts.held_back():
        run.replace(state, groups)
        run.counters = counters
    for after in optimizer._optimizer_load_state_dict_post_hooks.values():
        after(optimizer)


def _check_form(state_dict: Any) -> None:
    is_one = isinstance(state_dict, Mapping) and {"state", "param_groups"} <= state_dict.keys()
    if not is_one or not all(isinstance(own, Mapping) for own in state_dict["state"].values()):
        raise TypeError(
            "state_dict must be what state_dict() of Adam or AdamW returned, received"
            f" {type(state_dict).__name__}; for the file of save() there is load(path)"
        )


def _check_sizes(groups: Sequence[Group], saved: Sequence[Group]) -> None:
    sizes, others = ([len(group["params"]) for group in which] for which in (groups, saved))
    if sizes != others:
        raise ValueError(
            f"the saved state must have groups of as many parameters as the optimizer, {sizes},"
            f" received {others}; make the optimizer as the saved one was made"
        )


def _merged(group: Group, saved: Group, run: Run, told: dict[str, list[str]]) -> Group:
    """Return a group with the saved entries, and its own where the saved one has none."""
    merged = {**{name: group[name] for name in OWN}, **saved, "params": group["params"]}
    # NaN stands where a callable had not been asked yet.
    if isinstance(merged["lr"], float) and math.isnan(merged["lr"]):
        merged["lr"] = group["lr"]
    merged["betas"] = tuple(
        own if isinstance(beta, float) and math.isnan(beta) else beta
        for beta, own in zip(merged["betas"], group["betas"], strict=True)
    )
    if "param_names" in group:
        merged["param_names"] = group["param_names"]
    else:
        merged.pop("param_names", None)
    for name in _WITHOUT_EFFECT:
        merged.pop(name, None)
    for name in ("capturable", "differentiable"):
        if merged.pop(name, False):
            told[_LEFT_OUT].append(name)
    is_theirs = "decoupled_weight_decay" in merged
    if not merged.pop("decoupled_weight_decay", True) and merged["weight_decay"]:
        merged["weight_decay"] = group["weight_decay"]
        told[_LEFT_OUT].append("weight_decay that is part of the gradient")
    if is_theirs and run.hyperparameters.epsilon_hat:
        merged["eps"] = group["eps"]
        told[_LEFT_OUT].append("eps of another meaning (epsilon_hat=False would take it over)")
    return merged


def _state_of(
    run: Run,
    groups: Sequence[Group],
    saved_groups: Sequence[Group],
    saved: Mapping[Any, Any],
    told: dict[str, list[str]],
) -> State:
    """Return the saved state for the parameters that it is of."""
    numbers = list(chain.from_iterable(group["params"] for group in saved_groups))
    numbers = _by_name(groups, saved_groups, numbers)
    state: State = defaultdict(dict)
    every = [(param, group) for group in groups for param in group["params"]]
    for number, name, (param, group) in zip(numbers, run.names(), every, strict=True):
        if saved.get(number):
            state[param] = _taken(name, param, run.keys(group), saved[number], told)
        elif saved and param.requires_grad:
            told[_AFRESH].append(f"all of {name}")
            told[_AFRESH].extend({"gradient_accumulator"} & set(run.keys(group)))
    for key in saved.keys() - set(numbers):
        state[key] = saved[key]
    return state


def _by_name(
    groups: Sequence[Group], saved_groups: Sequence[Group], numbers: list[Any]
) -> list[Any]:
    """Return the numbers of the saved parameters in the order that these have here."""
    here, there = (
        [name for group in which for name in group.get("param_names", ())]
        for which in (groups, saved_groups)
    )
    if here == there or not here or not there:
        return numbers
    if sorted(here) == sorted(there):
        places = dict(zip(there, numbers, strict=True))
        return [places[name] for name in here]
    differing = [f"{a} and {b}" for a, b in zip(there, here, strict=True) if a != b]
    warn(
        "the saved parameters have other names than the optimizer's and are taken in their order;"
        f" saved and here: {listed(differing)}"
    )
    return numbers


def _taken(
    name: str,
    param: Tensor,
    keys: Sequence[str],
    saved: Mapping[str, Any],
    told: dict[str, list[str]],
) -> dict[str, Any]:
    """Return the saved state of one parameter as it is needed here, copied."""
    missing = [key for key in _REQUIRED if key not in saved]
    if missing:
        raise ValueError(
            f"the saved state of {name!r} must have {', '.join(_REQUIRED)}, received"
            f" {listed(list(saved))}; was it saved by another optimizer than Adam?"
        )
    lacking = [key for key in keys if key not in saved and key not in _slots.NUMBERS]
    told[_AFRESH].extend(lacking)
    told[_LEFT_OUT].extend(key for key in saved if key not in keys and key not in _slots.NUMBERS)
    useless = {"average": "averaged", "gradient_accumulator": "in_window"}
    afresh = {*lacking, *(useless[key] for key in lacking if key in useless)}
    taken = {}
    for key in keys:
        if key in afresh or key not in saved:
            taken[key] = _slots.empty(param, key)
            continue
        try:
            taken[key] = _slots.copied(param, key, saved[key])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} (parameter {name!r}); nothing has changed") from error
    return taken


def _counters(groups: Sequence[Group], state: State) -> Counters:
    """Return the saved counters; of torch's optimizers, which have none, what the steps tell."""
    if all(name in groups[0] for name in Counters._fields):
        counters = Counters(*(int(groups[0][name]) for name in Counters._fields))
        if min(counters) < 0:
            raise ValueError(
                f"saved counters must be >= 0, received {counters}; they are damaged, and nothing"
                " was loaded"
            )
        return counters
    steps = [int(own["step"]) for own in state.values() if "step" in own]
    return Counters(calls=max(steps, default=0), updates=max(steps, default=0))


def _report(told: Mapping[str, list[str]]) -> None:
    sentences = [
        f"{what}: {listed(list(dict.fromkeys(names)))}" for what, names in told.items() if names
    ]
    if sentences:
        warn("; ".join(sentences))

"""Arguments and groups as torch's users write them: torch's spellings, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any

from torch import Tensor

from oneadam import _arguments as arguments
from oneadam._hyperparameters import Hyperparameters

Group = dict[str, Any]

SPELLINGS = {"learning_rate": "lr", "epsilon": "eps"}
"""torch's names, by ours."""
BETAS = ("beta_1", "beta_2")
"""What torch has as a pair."""

OWN = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "clipnorm", "clipvalue")
"""What each group has for itself."""

OF_THE_WHOLE = (
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
    "epsilon_hat",
    "on_nonfinite",
    "process_group",
)
"""What no group can have for itself, because it concerns all parameters."""


NOT_GIVEN: Any = type("NotGiven", (), {"__repr__": lambda self: "not given"})()
"""The default of torch's spellings."""


def arguments_of(given: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments that every door has, from those of this one.

    Args:
        given: what the function was called with, by name.
        function: which has the arguments; a default counts as not given.

    Raises:
        ValueError: an argument is given in both spellings, or one that is not supported yet.
        TypeError: `betas` is no pair.
    """
    defaults = {name: p.default for name, p in signature(function).parameters.items()}
    # A number written by a caller is another object than the default, also where they are equal.
    explicit = {name: value for name, value in given.items() if value is not defaults[name]}
    for name in ("capturable", "differentiable"):
        if arguments.flag(name, given[name]):
            raise ValueError(
                f"{name} must be False, for it is not supported yet, received True; leave it out,"
                " or use torch.optim.AdamW for this"
            )
    result = {field.name: given[field.name] for field in fields(Hyperparameters) if field.init}
    for ours, theirs in SPELLINGS.items():
        if theirs in explicit:
            _refuse_twice(explicit, ours, theirs)
            result[ours] = given[theirs]
    if "betas" in explicit:
        for ours in BETAS:
            _refuse_twice(explicit, ours, "betas")
        result.update(zip(BETAS, pair_of_betas(given["betas"]), strict=True))
    return result


def as_arguments(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """Return the arguments that make these hyperparameters."""
    names = [field.name for field in fields(Hyperparameters) if field.init]
    return {name: getattr(hyperparameters, name) for name in names}


def defaults(arguments: Mapping[str, Any], maximize: bool) -> Group:
    """Return the entries of a group that has nothing of its own."""
    return {
        "lr": arguments["learning_rate"],
        "betas": (arguments["beta_1"], arguments["beta_2"]),
        "eps": arguments["epsilon"],
        "weight_decay": arguments["weight_decay"],
        "amsgrad": arguments["amsgrad"],
        "maximize": maximize,
        "clipnorm": arguments["clipnorm"],
        "clipvalue": arguments["clipvalue"],
    }


def listed_parameters(params: Any) -> Any:
    """Return parameters or groups as a list, having refused what would be misread."""
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(
            "params must be an iterable of tensors, of (name, tensor) or of dicts, received"
            f" {type(params).__name__}; put a single tensor into a list"
        )
    if isinstance(params, Mapping):
        raise TypeError(
            "params must be a list of groups, received a single dict; put it into a list, or pass"
            " its items()"
        )
    result = list(params)
    if not result:
        raise ValueError(
            "params must have at least one parameter, received none; a generator such as"
            " model.parameters() has nothing left when it is used a second time, so call it anew"
        )
    return result


def spelled(given: Any, default: Mapping[str, Any]) -> Group:
    """Return a group under torch's names, with its parameters in a list.

    Raises:
        TypeError: it is no dict.
        ValueError: it has no parameters, one of them twice, or an entry in both spellings.
    """
    if not isinstance(given, dict):
        raise TypeError(f"param_group must be a dict, received {type(given).__name__}")
    if "params" not in given:
        raise ValueError(
            f"a group must have its parameters under 'params', received the keys {list(given)};"
            " add them"
        )
    group = dict(given)
    if not isinstance(group["params"], (Tensor, set)):
        if not isinstance(group["params"], Iterable):
            raise TypeError(
                "params of a group must be a tensor or an iterable of tensors, received"
                f" {group['params']!r}; pass for example list(model.parameters())"
            )
        group["params"] = list(group["params"])
        tensors = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        if len({id(tensor) for tensor in tensors}) != len(tensors):
            raise ValueError(
                "a group must have each parameter once, received one of them twice; pass a tied"
                " parameter once, as named_parameters() does"
            )
    for ours, theirs in SPELLINGS.items():
        if ours in group:
            _refuse_twice(group, ours, theirs)
            group[theirs] = group.pop(ours)
    if any(ours in group for ours in BETAS):
        for ours in BETAS:
            _refuse_twice(group, ours, "betas")
        pair = pair_of_betas(default["betas"])
        group["betas"] = tuple(group.pop(*both) for both in zip(BETAS, pair, strict=True))
    return group


def _refuse_twice(given: Mapping[str, Any], ours: str, theirs: str) -> None:
    if ours in given and theirs in given:
        raise ValueError(
            f"{ours} and {theirs} must not both be given, for they mean the same, received"
            f" {given[ours]!r} and {given[theirs]!r}; leave one of them out"
        )


def check_names(group: Mapping[str, Any]) -> None:
    """Refuse a group that has for itself what concerns the whole model."""
    reasons = {
        "capturable": "it is not supported yet",
        "differentiable": "it is not supported yet",
        "foreach": "there is nothing to choose",
        "fused": "there is nothing to choose",
    }
    for name, reason in reasons.items():
        if group.get(name):
            raise ValueError(
                f"{name} must be left out of a group, because {reason}, received {group[name]!r}"
            )
    found = [name for name in OF_THE_WHOLE if name in group]
    if found:
        raise ValueError(
            f"a group of parameters must have no {found[0]} of its own, because it concerns the"
            f" whole model, received {group[found[0]]!r}; pass it to the optimizer. A group may"
            f" have {', '.join(OWN)}"
        )


def pair_of_betas(value: Any) -> tuple[Any, Any]:
    """Return the two betas, of which each has yet to be checked."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"betas must be a pair of numbers in [0, 1), received {arguments.shown(value)}; pass"
            " for example betas=(0.9, 0.999)"
        )
    return value[0], value[1]

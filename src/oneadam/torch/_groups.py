"""Parameter groups: torch's names for what differs between them, and its validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any, NamedTuple

from torch import Tensor

from oneadam import _arguments as arguments
from oneadam._engines.torch import tensors
from oneadam._hyperparameters import Hyperparameters, Rates, learning_rate_now, now

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
    for name in ("capturable", "differentiable", "foreach", "fused"):
        if group.get(name):
            raise ValueError(
                f"{name} must be left out of a group, for no step is, or need be told to be,"
                f" received {group[name]!r}"
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


def with_group(
    base: Hyperparameters, group: Mapping[str, Any], callables: Mapping[str, Any]
) -> Hyperparameters:
    """Return the optimizer's hyperparameters with those that a group has in their place.

    Args:
        base: the optimizer's.
        group: with all entries.
        callables: what decides in place of an entry, by our names.

    Raises:
        TypeError, ValueError: one of them is of another kind or out of range.
    """
    beta_1, beta_2 = pair_of_betas(group["betas"])
    arguments.flag("maximize", group["maximize"])
    rates = {"learning_rate": group["lr"], "beta_1": beta_1, "beta_2": beta_2}
    return dataclasses.replace(
        base,
        **{**rates, **callables},
        epsilon=group["eps"],
        weight_decay=group["weight_decay"],
        amsgrad=group["amsgrad"],
        clipnorm=group["clipnorm"],
        clipvalue=group["clipvalue"],
    )


class Known(NamedTuple):
    """What was found of a group's entries when they were last looked at."""

    group: Group
    entries: tuple[Any, ...]
    hyperparameters: Hyperparameters


class Groups:
    """The hyperparameters of each group, looked at again only where entries have changed.

    Entries are numbers, for schedulers and checkpoints to read and write. Where the optimizer
    was given a schedule or another callable, its value of the last call stands there.
    """

    def __init__(self, base: Hyperparameters) -> None:
        self.base = base
        self._known: dict[int, Known] = {}

    def enter(self, group: Group) -> None:
        """Check a group whose entries may be callables, and put numbers in their place."""
        check_names(group)
        hyperparameters = with_group(self.base, group, {})
        rates = _first(hyperparameters)
        if not isinstance(group["lr"], Tensor):
            group["lr"] = rates.learning_rate
        group["betas"] = (rates.beta_1, rates.beta_2)
        group["weight_decay"] = hyperparameters.weight_decay or 0.0
        for entry in ("clipnorm", "clipvalue"):
            group[entry] = getattr(hyperparameters, entry)
        group["eps"] = hyperparameters.epsilon
        self._remember(group, hyperparameters)

    def of(self, group: Group) -> Hyperparameters:
        """Return the hyperparameters of a group as its entries are now.

        Raises:
            TypeError, ValueError: an entry is of another kind, out of range, or was changed where
                a schedule decides.
        """
        entries = tuple(group[name] for name in OWN)
        known = self._known.get(id(group))
        if known is not None and known.group is group:
            if known.entries == entries:
                return known.hyperparameters
            before = known.hyperparameters
        else:
            before = self.base
            known = None
        callables = _callables(before, known)
        return self._remember(group, with_group(self.base, group, callables))

    def now(self, groups: list[Group], calls: int) -> list[Rates]:
        """Return the rates of all groups for one call, and write down those that were computed.

        A callable is evaluated once, however many groups have it.
        """
        answers: dict[int, float] = {}
        every = [(self.of(group), group) for group in groups]
        rates = [now(hyperparameters, calls, answers) for hyperparameters, _ in every]
        return [
            self._written(group, hyperparameters, own)
            for (hyperparameters, group), own in zip(every, rates, strict=True)
        ]

    def _written(self, group: Group, hyperparameters: Hyperparameters, rates: Rates) -> Rates:
        if callable(hyperparameters.learning_rate):
            group["lr"] = rates.learning_rate
        elif isinstance(group["lr"], Tensor):
            rates = rates._replace(learning_rate=_number_in(group["lr"]))
        if callable(hyperparameters.beta_1) or callable(hyperparameters.beta_2):
            group["betas"] = (rates.beta_1, rates.beta_2)
        self._remember(group, hyperparameters)
        return rates

    def learning_rate(self, group: Group, calls: int) -> float:
        """Return the learning rate of a group for one call."""
        hyperparameters = self.of(group)
        if isinstance(group["lr"], Tensor) and not callable(hyperparameters.learning_rate):
            return float(group["lr"])
        return learning_rate_now(hyperparameters, calls)

    def assign_learning_rate(self, groups: list[Group], value: Any) -> None:
        """Give all groups another learning rate: a number, tensor, schedule or callable."""
        base = dataclasses.replace(self.base, learning_rate=value)
        changed = [dataclasses.replace(self.of(group), learning_rate=value) for group in groups]
        self.base = base
        for group, hyperparameters in zip(groups, changed, strict=True):
            is_tensor = isinstance(value, Tensor)
            group["lr"] = value if is_tensor else _first(hyperparameters).learning_rate
            self._remember(group, hyperparameters)

    def was_set_to_zero(self, group: Group) -> bool:
        """Return whether somebody has set a group's learning rate to zero."""
        known = self._known.get(id(group))
        return known is not None and group["lr"] == 0.0 and _is_changed(known, "lr")

    def forget_others(self, groups: list[Group]) -> None:
        """Forget what is known of groups that are no longer there."""
        there = {id(group) for group in groups}
        self._known = {key: known for key, known in self._known.items() if key in there}

    def follow(self, old: Group, new: Group) -> None:
        """Let a group's callables decide in another group that takes its place."""
        known = self._known.get(id(old))
        if known is not None and known.group is old:
            self._remember(new, with_group(self.base, new, _callables(known.hyperparameters)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._known = {id(known.group): known for known in self._known.values()}

    def _remember(self, group: Group, hyperparameters: Hyperparameters) -> Hyperparameters:
        entries = tuple(group[name] for name in OWN)
        self._known[id(group)] = Known(group, entries, hyperparameters)
        return hyperparameters


def _first(hyperparameters: Hyperparameters) -> Rates:
    """Return the rates before the first call; NaN for one that only a call may ask for."""
    h = hyperparameters
    is_known = h.takes_calls or not callable(h.learning_rate)
    return Rates(
        learning_rate_now(h, 0) if is_known else math.nan,
        math.nan if callable(h.beta_1) else h.beta_1,
        math.nan if callable(h.beta_2) else h.beta_2,
    )


def _callables(before: Hyperparameters, known: Known | None = None) -> dict[str, Any]:
    """Return the callables that decide in place of entries, having refused changes of these."""
    kept: dict[str, Any] = {}
    for name, entry in (("learning_rate", "lr"), ("beta_1", "betas"), ("beta_2", "betas")):
        if callable(getattr(before, name)):
            kept[name] = getattr(before, name)
            if known is not None and _is_changed(known, entry):
                raise ValueError(
                    f"{entry} must be left to the {name} that the optimizer was given,"
                    f" {kept[name]!r}, received {known.group[entry]!r} in a group; use either that"
                    " or what changes the group, or assign optimizer.learning_rate"
                )
    return kept


def _is_changed(known: Known, entry: str) -> bool:
    before, after = known.entries[OWN.index(entry)], known.group[entry]
    return before is not after and repr(before) != repr(after)  # NaN is not equal to itself


def _number_in(tensor: Tensor) -> Any:
    """Return a tensor's number; one on another device stays there."""
    if tensors.is_host(tensor.device):
        return arguments.number("lr", tensor, arguments.LEARNING_RATE)
    return tensor.detach().double()

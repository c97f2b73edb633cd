"""The hyperparameters of each group of parameters, as its entries are at every step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from oneadam import _arguments as arguments
from oneadam._engines.torch import tensors
from oneadam._hyperparameters import Hyperparameters, Rates, learning_rate_now, now
from oneadam.torch._spelling import BETAS, OWN, Group, check_names, pair_of_betas


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
    """What decides; of its rates only those that are callables."""
    rates: Rates
    """Those that are numbers; NaN for callables and tensors."""

    @property
    def has_callables(self) -> bool:
        """Whether a rate has to be asked for."""
        h = self.hyperparameters
        return callable(h.learning_rate) or callable(h.beta_1) or callable(h.beta_2)


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
        """Return what decides in a group as its entries are now; its rates only if callables.

        Raises:
            TypeError, ValueError: an entry is of another kind, out of range, or was changed where
                a schedule decides.
        """
        return self._look(group).hyperparameters

    def _look(self, group: Group) -> Known:
        entries = tuple([group[name] for name in OWN])
        known = self._known.get(id(group))
        if known is None or known.group is not group:
            return self._look_closer(group, _callables(self.base))
        if _are_same(known.entries, entries):
            return known
        callables = _callables(known.hyperparameters, known)
        if known.entries[_RATES:] != entries[_RATES:]:
            return self._look_closer(group, callables)
        # Schedulers change nothing but the rates, and at every step.
        return self._remember(group, known.hyperparameters)

    def _look_closer(self, group: Group, callables: Mapping[str, Any]) -> Known:
        return self._remember(group, with_group(self.base, group, callables))

    def now(self, groups: list[Group], calls: int) -> list[Rates]:
        """Return the rates of all groups for one call.

        A callable is evaluated once, however many groups have it.
        """
        answers: dict[int, float] = {}
        return [self._of_call(self._look(group), calls, answers) for group in groups]

    def _of_call(self, known: Known, calls: int, answers: dict[int, float]) -> Rates:
        rates, rate = known.rates, known.group["lr"]
        if isinstance(rate, Tensor):
            rates = rates._replace(learning_rate=_number_in(rate))
        if not known.has_callables:
            return rates
        asked = now(known.hyperparameters, calls, answers)
        return Rates(
            *(
                answer if callable(getattr(known.hyperparameters, name)) else number
                for name, answer, number in zip(Rates._fields, asked, rates, strict=True)
            )
        )

    def write(self, groups: list[Group], rates: list[Rates]) -> None:
        """Write down the rates that callables have given in a call."""
        for group, own in zip(groups, rates, strict=True):
            known = self._known[id(group)]
            if known.has_callables:
                if callable(known.hyperparameters.learning_rate):
                    group["lr"] = own.learning_rate
                group["betas"] = (own.beta_1, own.beta_2)
                self._remember(group, known.hyperparameters)

    def learning_rate(self, group: Group, calls: int) -> float:
        """Return the learning rate of a group for one call."""
        hyperparameters = self.of(group)
        if callable(hyperparameters.learning_rate):
            return learning_rate_now(hyperparameters, calls)
        return float(group["lr"])

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

    def _remember(self, group: Group, hyperparameters: Hyperparameters) -> Known:
        rates = _numbers(group, hyperparameters)
        _freeze(group, rates)
        entries = tuple([group[name] for name in OWN])
        known = self._known[id(group)] = Known(group, entries, hyperparameters, rates)
        return known


_RATES = 2
"""How many of a group's entries are rates; they come first."""


def _are_same(known: tuple[Any, ...], entries: tuple[Any, ...]) -> bool:
    one, other = known[0], entries[0]
    # Two tensors are not compared by value, which might have to be waited for.
    if one is not other and (isinstance(one, Tensor) or isinstance(other, Tensor)):
        return False
    return known == entries


def _freeze(group: Group, rates: Rates) -> None:
    """Put numbers in the place of what might be changed without being exchanged."""
    if not (math.isnan(rates.learning_rate) or isinstance(group["lr"], Tensor)):
        group["lr"] = rates.learning_rate
    group["betas"] = tuple(
        entry if math.isnan(number) else number
        for number, entry in zip((rates.beta_1, rates.beta_2), group["betas"], strict=True)
    )


def _numbers(group: Group, hyperparameters: Hyperparameters) -> Rates:
    """Return the rates that a group's entries are, checked; NaN where there is no number."""
    h, rate = hyperparameters, group["lr"]
    if callable(h.learning_rate) or isinstance(rate, Tensor):
        rate = math.nan
    else:
        rate = arguments.number("lr", rate, arguments.LEARNING_RATE)
    pair = zip(BETAS, (h.beta_1, h.beta_2), pair_of_betas(group["betas"]), strict=True)
    betas = [
        math.nan if callable(decides) else arguments.number(name, beta, arguments.BETA)
        for name, decides, beta in pair
    ]
    return Rates(rate, *betas)


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

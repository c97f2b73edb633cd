"""Exact exemptions from weight decay, found among the variables that an optimizer is built on."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from oneadam import _messages
from oneadam._exclusions import Exclusions
from oneadam._warnings import warn


def resolved(
    exclusions: Exclusions, given: Collection[str], paths: Mapping[str, str]
) -> Exclusions:
    """Return exclusions whose exact names are names of variables, as far as there are such.

    Args:
        exclusions: some of them from a configuration.
        given: the exact names that were given to this optimizer.
        paths: of all variables by their names, which are different where paths are the same.

    Raises:
        ValueError: a name that was given to this optimizer is of no variable.
    """
    unknown = [name for name in exclusions.names if name not in paths]
    wrong = [name for name in unknown if name in given]
    if wrong:
        raise ValueError(_messages.excluded_unknown(wrong))
    names, lost = set(exclusions.names).difference(unknown), []
    for name in unknown:
        found = [here for here, path in paths.items() if _are_alike(name, path)]
        if len(found) == 1:
            names.add(found[0])
        else:
            lost.append(name)
    if lost:
        warn(
            f"the configuration exempts {_messages.listed(lost)} from weight decay, which none of"
            " the variables is called here, or more than one could be; it is not exempt. Exempt it"
            " anew, by var_names or as a variable"
        )
    return dataclasses.replace(exclusions, names=tuple(sorted({*names, *lost})))


def _are_alike(saved: str, here: str) -> bool:
    """Return whether a path may have become another one where Keras has loaded a model.

    It leaves the names of models out, or puts numbers behind them.
    """
    short, long = sorted((saved.split("/"), here.split("/")), key=len)
    if len(short) < len(long):
        return len(short) > 1 and long[-len(short) :] == short
    return len(short) > 2 and short[1:] == long[1:]

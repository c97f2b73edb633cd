"""Which variables are exempt from weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exclusions:
    """Exact names, parts of names, and patterns; equal whatever the order they were given in."""

    names: tuple[str, ...] = ()
    substrings: tuple[str, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = ()

    def covers(self, name: str) -> bool:
        """Return whether the variable of this full name is exempt."""
        return (
            name in self.names
            or any(part in name for part in self.substrings)
            or any(pattern.search(name) for pattern in self.patterns)
        )

    def extended(
        self, names: Iterable[str] = (), var_names: Iterable[str | re.Pattern[str]] = ()
    ) -> Exclusions:
        """Return these exclusions and more.

        Args:
            names: full names of variables.
            var_names: parts of names, or patterns made by `re.compile`, which may match anywhere.

        Raises:
            TypeError: if either is a single str or pattern, or holds anything else than these.
            ValueError: if an entry is empty, which would exempt every variable.
        """
        exact = [_checked("names", name, (str,)) for name in entries("names", names)]
        parts = [
            _checked("var_names", part, (str, re.Pattern))
            for part in entries("var_names", var_names)
        ]
        patterns = {part for part in parts if isinstance(part, re.Pattern)}
        return Exclusions(
            tuple(sorted({*self.names, *exact})),
            tuple(sorted({*self.substrings, *(part for part in parts if isinstance(part, str))})),
            tuple(sorted({*self.patterns, *patterns}, key=lambda p: (p.pattern, p.flags))),
        )

    def to_config(self) -> dict[str, Any]:
        """Return the exclusions as a dict that is valid JSON."""
        return {
            "names": list(self.names),
            "substrings": list(self.substrings),
            "patterns": [{"pattern": p.pattern, "flags": p.flags} for p in self.patterns],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Exclusions:
        """Return the exclusions that `to_config` wrote; the dict stays as it is.

        Raises:
            TypeError: if `config` or a part of it is of the wrong type.
            ValueError: if a key is unknown, an entry is empty or a pattern is no valid one.
        """
        if not isinstance(config, Mapping):
            raise TypeError(_refusal("exclusions", "a dict made by to_config", config))
        unknown = sorted(set(config) - {"names", "substrings", "patterns"})
        if unknown:
            raise ValueError(
                "exclusions must hold only names, substrings and patterns, received also "
                f"{unknown!r}. Remove these keys."
            )
        patterns = [_compiled(entry) for entry in entries("patterns", config.get("patterns", ()))]
        parts = [
            _checked("substrings", part, (str,))
            for part in entries("substrings", config.get("substrings", ()))
        ]
        return cls().extended(config.get("names", ()), [*parts, *patterns])


def _compiled(entry: Any) -> re.Pattern[str]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("pattern"), str):
        raise TypeError(_refusal("patterns", "dicts with 'pattern', a str, and 'flags'", entry))
    try:
        return re.compile(entry["pattern"], entry.get("flags", 0) & ~re.DEBUG)
    except (re.error, ValueError, TypeError) as error:
        raise ValueError(
            _refusal("patterns", f"valid regular expressions ({error})", entry)
        ) from error


def entries(argument: str, given: Any) -> tuple[Any, ...]:
    """Return the entries of a list, having refused what only looks like one."""
    if (
        isinstance(given, (str, bytes, re.Pattern, Mapping))
        or not hasattr(given, "__iter__")
        or hasattr(given, "dtype")
    ):
        raise TypeError(_refusal(argument, "a list, not a single entry", given))
    return tuple(given)


def _checked(argument: str, entry: Any, kinds: tuple[type, ...]) -> Any:
    rule = " or ".join("a str" if kind is str else "a pattern of str" for kind in kinds)
    content = entry.pattern if isinstance(entry, re.Pattern) else entry
    if not isinstance(entry, kinds) or not isinstance(content, str):
        raise TypeError(_refusal(argument, f"a list whose entries are {rule}", entry))
    if not content:
        raise ValueError(_refusal(argument, "a list without empty entries", entry))
    return entry


def _refusal(argument: str, rule: str, value: Any) -> str:
    return (
        f"{argument} must be {rule}, received {value!r} ({type(value).__name__}). Pass for example "
        "var_names=['bias', re.compile('norm[0-9]+')]; to exempt everything, weight_decay=None."
    )

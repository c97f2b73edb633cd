"""The configuration of an optimizer as one dict: its arguments and what weight decay spares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oneadam import _hyperparameters as hyper
from oneadam._exclusions import Exclusions
from oneadam._hyperparameters import Hyperparameters

_EXCLUSIONS = "exclude_from_weight_decay"


def to_config(hyperparameters: Hyperparameters, exclusions: Exclusions) -> dict[str, Any]:
    """Return a configuration that JSON takes, with Keras's keys and ours.

    Raises:
        ValueError: an argument is a callable that cannot be written down.
    """
    config = hyper.to_config(hyperparameters)
    if exclusions != Exclusions():
        config[_EXCLUSIONS] = exclusions.to_config()
    return config


def from_config(
    config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None
) -> tuple[Hyperparameters, Exclusions]:
    """Return what a configuration holds that any door or Keras has written.

    Args:
        config: the dict, which stays as it is; what it lacks has its default.
        custom_objects: schedule classes by name, where they are not found by themselves.

    Raises:
        TypeError, ValueError: it is no dict, has unknown keys, or values out of range.
    """
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config must be a dict, received {config!r} ({type(config).__name__}); pass what"
            " get_config() returned"
        )
    arguments = dict(config)
    excluded = arguments.pop(_EXCLUSIONS, None)
    exclusions = Exclusions() if excluded is None else Exclusions.from_config(excluded)
    return hyper.from_config(arguments, custom_objects), exclusions

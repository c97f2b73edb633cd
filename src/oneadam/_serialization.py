"""Learning-rate schedules as plain dicts and back.

The dicts have Keras's shape, so that a configuration written by either can be read by the other.
They come from checkpoint files: no module is ever imported and no code run because one names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oneadam._schedule import LearningRateSchedule

BUILT_IN = "oneadam.schedules"

KERAS = "keras.optimizers.schedules"

ALIASES = {
    KERAS: BUILT_IN,
    "keras.src.optimizers.schedules.learning_rate_schedule": BUILT_IN,
    "keras.optimizers.schedules.learning_rate_schedule": BUILT_IN,
    "tf_keras.optimizers.schedules": BUILT_IN,
}
"""The modules under which Keras's releases know the schedules that are ours too."""


def serialize(schedule: Any) -> dict[str, Any]:
    """Return a schedule as a dict of Keras's shape.

    Args:
        schedule: a `LearningRateSchedule`, or another framework's schedule object that has
            `get_config` and `from_config`, such as Keras's.

    Returns:
        A dict with "module", "class_name", "config" and "registered_name".

    Raises:
        TypeError: if the schedule has no `get_config` or its class no `from_config`.

    Example:
        >>> from oneadam.schedules import InverseTimeDecay, serialize
        >>> serialize(InverseTimeDecay(0.1, 100, 0.5))["class_name"]
        'InverseTimeDecay'
    """
    kind = type(schedule)
    if not serializable(schedule):
        raise TypeError(
            f"schedule must have get_config and from_config, received {schedule!r} "
            f"({kind.__name__}). Make it a subclass of oneadam.schedules.LearningRateSchedule."
        )
    module = KERAS if ALIASES.get(kind.__module__) else kind.__module__
    built_in = module in (KERAS, BUILT_IN)
    return {
        "module": module,
        "class_name": kind.__name__,
        "config": schedule.get_config(),
        "registered_name": None if built_in else f"{module}>{kind.__qualname__}",
    }


def serializable(schedule: Any) -> bool:
    """Return whether `serialize` takes this object."""
    methods = ("get_config", "from_config")
    return not isinstance(schedule, type) and all(
        callable(getattr(schedule, method, None)) for method in methods
    )


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return the schedule that a dict describes, made by `serialize` or by Keras.

    A class is looked for in `custom_objects`, among the schedules of `oneadam.schedules`, and
    among the subclasses of `LearningRateSchedule` that the program has imported. Modules that the
    dict names are not imported.

    Args:
        config: a dict with "class_name" and "config", and also "module" and "registered_name"
            unless an old Keras wrote it. It stays as it is.
        custom_objects: classes by class name or registered name; each has `from_config`.

    Returns:
        The schedule.

    Raises:
        TypeError: if `config` is not a dict, or an entry of `custom_objects` not such a class.
        ValueError: if `config` lacks a key, or if no class or more than one fits.

    Example:
        >>> from oneadam.schedules import InverseTimeDecay, deserialize, serialize
        >>> deserialize(serialize(InverseTimeDecay(0.1, 100, 0.5)))(100)
        0.06666666666666667
    """
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config must be a dict, received {config!r} ({type(config).__name__}). "
            "Pass what serialize(schedule) returned."
        )
    arguments, name = config.get("config"), config.get("class_name")
    if not isinstance(arguments, Mapping) or not isinstance(name, str):
        raise ValueError(
            "config must hold 'class_name', a str, and 'config', a dict, received "
            f"{dict(config)!r}. Pass what serialize(schedule) returned; a function that Keras "
            "stored in place of a schedule cannot be read: put a number or a schedule there."
        )
    kind = _custom(config, custom_objects or {}) or _imported(config)
    return kind.from_config(dict(arguments))


def _custom(config: Mapping[str, Any], custom_objects: Mapping[str, Any]) -> Any:
    for key in (config.get("registered_name"), config["class_name"]):
        if key is None or key not in custom_objects:
            continue
        kind = custom_objects[key]
        if not isinstance(kind, type) or not callable(getattr(kind, "from_config", None)):
            raise TypeError(
                f"custom_objects[{key!r}] must be a class with from_config, received {kind!r} "
                f"({type(kind).__name__}). Pass the schedule's class, not an instance."
            )
        return kind
    return None


def _imported(config: Mapping[str, Any]) -> type[LearningRateSchedule]:
    name, module = config["class_name"], config.get("module")
    if module in ALIASES:
        module = ALIASES[module]
    fitting: dict[Any, type[LearningRateSchedule]] = {
        f"{kind.__module__}>{kind.__qualname__}": kind
        for kind in _subclasses(LearningRateSchedule)
        if kind.__name__ == name and module in (None, kind.__module__)
    }
    registered = config.get("registered_name")
    if registered is None and module is None:
        # Old versions of Keras give the name alone, and mean their own schedules by it.
        registered = f"{BUILT_IN}>{name}"
    if registered in fitting:
        return fitting[registered]
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    found = f"{len(fitting)} imported classes fit: {sorted(fitting)}" if fitting else "none fits"
    raise ValueError(
        f"class_name must name one schedule, received {name!r} of module {module!r}, and {found}. "
        f"Import the module that defines the class, or pass custom_objects={{{name!r}: {name}}}."
    )


def _subclasses(kind: type[LearningRateSchedule]) -> Iterator[type[LearningRateSchedule]]:
    """Yield all subclasses, older ones first: a class defined again in a notebook comes later."""
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)

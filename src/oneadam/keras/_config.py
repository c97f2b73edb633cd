"""The configuration of an optimizer: written down for Keras, and read, Keras's own too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras

from oneadam import _configuration
from oneadam.keras import _files, _learning_rate, _rows
from oneadam.schedules import LearningRateSchedule

if TYPE_CHECKING:
    from oneadam.keras._adam import Adam


def written(optimizer: Adam) -> dict[str, Any]:
    """Return what makes an equal optimizer, ready for JSON."""
    own, rate = optimizer._own, optimizer._learning_rate
    h = dataclasses.replace(own.hyperparameters, learning_rate=0.0)
    if isinstance(rate, keras.Variable):
        as_written: Any = _learning_rate.as_given(optimizer)
    elif isinstance(rate, LearningRateSchedule):
        as_written = None
        h = dataclasses.replace(h, learning_rate=rate)
    elif getattr(rate, "__name__", "") == "<lambda>":
        raise ValueError(
            "learning_rate must be a number, a schedule or a registered function to be written"
            f" into a configuration, received {rate!r}; register a named function with"
            " keras.saving.register_keras_serializable"
        )
    else:
        as_written = keras.saving.serialize_keras_object(rate)
    exclusions = own.exclusions
    if not optimizer.built:
        exclusions = exclusions.extended(names=map(_rows.name_of, own.excluded))
    config = _configuration.to_config(h, exclusions)
    return config if as_written is None else config | {"learning_rate": as_written}


def made(
    kind: type[Adam], config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None
) -> Adam:
    """Return an optimizer with a configuration, which is left as it is."""
    rest = dict(config) if isinstance(config, Mapping) else config
    rate = rest.get("learning_rate") if isinstance(rest, dict) else None
    if isinstance(rate, Mapping) and _is_of_keras(rate):
        rest["learning_rate"] = keras.saving.deserialize_keras_object(
            rate, custom_objects=custom_objects
        )
    name = rest.pop("name", None) if isinstance(rest, dict) else None
    h, exclusions = _configuration.from_config(rest, custom_objects)
    arguments = {
        field.name: getattr(h, field.name)
        for field in dataclasses.fields(h)
        if field.init and field.name != "name"
    }
    optimizer = kind(**arguments, name=name)
    optimizer._own.exclusions = exclusions
    return optimizer


def _is_of_keras(written: Mapping[str, Any]) -> bool:
    """Return whether it is Keras that knows what was written down."""
    module, name = str(written.get("module")), written.get("registered_name")
    is_registered = name and keras.saving.get_registered_object(name) is not None
    return module.partition(".")[0] in ("keras", "builtins") or bool(is_registered)


def taken_over(kind: type[Adam], theirs: Any) -> Adam:
    """Return an optimizer with arguments, exemptions and state of one of Keras's."""
    if not isinstance(theirs, keras.optimizers.Adam):
        raise TypeError(
            f"optimizer must be a keras.optimizers.Adam or AdamW, received {type(theirs).__name__}"
        )
    rate = theirs._learning_rate
    by_function = callable(rate) and not isinstance(rate, keras.Variable)
    config = theirs.get_config()
    new = kind.from_config({**config, "learning_rate": 0.0} if by_function else config)
    if by_function:
        new.learning_rate = rate
    names = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    if not theirs.built and any(getattr(theirs, name, None) for name in names):
        raise ValueError(
            "optimizer must be built, for only then it tells which variables it exempts from"
            " weight decay, received one that is not; build it, or take its get_config()"
        )
    variables = theirs._trainable_variables
    new.exclude_from_weight_decay([v for v in variables if not theirs._use_weight_decay(v)])
    if theirs.built:
        new.build(theirs._trainable_variables)
        _files.adopt_keras(new, [_rows.fetched(variable) for variable in theirs.variables])
    return new

"""The arguments of the optimizer: checked and normalised once, and as a dict and back.

docs/definition.md, section 1, says what each argument means and takes.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from oneadam import _arguments as arguments
from oneadam._serialization import serializable
from oneadam.schedules import LearningRateSchedule, deserialize, serialize

LearningRate = float | LearningRateSchedule | Callable[[], Any] | Callable[[int], Any]
Beta = float | Callable[[], Any]

ON_NONFINITE = ("propagate", "skip", "raise")

CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")

WITHOUT_EFFECT = ("is_legacy_optimizer", "jit_compile")
"""What Keras releases write into the configuration of an Adam that computes the same anyway."""

RANGES = {
    "float32": (2.0**-126, (2.0 - 2.0**-23) * 2.0**127),
    "float64": (sys.float_info.min, sys.float_info.max),
}
"""Smallest normal and largest finite number of each compute dtype."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """All arguments of an optimizer; making one checks and normalises every argument.

    Numbers become floats, also those in 0-d arrays and tensors of any framework. Callables stay
    as they are, and `now` evaluates them.

    Args:
        learning_rate: finite number >= 0, `LearningRateSchedule`, callable without arguments, or
            callable of one argument, the number of finished calls. A callable that takes none or
            one is refused: a default such as that of `lambda rate=0.1: rate` would be mistaken
            for the number of calls.
        beta_1: number in [0, 1), or callable without arguments.
        beta_2: number in [0, 1), or callable without arguments.
        epsilon: finite number > 0.
        amsgrad: bool.
        weight_decay: None or finite number >= 0.
        clipnorm: None or number > 0; at most one of the three kinds of clipping.
        clipvalue: None or number > 0.
        global_clipnorm: None or number > 0.
        use_ema: bool.
        ema_momentum: number in [0, 1].
        ema_overwrite_frequency: None or int >= 1.
        loss_scale_factor: None or finite number > 0.
        gradient_accumulation_steps: None or int >= 1.
        name: non-empty str.
        epsilon_hat: bool.
        on_nonfinite: "propagate", "skip" or "raise".

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range, or two kinds of clipping are given.
    """

    learning_rate: LearningRate = 0.001
    beta_1: Beta = 0.9
    beta_2: Beta = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False
    weight_decay: float | None = None
    clipnorm: float | None = None
    clipvalue: float | None = None
    global_clipnorm: float | None = None
    use_ema: bool = False
    ema_momentum: float = 0.99
    ema_overwrite_frequency: int | None = None
    loss_scale_factor: float | None = None
    gradient_accumulation_steps: int | None = None
    name: str = "adam"
    epsilon_hat: bool = True
    on_nonfinite: str = "propagate"
    takes_calls: bool = dataclasses.field(init=False, repr=False, compare=False, default=False)
    """Whether `learning_rate` is a callable that wants the number of finished calls."""

    def __post_init__(self) -> None:
        for argument, check in _CHECKS.items():
            object.__setattr__(self, argument, check(argument, getattr(self, argument)))
        given = [clip for clip in CLIPS if getattr(self, clip) is not None]
        if len(given) > 1:
            pairs = ", ".join(f"{clip}={getattr(self, clip)!r}" for clip in given)
            raise ValueError(
                f"At most one of {', '.join(CLIPS)} may be given, received {pairs}. "
                "Set the others to None."
            )
        object.__setattr__(self, "takes_calls", _takes_calls(self.learning_rate))


def with_learning_rate(hyperparameters: Hyperparameters, value: Any) -> Hyperparameters:
    """Return the same hyperparameters with another learning rate, checked like the first."""
    return dataclasses.replace(hyperparameters, learning_rate=value)


class Rates(NamedTuple):
    """The numbers that may differ from call to call."""

    learning_rate: float
    beta_1: float
    beta_2: float


def now(
    hyperparameters: Hyperparameters, calls: int, answers: dict[int, float] | None = None
) -> Rates:
    """Return the rates of one call; each callable is evaluated once.

    Args:
        hyperparameters: the optimizer's.
        calls: the number of calls finished before this one.
        answers: what callables have answered at this call already, by their identity; what is
            evaluated is added.

    Raises:
        TypeError: if a callable returns something other than a number.
        ValueError: if a callable returns a number out of the argument's range.
    """
    answers = {} if answers is None else answers
    rates = []
    for name in Rates._fields:
        value = getattr(hyperparameters, name)
        if id(value) not in answers or not callable(value):
            answers[id(value)] = _now(name, hyperparameters, calls)
        rates.append(answers[id(value)])
    return Rates(*rates)


def _now(name: str, hyperparameters: Hyperparameters, calls: int) -> float:
    if name == "learning_rate":
        return learning_rate_now(hyperparameters, calls)
    return _evaluate(name, getattr(hyperparameters, name), arguments.BETA, ())


def learning_rate_now(hyperparameters: Hyperparameters, calls: int) -> float:
    """Return the learning rate of one call, as `now` does, without evaluating the betas."""
    given = (calls,) if hyperparameters.takes_calls else ()
    return _evaluate("learning_rate", hyperparameters.learning_rate, arguments.LEARNING_RATE, given)


def check_compute_dtype(hyperparameters: Hyperparameters, dtype: Any, variable: str) -> None:
    """Refuse numbers that would be lost in the dtype that an update is computed in.

    Args:
        hyperparameters: the optimizer's.
        dtype: "float32" or "float64", or a dtype of a framework with that name.
        variable: the name of a variable with this compute dtype, for the error.

    Raises:
        ValueError: if epsilon or loss_scale_factor is not a normal number of this dtype.
    """
    name = str(dtype).rpartition(".")[2].rstrip("'>")
    smallest, largest = RANGES[name]
    for argument in ("epsilon", "loss_scale_factor"):
        value = getattr(hyperparameters, argument)
        if value is not None and not smallest <= value <= largest:
            raise ValueError(
                f"{argument} must be a normal number of {name}, the compute dtype of "
                f"{variable!r}: from {smallest!r} to {largest!r}, received {value!r}. "
                "Pass a number in this range."
            )


def to_config(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """Return all arguments as a dict that JSON takes, with Keras's keys and ours.

    Raises:
        ValueError: if an argument is a callable that cannot be written down.
    """
    config: dict[str, Any] = {key: getattr(hyperparameters, key) for key in _CHECKS}
    for key, value in config.items():
        if callable(value):
            config[key] = _written(key, value)
    return config


def from_config(
    config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> Hyperparameters:
    """Return the hyperparameters that a dict holds, made by `to_config` or by Keras's Adam.

    Args:
        config: the dict, which stays as it is; what it lacks has its default.
        custom_objects: schedule classes by name, where they are not found by themselves.

    Raises:
        TypeError: if `config` is no dict, or a value in it is of the wrong type.
        ValueError: if a key is unknown or a value is out of range.
    """
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config must be a dict, received {config!r} ({type(config).__name__}). "
            "Pass what get_config() returned."
        )
    values = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    decay = values.pop("decay", None)
    if decay:
        raise ValueError(
            f"decay must be 0 or absent, received {decay!r}. "
            "Use learning_rate=InverseTimeDecay(learning_rate, 1, decay) in its place."
        )
    unknown = sorted(str(key) for key in values if key not in _CHECKS)
    if unknown:
        hint = " Pass config['config']." if "class_name" in unknown else ""
        raise ValueError(
            f"config must hold no other keys than {', '.join(_CHECKS)}; received also "
            f"{', '.join(unknown)}.{hint} Was it made by another optimizer than Adam?"
        )
    if isinstance(values.get("learning_rate"), Mapping):
        values["learning_rate"] = deserialize(values["learning_rate"], custom_objects)
    return Hyperparameters(**values)


def _number(rule: arguments.Rule) -> Callable[[str, Any], float]:
    return lambda argument, value: arguments.number(argument, value, rule)


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda argument, value: None if value is None else check(argument, value)


def _learning_rate(argument: str, value: Any) -> Any:
    if not callable(value):
        return arguments.number(argument, value, arguments.LEARNING_RATE)
    _takes_calls(value)
    return value


def _beta(argument: str, value: Any) -> Any:
    if not callable(value):
        return arguments.number(argument, value, arguments.BETA)
    if not _accepts(argument, value, 0):
        raise TypeError(
            f"{argument} must be a number or a callable without arguments, received {value!r}, "
            f"which needs some. Pass a callable such as `lambda: 0.9`."
        )
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "name": arguments.text,
    "learning_rate": _learning_rate,
    "weight_decay": _or_none(_number(arguments.NOT_NEGATIVE)),
    "clipnorm": _or_none(_number(arguments.BOUND)),
    "global_clipnorm": _or_none(_number(arguments.BOUND)),
    "clipvalue": _or_none(_number(arguments.BOUND)),
    "use_ema": arguments.flag,
    "ema_momentum": _number(arguments.FRACTION),
    "ema_overwrite_frequency": _or_none(arguments.count),
    "loss_scale_factor": _or_none(_number(arguments.POSITIVE)),
    "gradient_accumulation_steps": _or_none(arguments.count),
    "beta_1": _beta,
    "beta_2": _beta,
    "epsilon": _number(arguments.NORMAL_POSITIVE),
    "amsgrad": arguments.flag,
    "epsilon_hat": arguments.flag,
    "on_nonfinite": lambda name, value: arguments.choice(name, value, ON_NONFINITE),
}
"""The check of each argument; the keys of a configuration in Keras's order, then ours."""


def _takes_calls(learning_rate: Any) -> bool:
    """Return whether a learning rate is a callable of one argument, and refuse unclear ones."""
    if isinstance(learning_rate, LearningRateSchedule):
        return True
    if not callable(learning_rate):
        return False
    none, one = (_accepts("learning_rate", learning_rate, n) for n in (0, 1))
    if none == one:
        takes = "none or one" if none else "neither none nor one"
        raise TypeError(
            "learning_rate must be a number, a schedule, or a callable of either no or one "
            f"argument, received {learning_rate!r}, which takes {takes}. Wrap it to say which is "
            "meant: `lambda: f()`, or `lambda calls: f(calls)` for a schedule."
        )
    return one


def _accepts(argument: str, function: Callable[..., Any], count: int) -> bool:
    """Return whether a callable can be called with this many positional arguments."""
    if isinstance(function, type):
        raise TypeError(
            f"{argument} must be a number or a callable, received the class {function.__name__}. "
            f"Pass an instance of it, {function.__name__}(...)."
        )
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise TypeError(
            f"{argument} must be a number or a callable whose arguments are known, received "
            f"{function!r}. Wrap it: `lambda: f()`."
        ) from error
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _evaluate(argument: str, value: Any, rule: arguments.Rule, given: tuple[int, ...]) -> float:
    if not callable(value):
        return float(value)
    source = f", returned by {arguments.shown(value)}" + "".join(f" at call {n}" for n in given)
    return arguments.number(argument, value(*given), rule, source)


def _written(argument: str, value: Any) -> dict[str, Any]:
    if argument == "learning_rate" and serializable(value):
        return serialize(value)
    instead = "a number"
    if argument == "learning_rate":
        instead += " or a LearningRateSchedule with get_config"
    raise ValueError(
        f"{argument} must be {instead} to be written into a configuration, received the callable "
        f"{value!r}. Make the optimizer with {instead}, or build it in code in place of "
        "from_config."
    )

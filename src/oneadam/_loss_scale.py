"""The dynamic loss scale: its settings, and the next scale as pure functions of the last one.

Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from oneadam import _arguments as arguments
from oneadam._arguments import Rule

MAXIMUM_SCALE = 2.0**127
SMALLEST_MINIMUM_SCALE = 2.0**-126
SKIPS_BEFORE_WARNING = 50


class LossScale(NamedTuple):
    """The scale, the finite calls since it last changed, the skipped calls in a row."""

    scale: float
    finite_calls: int = 0
    skipped_in_a_row: int = 0


class Settings(NamedTuple):
    """The arguments of a dynamic loss scale."""

    initial_scale: float
    dynamic_growth_steps: int
    minimum_scale: float


_SAVED_AS = {
    "scale": "loss_scale",
    "finite_calls": "loss_scale_finite_calls",
    "skipped_in_a_row": "loss_scale_skipped_in_a_row",
}
"""What each part of a `LossScale` is called in saved state."""

SAVED = tuple(_SAVED_AS.values())


def settings(initial_scale: Any, dynamic_growth_steps: Any, minimum_scale: Any) -> Settings:
    """Return the arguments of a dynamic loss scale, checked.

    Args:
        initial_scale: number from `minimum_scale` to 2**127.
        dynamic_growth_steps: int >= 1.
        minimum_scale: number from 2**-126 to 2**127.

    Raises:
        TypeError, ValueError: an argument is of another kind or outside its range.
    """
    least = arguments.number("minimum_scale", minimum_scale, _scales(SMALLEST_MINIMUM_SCALE))
    initial = arguments.number("initial_scale", initial_scale, _scales(least))
    return Settings(initial, arguments.count("dynamic_growth_steps", dynamic_growth_steps), least)


def _scales(least: float) -> Rule:
    def accepts(scale: float) -> bool:
        return least <= scale <= MAXIMUM_SCALE

    return Rule(f"a number from {least} to 2**127", accepts, "2**15")


def check_inner(loss_scale_factor: float | None) -> None:
    """Refuse an inner optimizer that has a loss scale of its own."""
    if loss_scale_factor is not None:
        raise ValueError(
            "inner_optimizer must have loss_scale_factor=None, for the loss is scaled here,"
            f" received {loss_scale_factor}; leave it out"
        )


def after_finite(state: LossScale, growth_steps: int) -> LossScale:
    """Return the state after a call with finite gradients: twice the scale once it is due."""
    finite_calls = state.finite_calls + 1
    if finite_calls < growth_steps:
        return LossScale(state.scale, finite_calls)
    return LossScale(min(state.scale * 2.0, MAXIMUM_SCALE))


def after_nonfinite(state: LossScale, minimum_scale: float) -> LossScale:
    """Return the state after a call with an inf or NaN: half the scale, and one more skip."""
    scale = max(state.scale / 2.0, minimum_scale)
    return LossScale(scale, skipped_in_a_row=state.skipped_in_a_row + 1)


def warning(state: LossScale) -> str | None:
    """Return what to warn of after a call with an inf or NaN, if there is anything."""
    if state.skipped_in_a_row != SKIPS_BEFORE_WARNING:
        return None
    return too_many_skips(state.skipped_in_a_row, state.scale)


def too_many_skips(skipped_in_a_row: int, scale: float) -> str:
    """Say how many calls in a row were skipped."""
    return (
        f"{skipped_in_a_row} calls in a row had an inf or NaN in a gradient and were skipped; the"
        f" loss scale has come down to {scale}. The model itself is likely to give NaN"
    )


def saved(state: LossScale) -> dict[str, float]:
    """Return the state by the names that it is saved under, behind the optimizer's."""
    return {_SAVED_AS[part]: value for part, value in state._asdict().items()}


def restored(found: Mapping[str, Any], settings: Settings) -> LossScale:
    """Return the state that was saved; what is not found of it starts afresh.

    Args:
        found: 0-d arrays by the names of `SAVED`.
        settings: those of the loss scale that takes it over.

    Raises:
        ValueError: the scale is outside the range that these settings give it, or a counter is
            negative.
    """
    parts = {
        part: arguments.plain(found[name]) for part, name in _SAVED_AS.items() if name in found
    }
    state = LossScale(settings.initial_scale)._replace(**parts)
    arguments.number("the saved loss scale", state.scale, _scales(settings.minimum_scale))
    for count in (state.finite_calls, state.skipped_in_a_row):
        if count < 0:
            raise ValueError(
                f"the saved counters of the loss scale must not be negative, received {count};"
                " load what an optimizer has saved"
            )
    return state


def to_config(inner: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the configuration of a loss scale around an optimizer of a configuration."""
    return {"inner_optimizer": inner, **settings._asdict()}


def from_config(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the configuration of the inner optimizer, and the settings that are given.

    Args:
        config: what `to_config` or Keras's `LossScaleOptimizer` wrote; it stays as it is.

    Raises:
        TypeError: there is no inner optimizer.
        ValueError: it is no Adam, or a key is unknown.
    """
    rest = dict(config) if isinstance(config, Mapping) else {}
    inner = rest.pop("inner_optimizer", None)
    if not isinstance(inner, Mapping):
        raise TypeError(
            "config must have an inner_optimizer, the configuration of one, received"
            f" {inner!r}; pass what get_config() returned"
        )
    if "class_name" in inner:  # as Keras writes it
        inner, rest = _without_keras(inner, rest)
    unknown = sorted(set(rest) - set(Settings._fields))
    if unknown:
        raise ValueError(
            f"config must hold no other keys than inner_optimizer, {', '.join(Settings._fields)},"
            f" received also {unknown}; pass what get_config() returned"
        )
    return inner, rest


def _without_keras(
    inner: Mapping[str, Any], rest: dict[str, Any]
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return what matters of a configuration that Keras wrote, where nothing else is set."""
    if inner["class_name"] not in ("Adam", "AdamW") or not isinstance(inner.get("config"), Mapping):
        raise ValueError(
            "inner_optimizer must be the configuration of an Adam or AdamW, received that of"
            f" {inner['class_name']!r} with config {inner.get('config')!r}"
        )
    ours = {key: value for key, value in rest.items() if key in Settings._fields}
    # The wrapper's own copies of an optimizer's arguments, which do nothing where they are unset.
    others = {key: value for key, value in rest.items() if key not in Settings._fields}
    always_set = ("name", "ema_momentum")
    set_by_hand = sorted(key for key, value in others.items() if value and key not in always_set)
    if set_by_hand:
        raise ValueError(
            f"config must set {', '.join(set_by_hand)} in inner_optimizer, received it for the loss"
            " scale around that; move it there"
        )
    return inner["config"], ours

"""What every door says in the same words."""

from __future__ import annotations

from collections.abc import Sequence

_NAMED = 10


def listed(names: Sequence[str]) -> str:
    """Return names for a message: all of them, or the first ten and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def no_gradient() -> str:
    """Say that no variable has a gradient."""
    return (
        "grads must have a gradient for at least one variable, received None for every one; check"
        " that the loss depends on the variables"
    )


def missing_gradients(names: Sequence[str]) -> str:
    """Say which variables have no gradient."""
    return f"no gradient in this call, which leaves them as they are, for: {listed(names)}"


def nonfinite_gradients(names: Sequence[str]) -> str:
    """Say which variables have a gradient with an inf or NaN."""
    return (
        f"gradients must be finite, received an inf or NaN for {listed(names)}; nothing has"
        ' changed. Look for the cause, or pass over such calls with on_nonfinite="skip"'
    )


def averages_held() -> str:
    """Say that the optimizer was called while the variables hold their averages."""
    return (
        "inside averaged() the optimizer must be left alone, received a call of it there, where"
        " the variables hold their averages; call it after the block"
    )


def excluded_too_late(moment: str) -> str:
    """Say that variables can no longer be exempted from weight decay, after some moment."""
    return (
        f"exclude_from_weight_decay must be called before {moment}, received a call after it; call"
        " it right after making the optimizer"
    )


def excluded_no_variable(variable: object, example: str) -> str:
    """Say that `var_list` holds something else than variables and names."""
    return (
        f"var_list must hold variables or their names, received {type(variable).__name__}; pass"
        f" for example {example}"
    )


def excluded_unknown(names: Sequence[str]) -> str:
    """Say that `var_list` holds names of no variable."""
    return (
        "var_list of exclude_from_weight_decay must hold variables of the optimizer, received the"
        f" names {list(names)}, which are none; pass the variables or their full names, or parts"
        " of names as var_names"
    )


def excluded_unnamed() -> str:
    """Say that variables exempted from weight decay have no names yet to be written down."""
    return (
        "the configuration must name the variables that exclude_from_weight_decay was given as"
        " arrays, received a call before they have names; build the optimizer first"
    )


def not_an_adam(door: str, received: object) -> str:
    """Say that a loss scale was put around something else than the `Adam` of its door."""
    return (
        f"inner_optimizer must be an {door}.Adam, received {type(received).__name__}; wrap the"
        " optimizer itself"
    )

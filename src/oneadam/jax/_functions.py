"""What is done with a transformation of ours and its state."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from numpy.typing import NDArray

from oneadam import _arguments, _loss_scale
from oneadam._gradients import Scaling
from oneadam._hyperparameters import Rates as PlainRates
from oneadam._metrics import metrics as plain_metrics
from oneadam._plan import Counters
from oneadam._saved_state import Axes
from oneadam._warnings import warn
from oneadam.jax import _numbers, _saved, _trees, _within
from oneadam.jax._adam import with_absences
from oneadam.jax._loss_scale import stepped
from oneadam.jax._making import ours
from oneadam.jax._state import AdamState, LossScaleState

Tree = Any


def step(transformation: Any, grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
    """Return the parameters after a call, without the rounding of adding updates to them.

    Args:
        transformation: what `adam` or `loss_scale` returned; of others, updates are applied as
            optax does.
        grads: the gradients, None for a parameter that has none.
        state: of the transformation.
        params: the parameters.

    Returns:
        The next parameters and the next state. Compiled code that returns them in the order that
        they were given to it, and donates them, writes them in place.
    """
    return stepped(transformation, grads, state, params)


def flush(transformation: Any, state: Tree, params: Tree) -> tuple[Tree, Tree]:
    """Return parameters and state after an incomplete accumulation window was closed.

    Args:
        transformation: what `adam` or `loss_scale` returned.
        state: of it, or of a chain that ends with it.
        params: the parameters.
    """
    adam, _ = ours("flush", transformation)
    last = state
    while type(last) is tuple and last:
        last = last[-1]
    if not isinstance(last, (AdamState, LossScaleState)):
        raise TypeError(
            "state must be that of the transformation, or of a chain that ends with it, received"
            f" one that ends with {type(last).__name__}; what is done to updates after ours would"
            " be left out, so fill the window instead"
        )
    params, flushed = adam.flush(_within.only(state, AdamState), params)
    return params, _within.in_each(state, AdamState, lambda _: flushed)


def expect_absences(state: Tree) -> Tree:
    """Return a state that counts each parameter's updates, ready for gradients that are None.

    The first call with such a gradient does this by itself, and its state has more arrays than the
    one before. Where a state must keep its structure, as in `jax.lax.scan`, do it beforehand.
    """
    return _within.in_each(state, AdamState, with_absences)


def scale_loss(state: Tree, loss: Any) -> Any:
    """Return the loss times the scale, to take gradients of.

    Args:
        state: of `loss_scale`, or of anything that it is a part of.
        loss: a number, whose dtype the result has.
    """
    loss = jnp.asarray(loss)
    return loss * _within.only(state, LossScaleState).scale.astype(loss.dtype)


def set_learning_rate(state: Tree, learning_rate: Any) -> Tree:
    """Return a state with another learning rate, which holds from the next call on.

    Args:
        state: of `adam`, or of anything that has such states in it.
        learning_rate: finite number >= 0; an array is not looked at.
    """
    if not isinstance(learning_rate, jax.core.Tracer):
        learning_rate = _arguments.number("learning_rate", learning_rate, _arguments.LEARNING_RATE)
    _within.found(state, AdamState)
    rate = _numbers.rate(learning_rate)

    def with_rate(own: AdamState) -> AdamState:
        # Elsewhere it would be another kind of argument to compiled code.
        placed = _trees.placed(rate, own.rates.learning_rate)
        return own._replace(rates=own.rates._replace(learning_rate=placed))

    return _within.in_each(state, AdamState, with_rate)


def averaged(state: Tree, params: Tree) -> Tree:
    """Return the moving averages of the parameters, to evaluate with.

    Args:
        state: of `adam` with `use_ema=True`, or of anything that has such states in it.
        params: the parameters; those without an average are returned as they are.
    """
    for own in _within.found(state, AdamState):
        if own.average is not None:
            params = jax.tree.map(
                functools.partial(_average_or_parameter, own.averaged),
                own.average,
                params,
                is_leaf=_is_masked,
            )
    return params


def _average_or_parameter(averaged: Any, average: Any, param: Any) -> Any:
    if _is_masked(average):
        return param
    if average.shape != param.shape:
        raise ValueError(
            f"params must be those of the state, received a parameter of shape {param.shape} whose"
            f" average has {average.shape}; pass the parameters that were trained"
        )
    return jnp.where(averaged, average.astype(param.dtype), param)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def finalize(state: Tree, params: Tree) -> Tree:
    """Return the parameters to keep after training: their averages, where there are some."""
    return averaged(state, params)


def metrics(state: Tree) -> dict[str, float]:
    """Return what is known anyway as plain numbers; waits for the device.

    Args:
        state: of `adam`, `loss_scale`, or of anything that has one such state in it.
    """
    adam = _within.only(state, AdamState)
    scale = _within.find(state, LossScaleState)
    skipped = [one.skipped_calls for one in (adam, *scale)]
    rows = [int(one.skipped_in_a_row) for one in scale]
    if rows and rows[0] >= _loss_scale.SKIPS_BEFORE_WARNING:
        warn(_loss_scale.too_many_skips(rows[0], float(scale[0].scale)))
    return plain_metrics(
        Counters(
            int(_numbers.count_of(adam.calls)),
            int(_numbers.count_of(adam.updates)),
            int(adam.accumulated_calls),
            sum(int(_numbers.count_of(counter)) for counter in skipped),
        ),
        PlainRates(adam.rates.learning_rate, 0.0, 0.0),
        Scaling(None, adam.gradient_norm, adam.clip_scale),
        float(scale[0].scale) if scale else None,
    )


def state_dict(transformation: Any, state: Tree, params: Tree) -> dict[str, NDArray[Any]]:
    """Return the whole state as arrays of NumPy, by the names that every door gives it.

    Args:
        transformation: what `adam` or `loss_scale` returned.
        state: of it, or of anything that it is a part of.
        params: the parameters.
    """
    adam, settings = ours("state_dict", transformation)
    scale = None if settings is None else _within.only(state, LossScaleState)
    return _saved.arrays(adam, _within.only(state, AdamState), scale, params)


def load_state_dict(
    transformation: Any,
    state: Tree,
    params: Tree,
    saved: Mapping[str, Any],
    *,
    keep_learning_rate: bool = False,
) -> Tree:
    """Return the state of another optimizer, sharded as the one that is given.

    Optional parts that only one side has (averages, an accumulation window, the learning rate) are
    started afresh or left out, with a warning that names them.

    Args:
        transformation: what `adam` or `loss_scale` returned.
        state: what its `init` returned, or anything with that in it.
        params: the parameters.
        saved: what `state_dict` of any door returned.
        keep_learning_rate: bool, keep the configured learning rate, not the saved one.

    Raises:
        ValueError: something is missing, unexpected, or of another shape or dtype.
    """
    adam, settings = ours("load_state_dict", transformation)
    scale = None if settings is None else (_within.only(state, LossScaleState), settings)
    own, scaled = _saved.restored(
        saved, adam, _within.only(state, AdamState), scale, params, keep_learning_rate
    )
    state = _within.in_each(state, AdamState, lambda _: own)
    if scaled is None:
        return state
    return _within.in_each(state, LossScaleState, lambda each: scaled._replace(inner=each.inner))


def save(path: str | os.PathLike[str], transformation: Any, state: Tree, params: Tree) -> None:
    """Write the state and the configuration to one safetensors file, atomically.

    Every door can load it; names are the paths of the parameters, such as `encoder/0/kernel`.

    Args:
        path: where to. A crash leaves the old file or the new one.
        transformation: what `adam` or `loss_scale` returned.
        state: of it, or of anything that it is a part of.
        params: the parameters.

    Raises:
        OSError: the file cannot be written; the old one is untouched.
    """
    adam, settings = ours("save", transformation)
    scale = None if settings is None else _within.only(state, LossScaleState)
    _saved.write(path, adam, _within.only(state, AdamState), scale, params)


def load(
    path: str | os.PathLike[str],
    transformation: Any,
    state: Tree,
    params: Tree,
    names: Mapping[str, str] | Callable[[str], str] | None = None,
    *,
    keep_learning_rate: bool = False,
    transposed: Axes | None = None,
) -> Tree:
    """Return the state that `save` of any door has written; see `load_state_dict`.

    Args:
        path: the file.
        transformation: what `adam` or `loss_scale` returned.
        state: what its `init` returned, or anything with that in it.
        params: the parameters.
        names: the name here for a parameter's name in the file, as a mapping (others stay) or a
            function.
        keep_learning_rate: bool, keep the configured learning rate, not the saved one.
        transposed: the order in which a parameter, by its name here, takes the axes of its arrays
            in the file, as `numpy.transpose` takes it; a mapping (others stay) or a function (None
            stays). A weight of PyTorch becomes a kernel of flax by (1, 0).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, foreign or newer, or does not fit.
    """
    adam, _ = ours("load", transformation)
    saved = _saved.read(path, adam, names, transposed)
    return load_state_dict(
        transformation, state, params, saved, keep_learning_rate=keep_learning_rate
    )

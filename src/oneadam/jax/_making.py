"""Making the transformations: from arguments and from configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optax

from oneadam import _configuration, _loss_scale
from oneadam._exclusions import Exclusions
from oneadam._loss_scale import Settings
from oneadam.jax._adam import Adam
from oneadam.jax._arguments import Arguments, arguments, check_supported
from oneadam.jax._loss_scale import LossScale, made_of


def adam(
    learning_rate: Any = 0.001,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-7,
    amsgrad: bool = False,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
    use_ema: bool = False,
    ema_momentum: Any = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: Any = None,
    gradient_accumulation_steps: int | None = None,
    name: str = "adam",
    *,
    epsilon_hat: bool = True,
    on_nonfinite: str = "propagate",
    exclude_from_weight_decay: Iterable[Any] = (),
    sharded_over: str | Iterable[str] | None = None,
    b1: Any = None,
    b2: Any = None,
    eps: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Return Adam as a gradient transformation: `init(params)`, `update(grads, state, params)`.

    Learning rate and betas that are numbers live in the state, so that another number compiles
    nothing again. Callables without arguments are asked on every call, also in compiled code, by
    a callback to the host for which the device waits.

    Args:
        learning_rate: finite number >= 0, `LearningRateSchedule` or schedule of optax, which are
            evaluated in the graph, or callable without arguments.
        beta_1: number in [0, 1), or callable without arguments.
        beta_2: number in [0, 1), or callable without arguments.
        epsilon: finite number > 0.
        amsgrad: divide by the largest second moment so far.
        weight_decay: None or number >= 0, decoupled, times the learning rate.
        clipnorm: None or number > 0, the largest norm of each gradient.
        clipvalue: None or number > 0, the largest value of each element.
        global_clipnorm: None or number > 0, the largest norm of all gradients together.
        use_ema: keep an exponential moving average of the parameters, see `averaged`.
        ema_momentum: number in [0, 1], what is kept of the average in each update.
        ema_overwrite_frequency: None or int >= 1; after so many updates the parameters become
            their averages, exactly so with `step`.
        loss_scale_factor: None or number > 0, what the gradients are divided by.
        gradient_accumulation_steps: None or int >= 1; the mean over so many calls is one update,
            and the calls before only add.
        name: prefix of the optimizer's own state in portable checkpoints.
        epsilon_hat: whether epsilon is Kingma and Ba's epsilon-hat, as in Keras; False is the
            formula of optax and torch.
        on_nonfinite: "propagate", or "skip" for a call with an inf or NaN to change nothing.
        exclude_from_weight_decay: parts of names of parameters, or patterns made by `re.compile`.
        sharded_over: None, or the axes over which parameters are sharded, where JAX does not know
            them: inside `pmap` and `shard_map(check_vma=False)`; () if they are replicated.
        b1: optax's name of `beta_1`.
        b2: optax's name of `beta_2`.
        eps: optax's name of `epsilon`.

    Returns:
        A transformation whose state is an `AdamState`.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from oneadam.jax import adam
        >>> transformation = adam(0.5, weight_decay=0.0)
        >>> params = {"w": jnp.ones(2)}
        >>> state = transformation.init(params)
        >>> updates, state = transformation.update({"w": jnp.ones(2)}, state, params)
        >>> optax.apply_updates(params, updates)["w"].round(3).tolist()
        [0.5, 0.5]
    """
    given = dict(locals())
    excluded = given.pop("exclude_from_weight_decay")
    own = arguments(given, adam.__defaults__ or ())
    return Adam(own, Exclusions().extended(var_names=excluded)).transformation()


def loss_scale(
    inner: Any,
    initial_scale: float = 2.0**15,
    dynamic_growth_steps: int = 2000,
    *,
    minimum_scale: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that unscales gradients, and skips calls with an inf or NaN.

    Such a call halves the scale and changes nothing else; after `dynamic_growth_steps` finite ones
    in a row the scale doubles. Nothing waits for the device.

    Args:
        inner: what takes the unscaled gradients: what `adam` returned, or any other.
        initial_scale: number from `minimum_scale` to 2**127.
        dynamic_growth_steps: int >= 1.
        minimum_scale: number from 2**-126 to 2**127.

    Returns:
        A transformation whose state is a `LossScaleState`.

    Example:
        >>> import jax.numpy as jnp
        >>> from oneadam.jax import adam, loss_scale, scale_loss
        >>> transformation = loss_scale(adam(), initial_scale=8.0)
        >>> state = transformation.init({"w": jnp.ones(2)})
        >>> float(scale_loss(state, jnp.asarray(0.5)))
        4.0
    """
    settings = _loss_scale.settings(initial_scale, dynamic_growth_steps, minimum_scale)
    return LossScale(inner, settings).transformation()


def from_config(
    config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation of a configuration that any door, or Keras, has written.

    Args:
        config: of an Adam, or of a loss scale around one; what it lacks has its default.
        custom_objects: schedule classes by name, where they are not found by themselves.
    """
    if isinstance(config, Mapping) and "inner_optimizer" in config:
        inner, rest = _loss_scale.from_config(config)
        return loss_scale(from_config(inner, custom_objects), **rest)
    hyperparameters, exclusions = _configuration.from_config(config, custom_objects)
    check_supported(hyperparameters)
    return Adam(Arguments(hyperparameters, {}, None), exclusions).transformation()


def get_config(transformation: Any) -> dict[str, Any]:
    """Return the configuration of what `adam` or `loss_scale` returned, for any door."""
    adam, settings = ours("get_config", transformation)
    return adam.config() if settings is None else _loss_scale.to_config(adam.config(), settings)


def ours(function: str, transformation: Any) -> tuple[Adam, Settings | None]:
    """Return what a transformation of ours is made of, and the settings of its loss scale."""
    found = made_of(transformation)
    if isinstance(found, LossScale) and found.adam is not None:
        return found.adam, found.settings
    if isinstance(found, Adam):
        return found, None
    raise TypeError(
        f"{function} must be given what oneadam.jax.adam returned, or loss_scale around that,"
        f" received {transformation!r}; of a chain, pass the part that is ours"
    )

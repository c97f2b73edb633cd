"""What is asked of Keras on TensorFlow with two devices."""

from __future__ import annotations

import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

import keras  # noqa: E402
import numpy as np  # noqa: E402

from oneadam.keras import Adam, LossScaleOptimizer  # noqa: E402

FULL: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.1,
    "global_clipnorm": 0.5,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 2,
    "gradient_accumulation_steps": 2,
}
Facts = dict[str, Any]


# Of two in one process TensorFlow would confuse the collectives.
MIRRORED = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


def model() -> Any:
    keras.utils.set_random_seed(4)
    layers = [keras.layers.Embedding(6, 4, name="table"), keras.layers.Flatten(),
              keras.layers.Dense(8, name="last")]  # fmt: skip
    return keras.Sequential([keras.Input((3,)), *layers], name="net")


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 5, size=(40, 3)), rng.normal(size=(40, 8)).astype(np.float32)


def fitted() -> Any:
    trained = model()
    trained.compile(Adam(0.01, name="adam", **FULL), loss="mse")
    return more(trained)


def more(trained: Any) -> Any:
    # Five calls leave a window open.
    trained.fit(*data(), batch_size=8, shuffle=False, verbose=0)
    return trained


def numbers(trained: Any) -> dict[str, np.ndarray]:
    values = {v.path: np.asarray(v.value) for v in trained.trainable_variables}
    # A model that Keras loads leaves its own name out of its variables' paths.
    every = {**values, **trained.optimizer.state_dict()}
    return {name.removeprefix("net/"): array for name, array in every.items()}


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Return how far apart tensors are, in spacings of float32 at each one's largest magnitude."""
    assert one.keys() == other.keys()
    found = [0.0]
    for name, a in one.items():
        largest = max(float(np.abs(a).max()), float(np.finfo(np.float32).tiny))
        gap = np.abs(a.astype(np.float64) - other[name]).max() / np.spacing(np.float32(largest))
        found.append(float(gap))
    return max(found)


def apart_metrics(one: Any, other: Any) -> float:
    found = other.metrics()
    return max(abs(value - found[name]) for name, value in one.metrics().items())


def split(trained: list[Any], optimizer: Any) -> list[str]:
    """Return variables whose copies differ."""
    found = []
    for variable in (*trained, *optimizer.variables):
        one, other = (np.asarray(copy) for copy in variable.value.values)
        if one.tobytes() != other.tobytes():
            found.append(variable.path)
    return found


def through_fit() -> Facts:
    alone = fitted()
    x, y = data()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((alone(x) - y) ** 2)
    table, *_ = tape.gradient(loss, alone.trainable_variables)
    with MIRRORED.scope():
        trained = fitted()
    optimizer = trained.optimizer
    return {
        "slices": isinstance(table, tf.IndexedSlices),
        "apart": apart(numbers(alone), numbers(trained)),
        "split": split(trained.trainable_variables, optimizer),
        "counts": [optimizer.calls, optimizer.updates],
        "metrics": apart_metrics(alone.optimizer, optimizer),
    }


SHAPES = {"kernel": (3, 4), "bias": (4,), "scale": ()}


def variables() -> list[Any]:
    rng = np.random.default_rng(1)
    found = [
        keras.Variable(rng.normal(size=shape).astype(np.float32), name=name)
        for name, shape in SHAPES.items()
    ]
    found[0].constraint = keras.constraints.MaxNorm(1.5)
    found[2].overwrite_with_gradient = True
    return found


def gradients(calls: int) -> list[list[list[Any]]]:
    """Return for each call and replica a gradient for each variable."""
    rng = np.random.default_rng(2)
    return [
        [[rng.normal(size=shape).astype(np.float32) for shape in SHAPES.values()] for _ in range(2)]
        for _ in range(calls)
    ]


def whole(call: list[list[Any]]) -> list[Any]:
    """Return the gradients over the whole batch; of what becomes a value, the largest."""
    joined = [None if a is None else a + b for a, b in zip(*call, strict=True)]
    joined[2] = np.maximum(call[0][2], call[1][2])
    return joined


def stepped(optimizer: Any, trained: list[Any], calls: Any, how: str) -> None:
    """Take calls, each replica with gradients of its own."""
    places = [place for place in range(3) if calls[0][0][place] is not None]

    def take(*given: Any) -> None:
        grads = [None] * 3
        for place, grad in zip(places, given, strict=True):
            grads[place] = tf.ensure_shape(grad, SHAPES[list(SHAPES)[place]])
        optimizer.apply(grads, trained)

    def step(*given: Any) -> None:
        MIRRORED.run(take, args=given)

    if how == "graph":
        step = tf.function(step)
    for call in calls:
        step(
            *(
                MIRRORED.experimental_distribute_values_from_function(
                    lambda context, call=call, place=place: tf.constant(
                        call[context.replica_id_in_sync_group][place]
                    )
                )
                for place in places
            )
        )


def through_a_loop(how: str) -> Facts:
    """Take calls with different gradients in each replica, later, if eagerly, none of the bias."""
    warnings.filterwarnings("ignore", "Gradients do not exist for variables bias")
    calls = gradients(5)
    if how == "eager":
        for grads in chain(*calls[2:]):
            grads[1] = None
    alone, single = Adam(0.01, name="adam", **FULL), variables()
    for call in calls:
        alone.apply([None if g is None else tf.constant(g) for g in whole(call)], single)
    with MIRRORED.scope():
        optimizer, trained = Adam(0.01, name="adam", **FULL), variables()
        optimizer.build(trained)
        parts = [calls[:2], calls[2:]] if how == "eager" else [calls]
        for part in parts:
            stepped(optimizer, trained, part, how)
    facts: Facts = {"before": apart(state(alone, single), state(optimizer, trained))}
    alone.flush()
    if how == "eager":
        MIRRORED.run(optimizer.flush)
    else:
        optimizer.flush()
    alone.finalize_variable_values(single)
    optimizer.finalize_variable_values(trained)
    return facts | {
        "after": apart(state(alone, single), state(optimizer, trained)),
        "split": split(trained, optimizer),
        "counts": [optimizer.calls, optimizer.updates],
    }


def state(optimizer: Any, trained: list[Any]) -> dict[str, np.ndarray]:
    return {v.path: v.numpy() for v in trained} | optimizer.state_dict()


def not_a_number_in_one_replica() -> Facts:
    """Take three calls, of which the second has a NaN in the second replica only."""
    calls = gradients(3)
    calls[1][1][0][2, 3] = np.nan

    def made() -> Any:
        inner = Adam(0.01, name="adam", gradient_accumulation_steps=2, global_clipnorm=0.5)
        return LossScaleOptimizer(inner, initial_scale=4.0, dynamic_growth_steps=2)

    alone, single = made(), variables()
    for call in calls:
        alone.apply([tf.constant(grad) for grad in whole(call)], single)
    with MIRRORED.scope():
        optimizer, trained = made(), variables()
        optimizer.build(trained)
        stepped(optimizer, trained, calls, "graph")
    return {
        "apart": apart(state(alone, single), state(optimizer, trained)),
        "split": split(trained, optimizer),
        "skipped": optimizer.metrics()["skipped_calls"],
        "scale": optimizer.metrics()["loss_scale"],
    }


def saved(folder: str) -> Facts:
    """Save a model that has copies, load it there and outside, and go on."""
    archive, portable = Path(folder, "model.keras"), Path(folder, "adam.safetensors")
    with MIRRORED.scope():
        first = fitted()
    first.save(archive)
    first.optimizer.save(portable)
    before = numbers(first)
    with MIRRORED.scope():
        again = keras.saving.load_model(archive)
        copy = model()
        copy.compile(Adam(0.01, name="adam", **FULL), loss="mse")
        copy.optimizer.build(copy.trainable_variables)
    copy.set_weights(first.get_weights())
    copy.optimizer.load(portable)
    one = keras.saving.load_model(archive)
    return {
        "loaded": [apart(before, numbers(trained)) for trained in (again, copy, one)],
        "later": apart(numbers(more(first)), numbers(more(again))),
        "split": [split(t.trainable_variables, t.optimizer) for t in (again, copy)],
    }

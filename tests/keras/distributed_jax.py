"""What is asked of Keras on JAX with eight devices."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from keras import distribution

from oneadam.keras import Adam

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


def scope_of(how: str) -> Any:
    """Return the distribution of that name, to build and train models in."""
    devices = distribution.list_devices()
    assert len(devices) == 8
    if how == "data":
        return distribution.DataParallel(devices=devices).scope()
    mesh = distribution.DeviceMesh((2, 4), ["batch", "model"], devices)
    layouts = distribution.LayoutMap(mesh)
    layouts[".*hidden/kernel"] = (None, "model")
    layouts[".*last/kernel"] = ("model", None)
    return distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch").scope()


def model() -> Any:
    keras.utils.set_random_seed(4)
    layers = [keras.layers.Dense(16, "tanh", name="hidden"), keras.layers.Dense(8, name="last")]
    return keras.Sequential([keras.Input((8,)), *layers], name="net")


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 8)).astype(np.float32)
    return x, (x @ rng.normal(size=(8, 8))).astype(np.float32)


def fitted() -> Any:
    trained = model()
    trained.compile(Adam(0.01, name="adam", **FULL), loss="mse")
    return more(trained)


@cache
def alone() -> dict[str, np.ndarray]:
    """Return what comes out on one device."""
    return numbers(fitted())


def more(trained: Any) -> Any:
    # Five calls leave a window open.
    trained.fit(*data(), batch_size=16, shuffle=False, verbose=0)
    return trained


def stepped() -> tuple[Any, list[str], str]:
    """Return a model after a loop of one's own, what has moved in that, and its program."""
    trained = model()
    optimizer = Adam(0.01, name="adam", **FULL)
    optimizer.build(trained.trainable_variables)
    trained.optimizer = optimizer
    places = distribution.distribution()
    assert places is not None

    def loss(values: Any, x: Any, y: Any) -> Any:
        predicted, _ = trained.stateless_call(values, [], x)
        return keras.ops.mean(keras.ops.square(predicted - y))

    values = [variable.value for variable in trained.trainable_variables]
    state = [variable.value for variable in optimizer.variables]
    gradient = jax.jit(jax.grad(loss), out_shardings=[value.sharding for value in values])
    take = jax.jit(optimizer.stateless_apply).lower(state, values, values).compile()
    for batch in np.arange(80).reshape(5, 16):
        x, y = (
            distribution.distribute_tensor(part[batch], places.get_data_layout((16, 8)))
            for part in data()
        )
        values, state = take(state, gradient(values, x, y), values)
    variables = (*trained.trainable_variables, *optimizer.variables)
    moved = []
    for variable, value in zip(variables, (*values, *state), strict=True):
        if not value.sharding.is_equivalent_to(variable.value.sharding, value.ndim):
            moved.append(variable.path)
        variable.assign(value)
    optimizer.finalize_variable_values(trained.trainable_variables)
    return trained, moved, take.as_text()


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


def misplaced(trained: Any) -> list[str]:
    """Return what does not lie where and how the variable lies that it belongs to."""
    optimizer = trained.optimizer
    columns = [optimizer._momentums, optimizer._velocities, optimizer._velocity_hats,
               optimizer._model_variables_moving_average,
               optimizer._accumulated_gradients]  # fmt: skip
    return [
        state.path
        for column in columns
        for variable, state in zip(trained.trainable_variables, column, strict=True)
        if state.value.sharding != variable.value.sharding
    ]


def lies(trained: Any) -> dict[str, Any]:
    """Return how the kernels' first moments are cut, and in how many different parts."""
    pairs = zip(trained.trainable_variables, trained.optimizer._momentums, strict=True)
    return {
        variable.path.removeprefix("net/"): [
            str(tuple(momentum.value.sharding.spec)),
            len({str(shard.index) for shard in momentum.value.addressable_shards}),
        ]
        for variable, momentum in pairs
        if variable.ndim == 2
    }


def devices(trained: Any) -> int:
    return len(trained.optimizer._momentums[0].value.sharding.device_set)


def through_fit(how: str) -> Facts:
    with scope_of(how):
        trained = fitted()
    return {
        "apart": apart(alone(), numbers(trained)),
        "misplaced": misplaced(trained),
        "lies": lies(trained),
        "counts": [trained.optimizer.calls, trained.optimizer.updates],
        "devices": devices(trained),
    }


def through_a_loop() -> Facts:
    with scope_of("model"):
        trained, moved, program = stepped()
    return {
        "apart": apart(alone(), numbers(trained)),
        "moved": moved,
        "gathers": "all-gather" in program,
        "reduces": "all-reduce" in program,
    }


def saved(folder: str) -> Facts:
    """Save a model that lies on many devices, load it there and on one, and go on."""
    archive, portable = Path(folder, "model.keras"), Path(folder, "adam.safetensors")
    with scope_of("model"):
        first = fitted()
        first.save(archive)
        first.optimizer.save(portable)
        before = numbers(first)
        again = keras.saving.load_model(archive)
        copy = model()
        copy.set_weights(first.get_weights())
        copy.optimizer = Adam(0.01, name="adam", **FULL)
        copy.optimizer.build(copy.trainable_variables)
        copy.optimizer.load(portable)
        facts = {
            "misplaced": [misplaced(again), misplaced(copy)],
            "lies": [lies(again), lies(copy)],
            "loaded": [apart(before, numbers(again)), apart(before, numbers(copy))],
            "later": apart(numbers(more(first)), numbers(more(again))),
        }
    one = keras.saving.load_model(archive)
    return facts | {"on_one": apart(before, numbers(one)), "devices": devices(one)}


def not_a_number_on_one_device() -> Facts:
    """Hand over gradients of which one element is NaN, which lies on one device."""
    with scope_of("model"):
        trained = model()
        optimizer = Adam(0.01, on_nonfinite="skip")
        optimizer.build(trained.trainable_variables)
        variables = trained.trainable_variables
        before = [np.asarray(variable.value) for variable in variables]
        grads = [np.ones(variable.shape, np.float32) for variable in variables]
        grads[0][3, 5] = np.nan
        optimizer.apply([
            distribution.distribute_tensor(keras.ops.convert_to_tensor(grad), variable._layout)
            for grad, variable in zip(grads, variables, strict=True)
        ])  # fmt: skip
    return {
        "changed": any(
            (np.asarray(variable.value) != value).any()
            for variable, value in zip(variables, before, strict=True)
        ),
        "counts": [optimizer.calls, int(optimizer.skipped_calls)],
    }

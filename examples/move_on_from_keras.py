"""Begin a run in Keras, go on in PyTorch and in JAX, and see that they come to the same.

KERAS_BACKEND=jax python examples/move_on_from_keras.py

Needs Keras, PyTorch, JAX with optax, and scikit-learn, whose handwritten digits it learns. The
network and the arguments are those of `oneadam demo`.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
from sklearn.datasets import load_digits

import oneadam.jax
import oneadam.keras
import oneadam.torch
from oneadam.schedules import CosineDecay

BEFORE, AFTER = 61, 60
"""Calls before and after moving, which happens in the middle of an accumulation window."""

pixels, answers = load_digits(return_X_y=True)
pixels, answers = (pixels / 16).astype("float32"), answers.astype("int64")
batches = [(pixels[at : at + 16], answers[at : at + 16]) for at in range(0, 16 * 111, 16)]
batches += batches[: BEFORE + AFTER - len(batches)]

schedule = CosineDecay(0.0, 110, warmup_target=0.005, warmup_steps=11)
arguments = {
    "weight_decay": 0.1,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
}

# The run begins in Keras.
keras.utils.set_random_seed(0)
hidden = keras.layers.Dense(128, activation="relu", name="hidden")
output = keras.layers.Dense(10, name="output")
model = keras.Sequential([keras.Input((64,)), hidden, output], name="digits")
optimizer = oneadam.keras.Adam(schedule, **arguments)
optimizer.exclude_from_weight_decay(var_names=["bias"])
model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
for images, labels in batches[:BEFORE]:
    model.train_on_batch(images, labels)

folder = Path(tempfile.mkdtemp())
optimizer.save(folder / "adam.safetensors")
weights = {
    variable.path.removeprefix("digits/"): np.array(keras.ops.convert_to_numpy(variable.value))
    for variable in model.trainable_variables
}

# It stays in Keras, for comparison.
for images, labels in batches[BEFORE:]:
    model.train_on_batch(images, labels)
in_keras = model.predict_on_batch(pixels)

# It goes on in PyTorch, where weights have other names, and kernels their axes the other way round.
names = {
    "digits/hidden/kernel": "hidden.weight",
    "digits/hidden/bias": "hidden.bias",
    "digits/output/kernel": "output.weight",
    "digits/output/bias": "output.bias",
}
network = torch.nn.Sequential()
network.add_module("hidden", torch.nn.Linear(64, 128))
network.add_module("relu", torch.nn.ReLU())
network.add_module("output", torch.nn.Linear(128, 10))
network.load_state_dict(
    {name: torch.tensor(weights[path.removeprefix("digits/")].T) for path, name in names.items()}
)
continued = oneadam.torch.Adam(network.named_parameters(), lr=schedule, **arguments)
continued.exclude_from_weight_decay(var_names=["bias"])
continued.load(
    folder / "adam.safetensors",
    names,
    transposed={"hidden.weight": (1, 0), "output.weight": (1, 0)},
)
for images, labels in batches[BEFORE:]:
    continued.zero_grad()
    loss = torch.nn.functional.cross_entropy(network(torch.tensor(images)), torch.tensor(labels))
    loss.backward()
    continued.step()
with torch.no_grad():
    in_torch = network(torch.tensor(pixels)).numpy()

# It goes on in JAX, where only the name of the model is missing.
params = {
    layer: {kind: jnp.array(weights[f"{layer}/{kind}"]) for kind in ("kernel", "bias")}
    for layer in ("hidden", "output")
}
transformation = oneadam.jax.adam(schedule, **arguments, exclude_from_weight_decay=["bias"])
state = oneadam.jax.load(
    folder / "adam.safetensors",
    transformation,
    transformation.init(params),
    params,
    names=lambda path: path.removeprefix("digits/"),
)


def logits(params, images):
    inside = jax.nn.relu(images @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return inside @ params["output"]["kernel"] + params["output"]["bias"]


def cross_entropy(params, images, labels):
    told = jax.nn.log_softmax(logits(params, images))
    return -jnp.take_along_axis(told, labels[:, None], axis=1).mean()


@jax.jit
def train(params, state, images, labels):
    grads = jax.grad(cross_entropy)(params, images, labels)
    return oneadam.jax.step(transformation, grads, state, params)


for images, labels in batches[BEFORE:]:
    params, state = train(params, state, images, labels)
in_jax = np.asarray(logits(params, pixels))

calls = {
    "Keras": optimizer.calls,
    "PyTorch": continued.calls,
    "JAX": int(oneadam.jax.metrics(state)["calls"]),
}
for name, found in (("Keras", in_keras), ("PyTorch", in_torch), ("JAX", in_jax)):
    accuracy = (found.argmax(axis=1) == answers).mean()
    difference = np.abs(found - in_keras).max() / np.abs(in_keras).max()
    print(f"{name:8} {calls[name]} calls  {accuracy:.2%} right  differs by {difference:.0e}")

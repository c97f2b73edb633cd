"""A two-layer perceptron, forward and backward, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneadam.cli.digits import Examples

PIXELS, HIDDEN, CLASSES = 64, 128, 10

Floats = NDArray[np.floating]
Parameters = dict[str, dict[str, Floats]]


def initial_parameters(seed: int) -> Parameters:
    """Draw the float32 weights that training starts from.

    Kernels are normal with variance 2 / inputs (He et al. 2015, section 2.2), biases zero.
    """
    # Epochs draw from (seed, 1), (seed, 2), ...
    generator = np.random.default_rng([seed, 0])

    def layer(inputs: int, outputs: int) -> dict[str, Floats]:
        kernel = generator.normal(0.0, np.sqrt(2 / inputs), (inputs, outputs))
        return {"kernel": kernel.astype(np.float32), "bias": np.zeros(outputs, np.float32)}

    return {"hidden": layer(PIXELS, HIDDEN), "output": layer(HIDDEN, CLASSES)}


def loss_and_gradients(parameters: Parameters, examples: Examples) -> tuple[float, Parameters]:
    """Return the mean cross-entropy of a batch and its gradients, shaped as the parameters."""
    count = len(examples.labels)
    rows = np.arange(count)
    hidden = _hidden(parameters, examples.images)
    log_probabilities = _log_softmax(_logits(parameters, hidden))
    loss = -float(log_probabilities[rows, examples.labels].mean())

    d_logits = np.exp(log_probabilities)
    d_logits[rows, examples.labels] -= 1
    d_logits /= count
    d_hidden = (d_logits @ parameters["output"]["kernel"].T) * (hidden > 0)
    gradients: Parameters = {
        "hidden": {"kernel": examples.images.T @ d_hidden, "bias": d_hidden.sum(axis=0)},
        "output": {"kernel": hidden.T @ d_logits, "bias": d_logits.sum(axis=0)},
    }
    return loss, gradients


def accuracy(parameters: Parameters, examples: Examples) -> float:
    """Return the share of examples whose digit is recognised."""
    logits = _logits(parameters, _hidden(parameters, examples.images))
    return float((logits.argmax(axis=1) == examples.labels).mean())


def _hidden(parameters: Parameters, images: Floats) -> Floats:
    layer = parameters["hidden"]
    rectified: Floats = np.maximum(images @ layer["kernel"] + layer["bias"], 0)
    return rectified


def _logits(parameters: Parameters, hidden: Floats) -> Floats:
    layer = parameters["output"]
    logits: Floats = hidden @ layer["kernel"] + layer["bias"]
    return logits


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised

"""The frameworks that the demo can train with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Framework(NamedTuple):
    """Where to find what trains with a framework, and what that needs."""

    title: str
    packages: tuple[str, ...]
    extra: str
    """Of oneadam, which brings the packages."""
    module: str
    """Which has the class `Training`."""
    file: str
    """The portable checkpoint that is left of its optimizer."""


KNOWN = {
    "numpy": Framework(
        "NumPy", ("numpy",), "cli", "oneadam.cli.numpy_training", "optimizer.safetensors"
    ),
    "torch": Framework(
        "PyTorch",
        ("torch",),
        "torch",
        "oneadam.cli.torch_training",
        "optimizer-torch.safetensors",
    ),
    "jax": Framework(
        "JAX", ("jax", "optax"), "jax", "oneadam.cli.jax_training", "optimizer-jax.safetensors"
    ),
}
"""By the names on the command line. The first is what the others are compared with."""


def in_order(names: Iterable[str]) -> list[str]:
    """Return the first framework and those named, each once.

    Raises:
        ValueError: one of them is not known.
    """
    given = set(names)
    if unknown := given - KNOWN.keys():
        raise ValueError(f"a framework must be {' or '.join(KNOWN)}, received {min(unknown)}")
    first, *others = KNOWN
    return [first, *(name for name in others if name in given)]

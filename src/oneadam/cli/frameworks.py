"""The frameworks that the demo can train with."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Framework(NamedTuple):
    """Where to find what trains with a framework, and what that needs."""

    title: str
    packages: tuple[str, ...]
    install: str
    """What pip is to install, for there to be the packages."""
    module: str
    """Which has the class `Training`."""
    file: str
    """The portable checkpoint that is left of its optimizer."""
    backend: str = ""
    """What Keras runs on, which is one in each process; of Keras only."""


def _keras(title: str, backend: str, packages: tuple[str, ...], install: str) -> Framework:
    return Framework(
        f"Keras on {title}",
        ("keras", *packages),
        install,
        "oneadam.cli.keras_training",
        f"optimizer-keras-{backend}.safetensors",
        backend,
    )


KNOWN = {
    "numpy": Framework(
        "NumPy",
        ("numpy",),
        "'oneadam[cli]'",
        "oneadam.cli.numpy_training",
        "optimizer.safetensors",
    ),
    "torch": Framework(
        "PyTorch",
        ("torch",),
        "'oneadam[cli,torch]'",
        "oneadam.cli.torch_training",
        "optimizer-torch.safetensors",
    ),
    "jax": Framework(
        "JAX",
        ("jax", "optax"),
        "'oneadam[cli,jax]'",
        "oneadam.cli.jax_training",
        "optimizer-jax.safetensors",
    ),
    "keras-tensorflow": _keras(
        "TensorFlow", "tensorflow", ("tensorflow",), "'oneadam[cli,keras]' tensorflow"
    ),
    "keras-jax": _keras("JAX", "jax", ("jax", "optax"), "'oneadam[cli,keras,jax]'"),
    "keras-torch": _keras("PyTorch", "torch", ("torch",), "'oneadam[cli,keras,torch]'"),
}
"""By the names of their runs. The first is what the others are compared with."""

KERAS = "keras"
ON_COMMAND_LINE = (*(name for name, known in KNOWN.items() if not known.backend), KERAS)
BACKENDS = tuple(known.backend for known in KNOWN.values() if known.backend)


def check_known(names: Iterable[str]) -> None:
    """Refuse names that the command line does not have.

    Raises:
        ValueError: one of them is not known.
    """
    if unknown := set(names) - {*ON_COMMAND_LINE}:
        raise ValueError(
            f"a framework must be {' or '.join(ON_COMMAND_LINE)}, received {min(unknown)}"
        )


def in_order(names: Iterable[str]) -> list[str]:
    """Return the first framework and those named, each once.

    Raises:
        ValueError: one of them is not known.
    """
    given = set(names)
    if unknown := given - KNOWN.keys():
        raise ValueError(f"a run must be of {' or '.join(KNOWN)}, received {min(unknown)}")
    first, *others = KNOWN
    return [first, *(name for name in others if name in given)]


def on(backend: str) -> str:
    """Return the name of the run of Keras on a backend."""
    return f"{KERAS}-{backend}"


def running_backend() -> str:
    """Return the backend that Keras runs on in this process; empty where it is not loaded."""
    keras = sys.modules.get("keras")
    return "" if keras is None else str(keras.backend.backend())


def configured_backend(is_installed: Callable[[str], bool]) -> str:
    """Return the backend that Keras is configured for, or else one that is installed."""
    if given := running_backend() or os.environ.get("KERAS_BACKEND"):
        return given
    folder = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    configured = None
    with suppress(OSError, ValueError, AttributeError):
        configured = json.loads((folder / "keras.json").read_text(encoding="utf-8")).get("backend")
    # Keras writes that file itself, whatever is installed.
    candidates = [name for name in (configured, *BACKENDS) if name in BACKENDS]
    return next((name for name in candidates if is_installed(name)), candidates[0])

"""`oneadam demo --framework keras` on the backend that KERAS_BACKEND names."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from demos import (
    FILES,
    assert_same_outcome,
    epochs_done,
    history,
    invoke,
    relative_differences,
    started,
)
from rich.console import Console
from safetensors.numpy import load_file

from oneadam.cli import keras_training
from oneadam.cli.demo import Refused, demo
from oneadam.cli.digits import Examples, load
from oneadam.cli.frameworks import BACKENDS
from oneadam.cli.network import accuracy, initial_parameters, loss_and_gradients
from oneadam.cli.recipe import Recipe

BACKEND = keras.backend.backend()
TITLE = {"tensorflow": "Keras on TensorFlow", "jax": "Keras on JAX", "torch": "Keras on PyTorch"}
OPTIONS = ("--framework", "keras", "--epochs", 3, "--seed", 7)
FILE = f"optimizer-keras-{BACKEND}.safetensors"


class Finished(NamedTuple):
    """A short run that nothing interrupted, and what it said."""

    folder: Path
    said: str


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """Give PyTorch its threads back, of which the demo takes one."""
    if BACKEND != "torch":
        yield
        return
    torch = import_module("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    return Finished(folder, invoke(*OPTIONS, "--out", folder))


def test_its_curve_is_that_of_numpy(finished: Finished) -> None:
    numpys, ours = history(finished.folder), history(finished.folder, f"keras-{BACKEND}")
    largest = relative_differences(numpys[:, 0], ours[:, 0]).max()
    assert 0 < largest < 1e-4
    np.testing.assert_allclose(ours[:, 1:3], numpys[:, 1:3], atol=1.5 / 360)
    np.testing.assert_allclose(ours[:, 3:], numpys[:, 3:], rtol=1e-3, atol=2e-9)
    lines = finished.said.splitlines()
    assert lines.count(TITLE[BACKEND]) == 1
    (row,) = [line.split() for line in lines if line.startswith(f"NumPy and {TITLE[BACKEND]}")]
    assert row[-3] == f"{largest:.1e}"
    assert all(float(number) < 1e-4 for number in row[-2:])
    assert {path.name for path in finished.folder.iterdir()} == {*FILES, FILE}


def test_its_portable_checkpoint_says_what_that_of_numpy_says(finished: Finished) -> None:
    numpys = load_file(finished.folder / "optimizer.safetensors")
    ours = load_file(finished.folder / FILE)
    for name, value in numpys.items():
        other = ours.pop(name if name.startswith("adam/") else f"digits/{name}")
        scale = float(np.abs(value).max(initial=1e-30))
        np.testing.assert_allclose(other, value, rtol=0, atol=1e-3 * scale, err_msg=name)
    assert not ours


@pytest.mark.once
def test_killed_it_resumes_bit_for_bit(finished: Finished, tmp_path: Path) -> None:
    options = (*OPTIONS, "--backend", BACKEND, "--out", tmp_path)
    with started(*options, stderr=subprocess.PIPE) as process:
        while process.stdout.readline() != f"{TITLE[BACKEND]}\n":
            assert process.poll() is None
        # The heading, and the line of the first epoch.
        assert process.stdout.readline()
        assert process.stdout.readline()
        process.kill()
        assert process.stderr.read() == ""
    assert 4 <= epochs_done(tmp_path) <= 6
    # What Keras ran on is found again.
    invoke("--resume", "--out", tmp_path)
    assert_same_outcome(tmp_path, finished.folder, {*FILES, FILE})


def test_another_backend_than_that_of_the_process_is_refused(tmp_path: Path) -> None:
    folder, other = tmp_path / "none", next(name for name in BACKENDS if name != BACKEND)
    with pytest.raises(Refused, match=f"new process, or set KERAS_BACKEND={other} before"):
        demo(Console(), folder, epochs=1, seed=1, resume=False, chosen=["keras"], backend=other)
    assert not folder.exists()


def test_the_network_is_that_of_numpy() -> None:
    digits = load()
    training: Any = keras_training.Training(Recipe(epochs=1, seed=3), digits)
    assert isinstance(training.optimizer, keras.optimizers.Optimizer)
    parameters = initial_parameters(3)
    assert training.accuracy(digits.held_out) == accuracy(parameters, digits.held_out)
    first, second = (
        Examples(digits.training.images[taken], digits.training.labels[taken])
        for taken in (slice(16), slice(16, 32))
    )
    loss, gradients = loss_and_gradients(parameters, first)
    assert training.step(first) == pytest.approx(loss, rel=1e-6)
    state = training.optimizer.state_dict()
    for layer, arrays in gradients.items():
        for name, expected in arrays.items():
            found = state[f"digits/{layer}/{name}/gradient_accumulator"]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # Of this batch alone, with the weights that the first has not changed yet.
    loss, _ = loss_and_gradients(parameters, second)
    assert training.step(second) == pytest.approx(loss, rel=1e-6)
    assert (training.optimizer.calls, training.optimizer.updates) == (2, 1)

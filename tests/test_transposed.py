"""Arrays that another framework has with other axes are transposed when state is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oneadam.numpy

FULL: dict[str, Any] = {
    "amsgrad": True,
    "use_ema": True,
    "weight_decay": 0.1,
    "gradient_accumulation_steps": 3,
}
SHAPES = {"conv/kernel": (2, 3, 4, 5), "square/kernel": (3, 3), "square/bias": (3,), "gain": ()}
THERE = {"conv/kernel": "conv.weight", "square/kernel": "square.weight"}
AXES = {"conv.weight": (3, 2, 0, 1), "square.weight": (1, 0)}
BACK = {"conv/kernel": (2, 3, 1, 0), "square/kernel": np.array([1, 0])}
"""That of the first is not its own inverse."""
KERAS = os.environ.get("KERAS_BACKEND")
DOORS = [f"keras-{KERAS}"] if KERAS else ["numpy", "torch", "jax"]


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Any:
    """A door behind the interface of the NumPy door."""
    if request.param == "numpy":
        return oneadam.numpy
    name = request.param.partition("-")[0]
    pytest.importorskip(name)
    return pytest.importorskip(f"{name}_as_numpy")


def variables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([1, seed])
    return {name: np.array(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}


def there(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays as the other framework has and names them."""
    found = {}
    for name, array in arrays.items():
        new = THERE.get(name, name)
        found[new] = np.array(array.transpose(AXES.get(new)), order="C") if array.ndim else array
    return found


def trained(calls: int = 5) -> tuple[dict[str, np.ndarray], Any]:
    """An optimizer in the middle of a window."""
    arrays, optimizer = variables(), oneadam.numpy.Adam(**FULL)
    optimizer.build(arrays)
    for seed in range(calls):
        optimizer.apply(gradients(seed))
    return arrays, optimizer


def built(door: Any, arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Any]:
    """An optimizer on what the arrays are in the other framework."""
    others = {name: array.copy() for name, array in there(arrays).items()}
    optimizer = door.Adam(**FULL)
    optimizer.build(others)
    return others, optimizer


@pytest.mark.parametrize("given", ["mapping", "function"])
def test_a_run_goes_on_with_other_axes_and_comes_back(
    door: Any, given: str, tmp_path: Path
) -> None:
    arrays, optimizer = trained()
    optimizer.save(tmp_path / "run")
    others, other = built(door, arrays)
    transposed: Any = AXES if given == "mapping" else AXES.get
    other.load(tmp_path / "run", THERE, transposed=transposed)
    for seed in range(5, 10):
        optimizer.apply(gradients(seed))
        other.apply(there(gradients(seed)))
    for name, array in there(arrays).items():
        np.testing.assert_allclose(others[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    other.save(tmp_path / "back")
    _, again = trained(0)
    again.load(tmp_path / "back", {new: name for name, new in THERE.items()}, transposed=BACK)
    wanted = optimizer.state_dict()
    for name, value in again.state_dict().items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_arrays_are_transposed_and_numbers_are_not(door: Any, tmp_path: Path) -> None:
    arrays, optimizer = trained()
    optimizer.save(tmp_path / "run")
    _, other = built(door, arrays)
    other.load(tmp_path / "run", THERE, transposed=AXES)
    other.save(tmp_path / "copy")
    _, same = built(oneadam.numpy, arrays)
    same.load(tmp_path / "copy")
    found, slots = same.state_dict(), set()
    for name, value in optimizer.state_dict().items():
        owner, _, slot = name.rpartition("/")
        new = THERE.get(owner, owner)
        wanted = value.transpose(AXES[new]) if new in AXES and value.ndim else value
        np.testing.assert_array_equal(found[f"{new}/{slot}"], wanted, err_msg=name)
        slots.add(slot)
    assert {"momentum", "velocity", "velocity_hat", "average", "gradient_accumulator", "updates",
            "in_window", "averaged"} <= slots  # fmt: skip


def test_under_a_loss_scale_too(door: Any, tmp_path: Path) -> None:
    settings = {"initial_scale": 8.0, "dynamic_growth_steps": 50}
    arrays, optimizer = trained()
    oneadam.numpy.LossScaleOptimizer(optimizer, **settings).save(tmp_path / "run")
    others = there(arrays)
    other = door.LossScaleOptimizer(door.Adam(**FULL), **settings)
    other.build(others)
    other.load(tmp_path / "run", THERE, transposed=AXES)
    optimizer.apply(gradients(5))
    scaled = {name: np.asarray(8 * array) for name, array in there(gradients(5)).items()}
    other.apply(scaled)
    assert other.updates == 2
    for name, array in there(arrays).items():
        np.testing.assert_allclose(others[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("transposed", "said"),
    [
        ({"square/kernel": (1, 0)}, r"received \['square/kernel'\], under which nothing is loaded"),
        ({"square.weight": (0, 1, 2)}, r"received \(0, 1, 2\) for 'square.weight'.*axes \(0, 1\)"),
        ({"square.weight": (1, 1)}, r"received \(1, 1\)"),
        ({"square.weight": (-1, 0)}, r"received \(-1, 0\)"),
        ({"square.weight": (True, False)}, r"received \(True, False\)"),
        ({"square.weight": "10"}, "received '10'"),
        ({"square.weight": None}, "received None"),
        ({"square/bias": (1, 0)}, r"'square/bias'.*axes \(0,\)"),
        ({"gain": (0,)}, r"'gain'.*axes \(\)"),
        (lambda name: True, "received True"),
        ({"conv.weight": (0, 1, 2, 3)}, r"conv.weight/momentum \(saved float32 \(2, 3, 4, 5\)"),
        (["square.weight"], r"received \['square.weight'\]; pass for example"),
        (None, "transposed="),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(
    door: Any, transposed: Any, said: str, tmp_path: Path
) -> None:
    arrays, optimizer = trained()
    optimizer.save(tmp_path / "run")
    others, other = built(door, arrays)

    def everything() -> list[Any]:
        named = [*others.items(), *sorted(other.state_dict().items())]
        return [(name, np.array(array).tobytes()) for name, array in named]

    before = everything()
    with pytest.raises((TypeError, ValueError), match=said):
        other.load(tmp_path / "run", THERE, transposed=transposed)
    assert everything() == before

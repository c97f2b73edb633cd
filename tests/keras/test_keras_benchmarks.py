"""The benchmarks in Keras measure what they say; whether that is fast is not for a test."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import ModuleType

import keras
import pytest
from rich.console import Console

ROOT = Path(__file__).parents[2]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch", reason="the benchmarks make their models with PyTorch")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import keras_steps

    return keras_steps


@pytest.mark.parametrize("kind", ["recipe", "accumulation"])
def test_both_take_the_same_steps(steps: ModuleType, kind: str) -> None:
    (found,) = steps._calls(kind, 2, True)
    assert list(found.seconds) == ["oneadam", "keras Adam"]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found.seconds.values())
    assert 0 <= found.difference < 1e-5


@pytest.mark.once
def test_other_steps_would_be_seen(steps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import keras_rivals

    class Slower(keras.optimizers.Adam):
        def __init__(self, rate: float, **arguments: object) -> None:
            super().__init__(rate / 2, **arguments)

    monkeypatch.setitem(keras_rivals.CLASSES, "keras Adam", Slower)
    (found,) = steps._calls("step", 1, True)
    assert found.difference > 1e-4


@pytest.mark.once
def test_the_network_of_the_demo_is_trained(steps: ModuleType) -> None:
    plain, recipe = steps._fits(1, True)
    assert "plain" in plain.title
    assert "recipe" in recipe.title
    for found in (plain, recipe):
        assert all(len(seconds) == 1 for seconds in found.seconds.values())


@pytest.mark.once
def test_each_backend_is_measured_in_a_process(
    steps: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(code: str, **variables: str) -> tuple[float, str]:
        asked.append((code.splitlines()[-1], variables["KERAS_BACKEND"]))
        return 0.0, "said on the way\n" + json.dumps(
            [["a model", {"oneadam": [0.001], "keras Adam": [0.003]}, 1e-7]]
        )

    monkeypatch.setattr(steps.fresh, "run", run)
    table = steps.compare(7, False, "recipe")
    assert [backend for _, backend in asked] == ["torch", "jax", "tensorflow"]
    assert all(call.startswith("measure('recipe', 7, False, ") for call, _ in asked)
    text = io.StringIO()
    table.show(Console(file=text, width=110), "title")
    said = text.getvalue()
    assert "3.00 [3.00, 3.00]" in said
    assert said.count("NO") == 1, "on PyTorch, where four times is the target"
    assert said.count("yes") == 2

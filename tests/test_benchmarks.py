"""The benchmarks measure what they say; whether that is fast is not for a test."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import processes
import pytest

ROOT = Path(__file__).parents[1]
SIZES = [1000, 40_000]
DOORS = ["numpy", "torch"]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch", reason="the benchmarks compare with PyTorch")
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks

    return benchmarks


@pytest.mark.parametrize("name", ["step", "recipe", "bfloat16", "accumulation"])
def test_limits_run(name: str) -> None:
    from benchmarks import limit

    run = getattr(limit, name)(SIZES)
    run()
    run()
    assert "benchmarks.limit" in sys.modules


@pytest.mark.parametrize("name", ["step", "recipe"])
def test_limits_run_in_memory_of_torch(name: str) -> None:
    from benchmarks import limit

    getattr(limit, name)(SIZES, "torch")()


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    # As in torchvision.models.resnet50 and in the published GPT-2 small.
    [("RESNET_50", 161, 25_557_032), ("GPT_2", 148, 124_439_808)],
)
def test_real_models_have_their_parameters(name: str, tensors: int, elements: int) -> None:
    from benchmarks import models

    model = getattr(models, name)
    assert (len(model.shapes), model.elements) == (tensors, elements)
    quick = models.shortened(model, True)
    assert len(quick.shapes) == tensors
    assert quick.elements < elements / 10
    assert models.shortened(model, False) is model


@pytest.mark.parametrize("door", DOORS)
def test_arrays_have_the_same_values_in_the_memory_of_either_framework(door: str) -> None:
    from benchmarks import models

    shapes = [(3, 5), (7,)]
    arrays = models.random(shapes, 1, door=door)
    assert [array.shape for array in arrays] == shapes
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
    for array, expected in zip(arrays, models.random(shapes, 1), strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("door", DOORS)
def test_rivals_compute_the_same(door: str) -> None:
    from benchmarks import models, rivals, steps

    model = models.Model("two", ((4, 3), (5,)))
    decayed = {"weight_decay": 0.01}
    fused = rivals.torch_step(model, door=door, fused=True, **decayed)
    ours = rivals.oneadam_step(model, door=door, **decayed)
    assert steps.difference(ours, fused) < 1e-5
    recipes = rivals.torch_recipe(model, door=door)
    ours = rivals.oneadam_step(model, door=door, **rivals.RECIPE)
    assert len(ours.results()) == 4 * len(model.shapes)
    assert steps.difference(ours, recipes) < 1e-5
    # Another task is told from the same one.
    undecayed = rivals.torch_step(model, door=door, fused=True, weight_decay=0.0)
    assert steps.difference(rivals.oneadam_step(model, door=door, **decayed), undecayed) > 1e-6


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """Steps through JAX's door on two small parameters, by who takes them."""
    pytest.importorskip("optax")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from benchmarks import jax_rivals as rivals
        from benchmarks.models import Model

        recipes = {
            "plain": rivals.oneadam_recipe(),
            "optax plain": rivals.optax_plain(),
            "full": rivals.oneadam_recipe(**rivals.RECIPE),
            "optax full": rivals.optax_full(),
            "accumulating": rivals.oneadam_accumulating(),
            "optax accumulating": rivals.optax_accumulating(),
            "exchanging": rivals.Recipe(
                lambda params: [2 * param for param in params],
                lambda params, state, grads: (state, params),
                lambda state: [state],
            ),
        }
        model = Model("two", ((40, 30), (5,)))
        grads = rivals.gradients(model)
        return {name: rivals.Rival(recipe, model, grads) for name, recipe in recipes.items()}


@pytest.mark.parametrize("name", ["plain", "full"])
def test_compiled_rivals_compute_the_same(compiled: dict[str, Any], name: str) -> None:
    from benchmarks.steps import difference

    ours, theirs = compiled[name], compiled[f"optax {name}"]
    assert len(ours.results()) == len(theirs.results()) == {"plain": 3, "full": 4}[name] * 2
    assert difference(ours, theirs) < 1e-5


def test_compiled_rivals_accumulate_the_same(compiled: dict[str, Any]) -> None:
    from benchmarks.steps import difference

    ours, theirs = compiled["accumulating"], compiled["optax accumulating"]
    first = ours.results()[0]
    for rival in (ours, theirs):
        rival.window()
    second = ours.results()[0]
    assert (second != first).all()
    assert difference(ours, theirs) < 1e-5
    # That was another call, which has only added.
    np.testing.assert_array_equal(ours.results()[0], second)


def test_another_compiled_task_is_told_from_the_same(compiled: dict[str, Any]) -> None:
    from benchmarks.steps import difference

    assert difference(compiled["plain"], compiled["optax accumulating"]) > 1e-3


def test_what_the_compiler_counts_of_a_step_is_read(compiled: dict[str, Any]) -> None:
    array = 4 * (40 * 30 + 5)
    plain, full = compiled["plain"], compiled["full"]
    # Parameters, two moments and gradients are arguments, and the averages are one more.
    assert 4 * array < plain.arguments < 4 * array + 1000
    assert 5 * array < full.arguments < 5 * array + 1000
    # Four are read and three are written, at least.
    assert 7 * array <= plain.bytes_accessed < full.bytes_accessed
    # They are written in place; what exchanges two needs room for one of them.
    assert plain.beyond < array <= compiled["exchanging"].beyond


def test_beside_torchs_door_every_step_has_new_gradients() -> None:
    from benchmarks import models, rivals

    model = models.Model("two", ((4, 3), (5,)))
    parameters, prepare = rivals._parameters(model, "torch")
    assert [parameter.grad for parameter in parameters] == [None, None]
    prepare()
    before = [parameter.grad for parameter in parameters]
    prepare()
    expected = models.random(model.shapes, 1)
    for parameter, old, value in zip(parameters, before, expected, strict=True):
        assert parameter.grad is not old
        assert parameter.grad.data_ptr() != old.data_ptr()
        np.testing.assert_array_equal(parameter.grad.numpy(), value)


def test_what_prepares_a_step_comes_before_each_and_is_not_timed() -> None:
    from benchmarks.timing import Contestant, in_turns

    said: list[str] = []
    contestants = [
        Contestant("a", lambda: said.append("a"), prepare=lambda: said.append("ready")),
        Contestant("b", lambda: said.append("b")),
    ]
    seconds = in_turns(contestants, 2)
    assert said == ["ready", "a", "ready", "a", "b", "b"] * 2
    assert [len(taken) for taken in seconds] == [2, 2]


def test_doors_and_names_choose_benchmarks() -> None:
    from benchmarks.__main__ import BENCHMARKS, chosen

    every = [(door, name) for door in BENCHMARKS for name in BENCHMARKS[door]]
    assert chosen([]) == every
    assert chosen(["torch"]) == [("torch", name) for name in BENCHMARKS["torch"]]
    assert chosen(["recipe", "step"]) == [
        (door, name) for door in (*DOORS, "jax", "keras") for name in ("step", "recipe")
    ]
    assert chosen(["torch", "host"]) == chosen(["host"]) == [("torch", "host")]


@pytest.mark.parametrize("door", DOORS)
def test_the_memory_of_a_step_is_measured(door: str) -> None:
    from benchmarks import fresh, memory
    from benchmarks.models import THOUSANDS

    number = memory._MODELS[door].index(THOUSANDS)
    _, output = fresh.run(
        f"from benchmarks.memory import probe\nprobe({door!r}, {number}, 'plain')"
    )
    variables, allocated, _ = json.loads(output)
    assert variables == 4 * THOUSANDS.elements
    assert 0 < allocated < variables


FOREACH = """
import torch
from benchmarks.memory import _growth_of_resident
parameter = torch.ones(1_000_000).requires_grad_()
parameter.grad = torch.ones(1_000_000)
optimizer = torch.optim.AdamW([parameter], foreach=True)
for _ in range(4):
    optimizer.step()
print(_growth_of_resident(optimizer.step))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux's /proc and glibc")
def test_memory_that_torch_takes_for_a_while_is_seen() -> None:
    from benchmarks import fresh, memory

    _, output = fresh.run(FOREACH, **memory._ENVIRONMENT)
    assert int(output) > 3_000_000


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command as its user does."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT,
        env=processes.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_shows_a_table() -> None:
    process = run("torch", "--quick", "host", "--rounds", "1")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert any(line.startswith("A step on tensors") for line in lines)
    assert any("torch AdamW(fused)" in line for line in lines)
    assert any("torch host took" in line for line in lines)


def test_the_command_refuses_what_it_does_not_know() -> None:
    process = run("torch", "guest")
    assert process.returncode == 2
    assert "received guest" in process.stderr


@pytest.mark.skipif(find_spec("jax") is None, reason="could not import 'jax'")
@pytest.mark.skipif(find_spec("keras") is None, reason="could not import 'keras'")
def test_the_command_compares_compiled_steps() -> None:
    process = run("jax", "--quick", "--rounds", "1")
    assert process.returncode == 0, process.stderr
    for words in ("optax.adam", "clip + adamw + EMA", "optax.MultiSteps", "keras Adam",
                  "ms per call", "bytes per element", "MB at the peak", "s to trace"):  # fmt: skip
        assert words in process.stdout
    said = " ".join(process.stdout.split())
    differences = [part.split()[0] for part in said.split("largest element: ")[1:]]
    assert len(differences) == 3 + 2
    assert all(0 < float(found) < 1e-5 for found in differences)

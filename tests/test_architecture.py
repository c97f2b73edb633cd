"""Imports point one way, and importing the package costs next to nothing."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import processes
import pytest
import surface

import oneadam

SOURCE = processes.PACKAGE
TESTS = Path(__file__).parent

# A room may import from the layers above its own in this list, and from itself.
LAYERS = (
    (
        "_rule",
        "_arguments",
        "_dtypes",
        "_step",
        "_interrupts",
        "_exclusions",
        "_messages",
        "_warnings",
    ),
    ("checkpoint", "_loss_scale"),
    ("_schedule",),
    ("_serialization",),
    ("schedules",),
    ("_hyperparameters",),
    ("_configuration", "_plan", "_gradients", "_state"),
    ("_metrics", "_saved_state"),
    ("_engines",),
    ("numpy", "torch", "jax"),
    ("keras",),
    ("cli",),
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
DOORS = (*LAYERS[-3], *LAYERS[-2])

# Which rooms, or modules of a room, may import what does not come with Python.
OUTSIDE = {
    "numpy": {
        *("_dtypes", "_plan", "_gradients", "_state", "_saved_state", "_engines", "checkpoint"),
        *DOORS,
        "cli",
    },
    "numba": {"_engines"},
    "llvmlite": {"_engines"},
    "triton": {"_engines"},
    "safetensors": {"checkpoint"},
    "torch": {"torch", "_engines.torch", "keras._torch", "cli.torch_training"},
    "lightning": {"torch.integrations.lightning"},
    "transformers": {"torch.integrations.transformers"},
    "jax": {"jax", "keras._jax", "cli.jax_training"},
    "optax": {"jax"},
    "keras": {"keras", "cli.keras_training"},
    "tensorflow": {"keras"},
    "typer": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"cli"},
    "sklearn": {"cli"},
}
HEAVY = {*OUTSIDE, "ml_dtypes", "scipy", "array_api_strict"}


class Import(NamedTuple):
    """Somebody imports something."""

    module: str
    imported: str
    at_start: bool
    """Whether it happens when the module is imported, not later or for the type checker only."""


def imports(package: Path) -> list[Import]:
    """Everything that the modules of a package import, by full names."""
    found = []
    for file in sorted(package.rglob("*.py")):
        parts = [package.name, *file.relative_to(package).with_suffix("").parts]
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        early = set(_at_start(tree))
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module} imports relatively"
                names = [_full(package, node.module or "", alias.name) for alias in node.names]
            found += [Import(module, name, node in early) for name in names]
    return found


def _at_start(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_start(child)


def _full(package: Path, module: str, name: str) -> str:
    """`from module import name` imports the module `module.name` if there is one."""
    parts = [*module.split("."), name]
    if parts[0] == package.name:
        place = package.joinpath(*parts[1:])
        if not (place.is_dir() or place.with_suffix(".py").is_file()):
            return module
    return ".".join(parts) if parts[0] == package.name else module


def room(module: str) -> str:
    """The room that a module of the package belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def may_import(module: str, top: str) -> bool:
    """Whether a module of the package, by its name within that, may import something outside."""
    return any(f"{module}.".startswith(f"{place}.") for place in OUTSIDE[top])


def violations(package: Path) -> list[str]:
    """What the imports of a package do that they must not, one sentence each."""
    said, own = [], f"{package.name}"
    for module, imported, _ in imports(package):
        here, top = room(module), imported.split(".")[0]
        if here not in LAYER and here:
            said.append(f"{module} is in no layer")
        elif top in OUTSIDE and not may_import(module.removeprefix(f"{own}."), top):
            said.append(f"{module} imports {top}")
        elif f"{imported}.".startswith(f"{own}._engines.torch.") and not may_import(
            module.removeprefix(f"{own}."), "torch"
        ):
            said.append(f"{module} imports {imported}, which imports torch")
        elif top == own and here and room(imported) and room(imported) != here:
            there = room(imported)
            if LAYER.get(there, 99) >= LAYER[here]:
                said.append(f"{module} imports {imported}, which stands above it or beside it")
            if there == "_rule" and here != "_engines":
                said.append(f"{module} imports the rule; only engines run it")
        elif top == own and not here and imported != f"{own}._engines.threads":
            said.append(f"{module} imports {imported}")
    return said


def cycles(package: Path) -> list[tuple[str, ...]]:
    """Modules that cannot be imported without importing themselves."""
    needs: dict[str, set[str]] = {}
    for module, imported, at_start in imports(package):
        if at_start and imported.startswith(f"{package.name}."):
            needs.setdefault(module, set()).add(imported)
    found = []

    def walk(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.append((*path[path.index(module) :], module))
            return
        for other in sorted(needs.get(module, ())):
            walk(other, (*path, module))

    for module in needs:
        walk(module, ())
    return found


def test_imports_point_one_way() -> None:
    assert violations(SOURCE) == []


def test_no_import_goes_in_a_circle() -> None:
    assert cycles(SOURCE) == []


def test_every_room_is_looked_at() -> None:
    rooms = {room(module) for module, *_ in imports(SOURCE)} - {""}
    files = {path.stem for path in SOURCE.iterdir() if path.name != "__init__.py"}
    assert rooms | {"_rule"} <= files
    assert {"_engines", "_plan", "_gradients", "numpy", "cli"} <= rooms
    assert len(imports(SOURCE)) > 100


def synthetic(folder: Path, files: dict[str, str]) -> Path:
    """A package of the given files, with an empty `__init__` in every folder."""
    package = folder / "oneadam"
    for name, text in {"__init__.py": "", **files}.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for sub in {file.parent for file in package.rglob("*.py")}:
        (sub / "__init__.py").touch()
    return package


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("_rule.py", "from oneadam import _plan", "above it"),
        ("_rule.py", "import numpy as np", "imports numpy"),
        ("_plan.py", "from oneadam._engines import Buffers", "above it"),
        ("_plan.py", "from oneadam._state import match", "beside it"),
        ("_plan.py", "import oneadam._rule", "only engines"),
        ("_engines/cpu/fast.py", "from oneadam.numpy import Adam", "above it"),
        ("_engines/arrays.py", "def f():\n    import torch", "imports torch"),
        ("_engines/arrays.py", "from jax import numpy", "imports jax"),
        ("_engines/host.py", "from oneadam._engines.torch import rows", "which imports torch"),
        ("_engines/torchlike.py", "import torch", "imports torch"),
        ("torch/_run.py", "import lightning", "imports lightning"),
        ("cli/demo.py", "import torch", "imports torch"),
        ("cli/demo.py", "import jax", "imports jax"),
        ("cli/frameworks.py", "def f():\n    import keras", "imports keras"),
        ("checkpoint.py", "from oneadam.numpy._saved import state", "above it"),
        ("torch/_run.py", "import jax.numpy as jnp", "imports jax"),
        ("torch/_run.py", "from oneadam.numpy import Adam", "beside it"),
        ("numpy/_run.py", "from oneadam.cli import app", "above it"),
        ("numpy/_run.py", "from oneadam import _rule", "only engines"),
        ("numpy/_run.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
         "imports torch"),
        ("__init__.py", "from oneadam.numpy import Adam", "imports oneadam.numpy"),
        ("novelty.py", "import math", "in no layer"),
    ],
)  # fmt: skip
def test_wrong_imports_are_caught(tmp_path: Path, file: str, text: str, said: str) -> None:
    rooms = ("_plan", "_state", "_rule", "numpy/_saved", "numpy/_run", "cli/app", "cli/demo",
             "cli/frameworks",
             "torch/_run", "_engines/cpu/fast", "_engines/arrays", "_engines/torch/rows",
             "checkpoint")  # fmt: skip
    clean = synthetic(tmp_path, {f"{name}.py": "import math\n" for name in rooms})
    assert violations(clean) == []
    (clean / file).write_text(text, encoding="utf-8")
    (sentence,) = violations(clean)[:1]
    assert said in " ".join(violations(clean)), sentence


def test_circles_are_caught(tmp_path: Path) -> None:
    later = "def f():\n    from oneadam.numpy import _run"
    clean = {"numpy/_run.py": "from oneadam.numpy import _saved", "numpy/_saved.py": later}
    assert cycles(synthetic(tmp_path / "later", clean)) == []
    wrong = {**clean, "numpy/_saved.py": "from oneadam.numpy._run import Run"}
    assert cycles(synthetic(tmp_path / "now", wrong))


def test_the_oracle_shares_nothing_with_the_package() -> None:
    for name in ("oracle.py", "faults.py"):
        tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "oneadam" for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "oneadam"


def loaded_by(statement: str, source: Path = SOURCE.parent) -> set[str]:
    """The heavy packages that a statement loads in a fresh process."""
    said = processes.run(
        f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))", source=source
    )
    return {name.split(".")[0] for name in json.loads(said)} & HEAVY


@pytest.mark.parametrize("module", ["oneadam", "oneadam.schedules", "oneadam.cli"])
def test_importing_loads_no_framework_and_no_compiler(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


def test_the_numpy_door_loads_no_other_framework() -> None:
    assert loaded_by("import oneadam.numpy") <= {"numpy", "numba", "llvmlite", "safetensors"}


def test_the_torch_door_loads_no_other_framework() -> None:
    pytest.importorskip("torch")
    allowed = {"numpy", "numba", "llvmlite", "safetensors", "torch", "triton"}
    assert loaded_by("import oneadam.torch") <= allowed


def test_checkpoints_need_no_compiler() -> None:
    assert loaded_by("import oneadam.checkpoint") <= {"numpy", "safetensors", "ml_dtypes"}


def test_a_heavy_import_is_caught(tmp_path: Path) -> None:
    synthetic(tmp_path, {"__init__.py": "import numba"})
    assert {"numba", "numpy"} <= loaded_by("import oneadam", tmp_path)


def public_modules() -> list[str]:
    """The package and its parts that have no underscore, but for Keras's.

    That door is looked at by its own tests: nothing else may load Keras into this process.
    """
    parts = [info.name for info in pkgutil.iter_modules([str(SOURCE)]) if info.name != "keras"]
    return ["oneadam", *(f"oneadam.{name}" for name in parts if not name.startswith("_"))]


@pytest.mark.parametrize("name", public_modules())
def test_all_is_true(name: str) -> None:
    # Private helpers may be imported from private modules, for use.
    helpers = {"Step", "normalise"} if name == "oneadam.schedules" else set()
    surface.check(importlib.import_module(name), helpers)


def test_an_untrue_all_is_caught() -> None:
    module = types.ModuleType("oneadam.synthetic")
    exec("__all__ = ['missing', 'there']\ndef there(): pass\ndef unlisted(): pass", vars(module))
    assert surface.untrue(module) == {"missing", "unlisted"}


def test_the_version_is_the_packages() -> None:
    assert oneadam.__version__.count(".") == 2

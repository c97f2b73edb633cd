"""The examples in docstrings and in examples/ run, and print what they say."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import processes
import pytest

import oneadam

PACKAGE = Path(oneadam.__file__).parent
README = Path(__file__).parent.parent / "README.md"
SCRIPTS = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
DOORS_OF_FRAMEWORKS = ("torch", "jax", "keras")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names() -> list[str]:
    """Every module of the package, found without importing any."""
    files = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py")]
    names = (".".join(path.with_suffix("").parts) for path in files)
    return sorted(n.removesuffix(".__init__") for n in names if not n.endswith("__main__"))


def complaints(module: ModuleType) -> str:
    """Whatever a module's docstrings promise and do not keep."""
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for test in doctest.DocTestFinder().find(module):
        runner.run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("name", module_names())
def test_examples_in_docstrings_hold(name):
    for framework in DOORS_OF_FRAMEWORKS:
        if name.startswith(f"oneadam.{framework}"):
            pytest.importorskip(framework)
    assert complaints(importlib.import_module(name)) == ""


def test_a_wrong_example_is_found():
    module = ModuleType("wrong", ">>> 1 + 1\n3")
    assert "Got:\n    2" in complaints(module)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_example_scripts_run(script):
    run = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout


def test_the_code_in_the_readme_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", block],
            cwd=tmp_path,
            env=processes.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stderr) == (0, "")


def test_the_rule_stands_in_the_documentation_word_for_word():
    text = (README.parent / "docs" / "design.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert shown in (PACKAGE / "_rule.py").read_text(encoding="utf-8")
    assert "s.step_size" in shown

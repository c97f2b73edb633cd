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
SCRIPTS = [path for path in SCRIPTS if "keras" not in path.stem]
NEEDS = {
    "oneadam.torch": "torch",
    "oneadam.torch.integrations.lightning": "lightning",
    "oneadam.torch.integrations.transformers": "transformers",
    "oneadam._engines.torch": "torch",
    "oneadam.cli.torch_training": "torch",
    "oneadam.jax": "jax",
}
"""The frameworks that modules import."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names() -> list[str]:
    """Every module, found without importing any; those for Keras are tested on its backends."""
    files = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py")]
    files = [path for path in files if "keras" not in path.stem and "keras" not in path.parts]
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
    for module, framework in NEEDS.items():
        if f"{name}.".startswith(f"{module}."):
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


def code_in(document: Path) -> list[str]:
    """The blocks of Python in a document."""
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def run_code(code: str, folder: Path, *switches: str) -> str:
    """Runs code in a process of its own, and returns what it complains of."""
    run = subprocess.run(
        [sys.executable, *switches, "-c", code],
        cwd=folder,
        env=processes.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stderr


@pytest.mark.parametrize(("block", "framework"), [(0, "numpy"), (1, "torch"), (2, "jax")])
def test_the_code_in_the_readme_runs(tmp_path, block, framework):
    pytest.importorskip(framework)
    blocks = code_in(README)
    assert len(blocks) == 3
    assert run_code(blocks[block], tmp_path, "-W", "error") == ""


ONE_PROCESS = """
import torch
torch.distributed.init_process_group(
    "gloo", rank=0, world_size=1, store=torch.distributed.HashStore()
)
"""
AT_THE_END = "torch.distributed.destroy_process_group()\n"


def test_the_code_in_the_guide_to_pytorch_runs(tmp_path):
    pytest.importorskip("torch")
    blocks = code_in(README.parent / "docs" / "torch.md")
    assert len(blocks) == 3
    # Torch itself warns of parts of torch.
    said = run_code(ONE_PROCESS + "".join(blocks) + AT_THE_END, tmp_path)
    assert "oneadam" not in said


def test_the_code_in_the_guide_to_jax_runs(tmp_path):
    pytest.importorskip("jax")
    blocks = code_in(README.parent / "docs" / "jax.md")
    assert len(blocks) == 2
    assert run_code("".join(blocks), tmp_path, "-W", "error") == ""


def test_the_rule_stands_in_the_documentation_word_for_word():
    text = (README.parent / "docs" / "design.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert shown in (PACKAGE / "_rule.py").read_text(encoding="utf-8")
    assert "s.step_size" in shown

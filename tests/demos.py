"""Running `oneadam demo` as its user does, and looking at what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import CliRunner

from oneadam.cli.app import app

PROGRESS = "progress.safetensors"
FILES = {PROGRESS, "optimizer.safetensors", "training.png"}
# Colours and Typer's boxes would depend on where the tests run.
SETTINGS_OF_TERMINALS = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "COLUMNS")


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "oneadam.cli", "demo", *map(str, options)]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in SETTINGS_OF_TERMINALS}
    return {**kept, "TERM": "xterm-256color"}


def run(*options: object) -> subprocess.CompletedProcess[str]:
    """Run the command as its user does."""
    return subprocess.run(
        command(*options), capture_output=True, text=True, check=False, env=environment()
    )


def started(*options: object, stderr: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*options), stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()
    )


def invoke(*options: object) -> str:
    """Run it within this process, which is faster, and return what it says."""
    result = CliRunner().invoke(app, ["demo", *map(str, options)])
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.output


def epochs_done(folder: Path) -> int:
    """Read the file of a killed run, which must be whole; -1 before there is one."""
    file = folder / PROGRESS
    if not file.exists():
        return -1
    return sum(len(v) for name, v in load_file(file).items() if name.endswith("/history"))


def history(folder: Path, framework: str = "numpy") -> np.ndarray:
    """Return one row per epoch: loss, accuracy, averaged accuracy, learning rate, norm."""
    return load_file(folder / PROGRESS)[f"{framework}/history"]


def relative_differences(losses: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.abs(losses - others) / losses


def content(file: Path) -> object:
    """Everything in a file, to the bit; safetensors writes metadata in no particular order."""
    if file.suffix != ".safetensors":
        return file.read_bytes()
    with safe_open(file, "numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    return metadata, {
        name: (value.dtype, value.shape, value.tobytes()) for name, value in tensors.items()
    }


def assert_same_outcome(folder: Path, expected: Path, files: set[str] = FILES) -> None:
    assert {path.name for path in folder.iterdir()} == files
    for name in files:
        assert content(folder / name) == content(expected / name), name

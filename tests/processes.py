"""Running Python in a process of its own, with the package that is under test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import oneadam

PACKAGE = Path(oneadam.__file__).resolve().parent
LIMIT = 120
"""Seconds after which a process is taken for stuck; a shared machine may need many."""


def environment(source: Path = PACKAGE.parent, **extra: str) -> dict[str, str]:
    """The environment for a process that finds the package in the folder `source`."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**own, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", **extra}


def start(
    code: str,
    *arguments: object,
    source: Path = PACKAGE.parent,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a process that runs `code` with `sys.argv[1:]` set to the arguments."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment(source, **(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a process, hold it to its exit code, and return what it printed."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"stuck for {LIMIT} s; it said {out!r} and {err[-2000:]!r}") from None
    assert process.returncode == code, f"exit code {process.returncode}: {out}\n{err[-4000:]}"
    return out


def run(
    code: str,
    *arguments: object,
    source: Path = PACKAGE.parent,
    env: Mapping[str, str] | None = None,
    returns: int = 0,
) -> str:
    """Run `code` to its end and return what it printed."""
    return finish(start(code, *arguments, source=source, env=env), returns)

"""Running code in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).parent.parent


def run(code: str, caches: str | None = None, **variables: str) -> tuple[float, str]:
    """Return the seconds that a process took, its start and its end included, and its output.

    Args:
        code: what it runs.
        caches: the folder for compiled kernels; default: the user's.
        variables: of the environment, beside those of this process.
    """
    environment = {**os.environ, **variables}
    if caches is not None:
        environment["XDG_CACHE_HOME"] = environment["LOCALAPPDATA"] = caches
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=environment,
    )
    return time.perf_counter() - start, done.stdout

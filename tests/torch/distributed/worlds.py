"""Worlds: processes that speak gloo over loopback, each running the same list of jobs.

A world is started once, runs many jobs and leaves a file for each job and rank. Nothing that
happens inside of it can keep a test waiting for longer than `limit`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import processes
import torch

WORKER = Path(__file__).with_name("worker.py")
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
LIMIT = 240
"""Seconds for a whole world on a busy machine; processes that are left then are ended."""
PATIENCE = 30
"""Seconds that a rank waits for the others before its collective fails."""


class WorldError(AssertionError):
    """A rank failed; the message has its traceback and what it wrote to stderr."""


@dataclass(frozen=True)
class Job:
    """What every rank runs: `run` is "module:function", called with the options."""

    name: str
    run: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """What is left of a world that has come to its end."""

    folder: Path
    size: int
    exit_codes: tuple[int | None, ...]
    """None for a rank that had to be ended because the time was up."""

    def results(self, name: str) -> list[Any]:
        """What the job returned on each rank.

        Raises:
            WorldError: it failed on some rank.
        """
        broken = [rank for rank in range(self.size) if not self._file(name, rank, "pt").exists()]
        if broken:
            raise WorldError(
                f"{name!r} failed on rank {', '.join(map(str, broken))} of {self.size}\n"
                + "\n".join(self.account(name, rank) for rank in broken)
            )
        return [self.result(name, rank) for rank in range(self.size)]

    def result(self, name: str, rank: int) -> Any:
        """What the job returned on a rank where it did not fail."""
        # These files are this test's own.
        return torch.load(self._file(name, rank, "pt"), weights_only=False)

    def account(self, name: str, rank: int) -> str:
        """How a rank ended: traceback, exit code and the end of its stderr."""
        error = self._file(name, rank, "error")
        said = (self.folder / f"{rank}.stderr").read_text(errors="replace")
        code = self.exit_codes[rank]
        ended = "ended because the time was up" if code is None else f"exit code {code}"
        return (
            f"--- rank {rank}, {ended}\n"
            f"{error.read_text() if error.exists() else '(it left no traceback)'}\n"
            f"its stderr ends with:\n{said[-3000:]}"
        )

    def _file(self, name: str, rank: int, kind: str) -> Path:
        return self.folder / f"{name}.{rank}.{kind}"


def run(
    folder: Path,
    size: int,
    jobs: Sequence[Job],
    *,
    limit: float = LIMIT,
    patience: float = PATIENCE,
) -> World:
    """Run the jobs one after the other in `size` processes; failures are found in the results.

    Args:
        folder: an empty or missing one, for everything that the world leaves.
        size: the number of ranks.
        jobs: what to run; a job that fails does not keep the next one from running.
        limit: seconds until what still runs is ended.
        patience: seconds until a collective that others do not join fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "plan.json"
    plan.write_text(
        json.dumps({"size": size, "patience": patience, "jobs": [asdict(job) for job in jobs]})
    )
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        ranks.extend(_start(folder, plan, rank) for rank in range(size))
        codes = _wait(ranks, limit)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()
    return World(folder, size, codes)


def _start(folder: Path, plan: Path, rank: int) -> subprocess.Popen[bytes]:
    env = processes.environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME=LOOPBACK)
    said, complained = folder / f"{rank}.stdout", folder / f"{rank}.stderr"
    with said.open("wb") as out, complained.open("wb") as err:
        return subprocess.Popen(
            [sys.executable, str(WORKER), str(plan), str(rank)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )


def _wait(ranks: Sequence[subprocess.Popen[bytes]], limit: float) -> tuple[int | None, ...]:
    end = time.monotonic() + limit
    codes: list[int | None] = []
    for process in ranks:
        try:
            codes.append(process.wait(max(end - time.monotonic(), 0.0)))
        except subprocess.TimeoutExpired:
            codes.append(None)
    return tuple(codes)

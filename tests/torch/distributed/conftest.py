"""The worlds that tests look at: each is started once, when the first test asks for it."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

# Ranks find these modules beside their own, tests find them here.
sys.path.append(str(Path(__file__).parent))
pytest.register_assert_rewrite("judging", "worlds")

import judging  # noqa: E402
import plans  # noqa: E402
import worlds  # noqa: E402

Which = int | str
"""A world's number of ranks, or its name."""


@pytest.fixture(scope="session")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Which], worlds.World]:
    """Return a finished world; processes of pytest-xdist share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "worlds"
    folder.mkdir(exist_ok=True)
    known: dict[Which, worlds.World] = {}

    def world_of(which: Which) -> worlds.World:
        if which not in known:
            for earlier in plans.RESUMES_FROM.get(which, ()):
                world_of(earlier)
            known[which] = _shared(folder, which)
        return known[which]

    return world_of


def _shared(folder: Path, which: Which) -> worlds.World:
    """Run a world, or wait for the process that does."""
    place, codes = folder / str(which), folder / f"{which}.json"
    with (folder / f"{which}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not codes.exists():
            world = worlds.run(place, plans.ranks(which), plans.jobs(which, folder))
            codes.write_text(json.dumps(world.exit_codes))
    return worlds.World(place, plans.ranks(which), tuple(json.loads(codes.read_text())))


@pytest.fixture(scope="session")
def record(world_of: Callable[[Which], worlds.World]) -> Callable[[str, int], Mapping[str, Any]]:
    """Return what all ranks of a world agree that a job has come to."""
    return lambda name, size: judging.agreed(world_of(size).results(name))


@pytest.fixture(scope="session")
def judged(record: Callable[[str, int], Mapping[str, Any]]) -> Callable[[str, int], Any]:
    """Hold a job of a world to the definition and to a single process; return its record."""

    def judged(name: str, size: int) -> Mapping[str, Any]:
        result = record(name, size)
        judging.judge(result, plans.config_of(name, size))
        return result

    return judged

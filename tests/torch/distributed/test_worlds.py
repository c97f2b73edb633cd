"""The harness: a failure is told, a hanging world ends, and the next job has a clean world."""

from __future__ import annotations

import pytest
import worlds
from worlds import Job

WELL = Job("well", "jobs_failing:well")


def test_a_failure_on_one_rank_is_told_and_the_next_job_runs(tmp_path):
    jobs = [Job("broken", "jobs_failing:broken"), WELL]
    world = worlds.run(tmp_path, 2, jobs, patience=3)
    with pytest.raises(worlds.WorldError, match="failed on rank 0, 1 of 2") as failure:
        world.results("broken")
    assert "LookupError: rank 1 has lost its way" in str(failure.value)
    assert "Timed out" in str(failure.value) or "closed by peer" in str(failure.value)
    assert world.results("well") == [2, 2]
    assert world.exit_codes == (0, 0)


def test_a_world_that_hangs_is_ended(tmp_path):
    world = worlds.run(tmp_path, 2, [Job("blocked", "jobs_failing:blocked"), WELL], limit=8)
    assert world.exit_codes == (None, None)
    with pytest.raises(worlds.WorldError, match=r"failed on rank (0, )?1 of 2") as failure:
        world.results("blocked")
    assert "ended because the time was up" in str(failure.value)
    with pytest.raises(worlds.WorldError, match="failed on rank 0, 1 of 2"):
        world.results("well")


def test_what_a_rank_said_before_it_died_is_told(tmp_path):
    world = worlds.run(tmp_path, 1, [Job("died", "jobs_failing:died")])
    with pytest.raises(worlds.WorldError, match="failed on rank 0 of 1") as failure:
        world.results("died")
    assert "exit code 17" in str(failure.value)
    assert "these were its last words" in str(failure.value)

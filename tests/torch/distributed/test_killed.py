"""A rank is lost within a step: the others say so, and the job goes on from its checkpoint."""

from __future__ import annotations

import signal

import judging
import plans
import worlds
from jobs_killed import EXIT

PATIENCE = 8


def assert_survived(world, lost):
    """All but rank 1 have noticed, and have kept what they had."""
    assert world.exit_codes == tuple(lost if rank == 1 else 0 for rank in range(world.size))
    for rank in [0, *range(2, world.size)]:
        survivor = world.result("interrupted", rank)
        assert survivor["message"].startswith("RuntimeError: ")
        assert "resume from the last checkpoint" in survivor["message"]
        assert survivor["untouched"]
        assert survivor["calls"] == plans.LOST_IN - 1


def test_a_rank_is_killed(world_of):
    assert_survived(world_of(plans.LOST), -signal.SIGKILL)


def test_a_rank_exits(tmp_path):
    assert_survived(worlds.run(tmp_path, 2, [plans.interruption(tmp_path, "exits")]), EXIT)


def test_a_rank_stops(tmp_path):
    jobs = [plans.interruption(tmp_path, "stops")]
    assert_survived(worlds.run(tmp_path, 2, jobs, patience=PATIENCE), 0)


def test_the_job_goes_on_as_if_nothing_had_happened(record):
    never, resumed = record("uninterrupted", 3), record("resumed after a loss", 3)
    judging.judge(never, plans.CHECKPOINTED)
    assert resumed["loaded"]["counters"]["calls"] == plans.CHECKPOINT_EVERY
    assert resumed["loaded"]["counters"]["accumulated_calls"] == 1
    for part in ("values", "state", "steps", "counters"):
        assert judging.described(resumed[part]) == judging.described(never[part])

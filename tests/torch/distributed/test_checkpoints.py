"""A run saved on two ranks in the middle of a window goes on anywhere."""

from __future__ import annotations

import judging
import plans
import pytest

SAVED, COUNTERS = plans.SAVED_AFTER, {"calls": 5, "updates": 2, "accumulated_calls": 1}
PARTS = ("values", "state", "steps", "counters")
WAYS = pytest.mark.parametrize("way", plans.WAYS)
PLACES = pytest.mark.parametrize(
    ("size", "title"),
    [(1, "resumed"), (1, "resumed plainly"), (2, "resumed"), (3, "resumed")],
    ids=["1 rank", "not sharded", "2 ranks", "3 ranks"],
)


@WAYS
@PLACES
def test_what_was_saved_comes_back(record, way, size, title):
    saved, resumed = record("saved", 2), record(f"{title}, {way}", size)
    assert saved["counters"] == {**COUNTERS, "skipped_calls": 0}
    assert any(part["gradient_accumulator"].any() for part in saved["state"].values())
    for part in PARTS:
        assert judging.described(resumed["loaded"][part]) == judging.described(saved[part])
    assert resumed["read"] == (plans.RESUMED_UNTIL, 4, 4)


@WAYS
@PLACES
def test_it_goes_on_as_if_it_had_never_stopped(record, way, size, title):
    saved, resumed = record("saved", 2), record(f"{title}, {way}", size)
    gradients = [*saved["gradients"], *resumed["gradients"]]
    assert len(gradients) == plans.RESUMED_UNTIL
    whole = {**resumed, "initial": saved["initial"], "gradients": gradients}
    judging.judge(whole, plans.CHECKPOINTED)


@WAYS
def test_on_as_many_ranks_not_a_bit_differs(record, way):
    uninterrupted, resumed = record("uninterrupted", 2), record(f"resumed, {way}", 2)
    for part in PARTS:
        assert judging.described(resumed[part]) == judging.described(uninterrupted[part])


@pytest.mark.parametrize("part", ["average", "gradient_accumulator", "momentum"])
def test_a_part_that_is_not_loaded_would_be_noticed(record, part):
    saved, resumed = record("saved", 2), record("resumed, nested", 2)
    lost = {
        name: {**state, part: state[part] * 0.0}
        for name, state in resumed["loaded"]["state"].items()
    }
    assert judging.described(lost) != judging.described(saved["state"])


def test_the_loss_scale_comes_back(world_of):
    for never, interrupted in world_of(2).results("scaled, saved"):
        # Halved in the third call, doubled after the four finite ones that follow.
        assert never["scale"] == interrupted["scale"] == 1024.0
        for part in PARTS:
            assert judging.described(interrupted[part]) == judging.described(never[part])


def test_every_rank_learns_that_nothing_was_written(world_of):
    for message in world_of(2).results("unwritable"):
        assert "no/such/folder" in message

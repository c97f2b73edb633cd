"""What only one rank sees, all ranks act on."""

from __future__ import annotations

import judging
import plans
import pytest

SIZES = pytest.mark.parametrize("size", [2, 3])
FINITE_CALLS = plans.CALLS - 2


@SIZES
@pytest.mark.parametrize("name", ["skipped", "skipped, mixed"])
def test_all_ranks_skip(world_of, judged, name, size):
    assert judged(name, size)["counters"]["skipped_calls"] == 2
    for result in world_of(size).results(name):
        assert result["untouched"] == [True, True]


@SIZES
def test_all_ranks_raise_and_name_the_parameter(world_of, judged, size):
    judged("raised", size)
    for result in world_of(size).results("raised"):
        assert result["untouched"] == [True, True]
        for message in result["messages"]:
            assert message.startswith("FloatingPointError")
            assert "'wide.weight'" in message or " wide.weight" in message


@SIZES
@pytest.mark.parametrize("name", ["scaled by torch", "unscaled by torch", "scaled by us"])
def test_scalers_agree(world_of, judged, name, size):
    judged(name, size)
    results = world_of(size).results(name)
    # Calls 2 and 3 are broken; three finite ones in a row double the scale.
    wanted = [1024.0, 1024.0, 1024.0, 512.0, 256.0, 256.0, 256.0]
    for result in results:
        assert result["untouched"] == [True, True]
        assert result["counters"]["calls"] == FINITE_CALLS
        assert result["scales"] == wanted


@SIZES
@pytest.mark.parametrize("name", ["scaled in parts", "unscaled in parts"])
def test_ranks_that_share_nothing_agree_through_the_group(world_of, name, size):
    results = world_of(size).results(name)
    for result in results:
        assert result["untouched"] == [True, True]
        assert result["counters"][-1] == (FINITE_CALLS, FINITE_CALLS // 2)
    if name == "unscaled in parts":
        # Of a step that does the unscaling itself, torch's sharded scaler tells the others nothing.
        assert len({tuple(result["scales"]) for result in results}) == 1


@SIZES
def test_a_rank_with_nothing_counts_the_call_without_a_learning_rate(world_of, size):
    results = world_of(size).results("warming up")
    assert results[0]["rates"][0] == 0.0
    assert [result["shards"]["weight"] for result in results[1:]] == [(0, 3)] * (size - 1)
    result = judging.agreed(results)
    assert result["counters"]["calls"] == plans.CALLS
    rates = result["rates"]
    judging.judge(result, {"learning_rate": lambda calls: rates[calls], "global_clipnorm": 0.5})

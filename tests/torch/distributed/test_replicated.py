"""DistributedDataParallel: every rank updates everything, and needs to ask nobody."""

from __future__ import annotations

import pytest

SIZES = pytest.mark.parametrize("size", [2, 3])


@SIZES
@pytest.mark.parametrize("name", ["replicated", "replicated, each"])
def test_replicas_stay_equal_and_right(judged, name, size):
    judged(name, size)


@SIZES
def test_a_step_talks_to_nobody(world_of, size):
    for result in world_of(size).results("replicated"):
        assert result["collectives"] == {"dispatched": [], "backend": {}}

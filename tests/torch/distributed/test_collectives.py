"""How much a step says to the other ranks: one sum of a few numbers, or nothing."""

from __future__ import annotations

import pytest
from plans import COUNTED

SUMS = {"allreduce_", "all_reduce", "all_reduce_"}
PARAMETERS = 6
# Without a window, every call is an update.
WITHOUT_WINDOW = [
    name for name, config in COUNTED.items() if "gradient_accumulation_steps" not in config
]


def of_calls(world, job, name):
    """Per rank and call, from the second on: the first one makes the state."""
    return [call for result in world.results(job) for call in result[name]]


def assert_sums(call, times, elements):
    """So many all-reduces, each of at most so many elements, and nothing else."""
    assert [kind for kind, _ in call["dispatched"] if kind not in SUMS] == []
    assert len(call["dispatched"]) == times
    assert all(size <= elements for _, size in call["dispatched"])
    assert call["backend"] == ({"all_reduce": times} if times else {})


@pytest.mark.parametrize("job", ["counted, line", "counted, partly"])
@pytest.mark.parametrize("name", ["plain", "values"])
def test_without_norms_nothing_is_said(world_of, job, name):
    for call in of_calls(world_of(2), job, name):
        assert_sums(call, 0, 0)


@pytest.mark.parametrize("job", ["counted, line", "counted, partly"])
@pytest.mark.parametrize("name", ["global", "skipping", "global and skipping"])
def test_the_norm_of_the_model_is_one_sum(world_of, job, name):
    for call in of_calls(world_of(2), job, name):
        assert_sums(call, 1, 4)


@pytest.mark.parametrize("job", ["counted, line", "counted, partly"])
def test_norms_of_each_are_one_sum(world_of, job):
    for call in of_calls(world_of(2), job, "each"):
        assert_sums(call, 1, PARAMETERS + 4)


def test_a_call_that_only_accumulates_says_nothing(world_of):
    for result in world_of(2).results("counted, line"):
        for number, call in enumerate(result["recipe"]):
            assert_sums(call, number % 2, 4)


def test_replicas_are_not_asked(world_of):
    for name, elements in (("global", 4), ("each", PARAMETERS + 4)):
        for call in of_calls(world_of(4), "counted, replicas", name):
            assert_sums(call, 1, elements)


def test_two_dimensions_are_one_sum_each(world_of):
    for name, elements in (("global", 4), ("each", 8 + 4)):
        for call in of_calls(world_of(4), "counted, square", name):
            assert_sums(call, 2, elements)


def test_both_counters_count(world_of):
    for result in world_of(2).results("counted, known"):
        assert result["nothing"] == {"dispatched": [], "backend": {}}
        assert result["all_reduce"] == {
            "dispatched": [("allreduce_", 5)],
            "backend": {"all_reduce": 1},
        }
        assert result["behind the back"]["backend"] == {"all_reduce": 1}
        assert result["norm of a sharded tensor"]["backend"] == {"all_reduce": 1}
        assert result["gathering"]["backend"] == {"all_gather": 1}
        assert result["objects"]["backend"] == {"all_gather": 2}
        for what in ("all_reduce", "behind the back", "gathering"):
            with pytest.raises(AssertionError):
                assert_sums(result[what], 0, 0)
        with pytest.raises(AssertionError):
            assert_sums(result["all_reduce"], 1, 4)
        with pytest.raises(AssertionError):
            assert_sums(result["gathering"], 1, 100)

"""Plain parameters divided among the ranks: `process_group` makes norms those of the model."""

from __future__ import annotations

import judging
import plans
import pytest

SIZES = pytest.mark.parametrize("size", [2, 3])


@SIZES
@pytest.mark.parametrize(
    "name",
    [
        "redundancy-free",
        "redundancy-free, each",
        "redundancy-free, resumed",
        "by hand",
        "by hand, each",
    ],
)
def test_norms_are_those_of_the_whole_model(judged, name, size):
    judged(name, size)


@SIZES
def test_torch_divides_the_model(world_of, size):
    own = [result["own"] for result in world_of(size).results("redundancy-free")]
    assert sum(own) == 6
    assert max(own) < 6


@SIZES
def test_resuming_from_the_consolidated_state_changes_no_bit(record, size):
    uninterrupted = record("redundancy-free", size)
    resumed = record("redundancy-free, resumed", size)
    for part in ("values", "state", "steps", "counters"):
        assert judging.described(resumed[part]) == judging.described(uninterrupted[part])


@SIZES
def test_without_the_group_the_norms_are_not_the_models(world_of, size):
    results = world_of(size).results("by hand, ungrouped")
    with pytest.raises(judging.DisagreementError, match="spacings off"):
        judging.judge(results[0], plans.config_of("by hand, ungrouped", size))


@SIZES
@pytest.mark.parametrize("name", ["by hand", "by hand, each"])
def test_an_update_is_one_sum_for_the_model(world_of, name, size):
    for result in world_of(size).results(name):
        for number, call in enumerate(result["collectives"]):
            # Every second call only accumulates.
            assert call["backend"] == ({"all_reduce": 1} if number % 2 else {})
            assert [elements for _, elements in call["dispatched"]] == [1] * (number % 2)


@SIZES
def test_a_rank_without_parameters_takes_part(world_of, size):
    first, *others = world_of(size).results("without parameters")
    assert [other["values"] for other in others] == [[]] * (size - 1)
    assert {tuple(result["counters"]) for result in (first, *others)} == {(1, 1)}
    # m = 0.1 g, v = 0.001 g²: the first step is the learning rate.
    assert first["values"][0].tolist() == pytest.approx([0.9] * 4, abs=1e-5)

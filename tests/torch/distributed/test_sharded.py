"""FSDP2: the parts of an update, put together, are the update of the whole."""

from __future__ import annotations

import math

import judging
import plans
import pytest

SIZES = pytest.mark.parametrize("size", [2, 3])


@SIZES
@pytest.mark.parametrize(
    "name",
    [
        "sharded",
        "sharded, each",
        "sharded, values",
        "sharded, plain",
        "bfloat16",
        "computed in bfloat16",
        "mixed",
        "mixed, each",
    ],
)
def test_shards_are_updated_as_the_whole(judged, name, size):
    judged(name, size)


def test_shards_are_uneven_and_some_are_empty(world_of):
    shards = [result["shards"] for result in world_of(3).results("sharded")]
    assert [part["wide.weight"] for part in shards] == [(2, 7), (2, 7), (1, 7)]
    assert [part["middle.weight"] for part in shards] == [(2, 5), (2, 5), (0, 5)]
    assert [part["narrow.bias"] for part in shards] == [(1,), (0,), (0,)]


@pytest.mark.parametrize("name", ["hybrid", "hybrid, each"])
def test_replicas_of_shards_count_once(judged, name):
    judged(name, 4)


@pytest.mark.parametrize("name", ["sharded", "mixed", "skipped"])
def test_clipping_acts_in_some_updates_only(record, name):
    gradients = record(name, 3)["gradients"]
    finite = [g for g in gradients if all(x is None or x.isfinite().all() for x in g.values())]
    norms = [
        math.hypot(*(0.5 * float((a + b).norm()) for a, b in pairs(first, second)))
        for first, second in zip(finite[::2], finite[1::2], strict=False)
    ]
    limit = plans.config_of(name, 3)["global_clipnorm"]
    assert min(norms) < 0.8 * limit
    assert max(norms) > 1.2 * limit


def pairs(first, second):
    """The gradients of two calls, where both have one."""
    return [(g, second[name]) for name, g in first.items() if None not in (g, second[name])]


@SIZES
@pytest.mark.parametrize("name", ["by rank", "by rank, each"])
def test_clipping_each_part_by_itself_would_be_noticed(record, name, size):
    with pytest.raises(judging.DisagreementError, match="spacings off"):
        judging.judge(record(name, size), plans.config_of(name, size))


@SIZES
def test_without_clipping_parts_may_be_updated_by_themselves(judged, size):
    judged("by rank, plain", size)


@SIZES
def test_a_missing_gradient_is_told_once_on_every_rank(world_of, size):
    for result in world_of(size).results("mixed"):
        (message,) = result["warnings"]
        assert "body.middle.bias" in message


@SIZES
def test_windows_close_early_and_averages_are_taken_over(judged, size):
    result = judged("closed", size)
    parts = {key: judging.described(result[key]) for key in ("before", "inside", "after", "values")}
    assert parts["before"] == parts["after"]
    assert parts["inside"] == parts["values"] != parts["before"]


@SIZES
def test_state_that_lies_elsewhere_would_be_noticed(world_of, size):
    wanted = ["wide.weight/exp_avg", "wide.weight/average"]
    assert world_of(size).results("misplaced") == [wanted] * size


@SIZES
@pytest.mark.parametrize("name", ["sharded", "mixed"])
def test_metrics_are_those_of_the_whole(record, name, size):
    result = record(name, size)
    calls = result["gradients"][4:6]
    norm = math.hypot(*(0.5 * float((a + b).norm()) for a, b in pairs(*calls)))
    assert result["metrics"]["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert result["metrics"]["clip_scale"] == pytest.approx(min(1.0, 20.0 / norm), rel=1e-5)

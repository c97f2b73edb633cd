"""Tensor parallelism: columns, rows, partial sums, and two dimensions at once."""

from __future__ import annotations

import pytest

SIZES = pytest.mark.parametrize("size", [2, 3])


@SIZES
@pytest.mark.parametrize("name", ["tensor parallel", "tensor parallel, each"])
def test_columns_and_rows_are_updated_as_the_whole(judged, name, size):
    layouts = judged(name, size)["layouts"]
    assert {"(Shard(dim=0),)", "(Shard(dim=1),)", "(Replicate(),)", "plain"} <= set(layouts)


@SIZES
def test_partial_sums_of_gradients_are_added_up(judged, size):
    assert "(Partial(sum),)" in judged("sequence parallel", size)["layouts"]


@pytest.mark.parametrize("name", ["square", "square, each"])
def test_shards_of_shards_are_updated_as_the_whole(judged, name):
    layouts = judged(name, 4)["layouts"]
    assert {"(_StridedShard(dim=0, sf=2), Shard(dim=0))", "(Shard(dim=0),)"} <= set(layouts)

"""What judges the worlds, held to account: records that are wrong in one place."""

from __future__ import annotations

import copy

import judging
import pytest
import torch
from plans import RECIPE
from recording import Recorder
from subject import Adam
from training import Body, feed, made


@pytest.fixture(scope="module")
def record():
    """A right one, of a single process, with a half-full window."""
    model = made(Body)
    recorder = Recorder(model.named_parameters(), Adam(model.named_parameters(), **RECIPE))
    recorder.train(range(5), lambda call: feed(recorder.named.items(), call))
    return recorder.result()


def test_a_right_record_passes(record):
    judging.judge(record, RECIPE)
    assert judging.agreed([record, copy.deepcopy(record)]) is record


def wrong_value(record):
    record["values"]["wide.weight"][1, 2] *= 1.0 + 1e-4


def wrong_state(what):
    def wrong(record):
        record["state"]["middle.bias"][what][3] *= 1.001

    wrong.__name__ = what
    return wrong


def without_average(record):
    del record["state"]["middle.bias"]["average"]


def narrow_momentum(record):
    momentum = record["state"]["middle.bias"]["momentum"]
    record["state"]["middle.bias"]["momentum"] = momentum.bfloat16()


def nan(record):
    record["values"]["narrow.bias"].fill_(torch.nan)


def another_count(record):
    record["counters"]["accumulated_calls"] = 0


def another_step(record):
    record["steps"]["wide.bias"] += 1.0


def misplaced(record):
    record["misplaced"] = ["wide.bias/exp_avg"]


def another_gradient(record):
    record["gradients"][1]["wide.bias"] *= 1.01


WRONG = [
    wrong_value,
    *map(wrong_state, ("momentum", "velocity", "average", "gradient_accumulator")),
    without_average,
    narrow_momentum,
    nan,
    another_count,
    another_step,
    misplaced,
    another_gradient,
]


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_a_wrong_record_is_rejected(record, spoil):
    spoilt = copy.deepcopy(record)
    spoil(spoilt)
    with pytest.raises(judging.DisagreementError):
        judging.judge(spoilt, RECIPE)


@pytest.mark.parametrize("key", ["global_clipnorm", "weight_decay", "use_ema"])
def test_another_recipe_is_rejected(record, key):
    with pytest.raises(judging.DisagreementError):
        judging.judge(record, {**RECIPE, key: None if key != "use_ema" else False})


@pytest.mark.parametrize("spoil", [wrong_value, without_average, another_count, another_step])
def test_ranks_that_disagree_are_noticed(record, spoil):
    spoilt = copy.deepcopy(record)
    spoil(spoilt)
    with pytest.raises(judging.DisagreementError, match="ranks 0 and 1 disagree"):
        judging.agreed([record, spoilt])

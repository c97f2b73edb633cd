"""Which variables `exclude_from_weight_decay` exempts."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneadam._exclusions import Exclusions

SOME = Exclusions().extended(
    names=["dense/kernel"], var_names=["bias", re.compile(r"norm\d$", re.IGNORECASE)]
)


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("dense/kernel", True),
        ("dense/kernel2", False),
        ("other/dense/kernel", False),
        ("dense/bias", True),
        ("biases/7", True),
        ("Bias", False),
        ("block/NORM1", True),
        ("block/norm1/scale", False),
        ("", False),
    ],
)
def test_names_are_exact_parts_anywhere_and_patterns_searched(name: str, covered: bool) -> None:
    assert SOME.covers(name) is covered


def test_nothing_is_covered_at_first() -> None:
    assert not Exclusions().covers("bias")


def test_a_dot_in_a_part_is_a_dot() -> None:
    assert not Exclusions().extended(var_names=["a.c"]).covers("abc")


def test_extending_keeps_what_was_there_and_leaves_the_first_alone() -> None:
    more = SOME.extended(var_names=["scale"])
    assert more.covers("dense/bias")
    assert more.covers("block/scale")
    assert not SOME.covers("block/scale")


def test_order_and_repetition_do_not_matter() -> None:
    one = Exclusions().extended(names=["x", "y"], var_names=["a", "b", re.compile("c")])
    other = Exclusions().extended(var_names=[re.compile("c"), "b"])
    other = other.extended(names=("y", "x", "y"), var_names=(p for p in ["a", "b"]))
    assert one == other
    assert hash(one) == hash(other)
    assert one != one.extended(names=["z"])
    assert one != one.extended(var_names=[re.compile("c", re.IGNORECASE)])


@pytest.mark.parametrize(
    ("arguments", "argument", "error"),
    [
        ({"var_names": "bias"}, "var_names", TypeError),
        ({"var_names": re.compile("bias")}, "var_names", TypeError),
        ({"var_names": b"bias"}, "var_names", TypeError),
        ({"var_names": 3}, "var_names", TypeError),
        ({"var_names": None}, "var_names", TypeError),
        ({"var_names": {"bias": True}}, "var_names", TypeError),
        ({"var_names": ["ok", 3]}, "var_names", TypeError),
        ({"var_names": [re.compile(b"bias")]}, "var_names", TypeError),
        ({"var_names": ["ok", ""]}, "var_names", ValueError),
        ({"var_names": [re.compile("")]}, "var_names", ValueError),
        ({"names": "kernel"}, "names", TypeError),
        ({"names": [re.compile("kernel")]}, "names", TypeError),
        ({"names": [""]}, "names", ValueError),
    ],
)
def test_mistakes_are_refused_by_name(
    arguments: dict[str, object], argument: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"^{argument} must be .*received .*Pass for example"):
        Exclusions().extended(**arguments)  # type: ignore[arg-type]


NAMES = st.text(min_size=1, max_size=8)
PATTERNS = st.builds(
    re.compile,
    st.sampled_from(["a", "^a.*z$", "(?i)bias", "[0-9]+"]),
    st.sampled_from([0, re.IGNORECASE, re.MULTILINE | re.DOTALL, re.ASCII, re.VERBOSE]),
)


@given(st.lists(NAMES), st.lists(st.one_of(NAMES, PATTERNS)), NAMES)
def test_a_configuration_survives_strict_json(
    names: list[str], var_names: list[str | re.Pattern[str]], name: str
) -> None:
    exclusions = Exclusions().extended(names=names, var_names=var_names)
    config = json.loads(json.dumps(exclusions.to_config(), allow_nan=False))
    before = json.dumps(config)
    again = Exclusions.from_config(config)
    assert again == exclusions
    assert again.covers(name) == exclusions.covers(name)
    assert json.dumps(config) == before


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ([], TypeError, "exclusions must be a dict"),
        ({"name": ["x"]}, ValueError, "received also .*name"),
        ({"names": "x"}, TypeError, "names"),
        ({"substrings": [re.compile("x")]}, TypeError, "substrings"),
        ({"patterns": ["x"]}, TypeError, "patterns"),
        ({"patterns": [{"pattern": "("}]}, ValueError, "valid regular expressions"),
        ({"patterns": [{"pattern": "x", "flags": "i"}]}, ValueError, "valid regular expressions"),
        ({"patterns": [{"pattern": ""}]}, ValueError, "empty"),
    ],
)
def test_a_broken_configuration_is_refused(
    config: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Exclusions.from_config(config)  # type: ignore[arg-type]

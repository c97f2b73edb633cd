"""Whether dicts and lists still hold the same objects: asked through C, and from Python."""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneadam._engines.cpu import contents
from oneadam._engines.cpu.compiled import compiled
from oneadam._engines.cpu.contents import Contents


@pytest.fixture(params=["kernels", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have containers read by the kernels, or from Python; both must find out the same."""
    if request.param == "python":
        monkeypatch.setattr(contents, "_IS_CPYTHON", False)
    elif not contents._IS_CPYTHON:
        pytest.skip("only CPython has its C API")
    return str(request.param)


class Thing:
    """Equal to all others of its kind, and the same as none."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing)

    __hash__ = None  # type: ignore[assignment]


def things(number: int) -> dict[str, Any]:
    return {f"key {i}": Thing() for i in range(number)}


def exchange(one: dict[str, Any]) -> None:
    one["key 1"] = Thing()


def move_to_the_end(one: dict[str, Any]) -> None:
    one["key 0"] = one.pop("key 0")


def put_first(one: dict[str, Any]) -> None:
    before = dict(one)
    one.clear()
    one |= {"new": Thing()} | before


def swap(one: dict[str, Any]) -> None:
    one["key 0"], one["key 2"] = one["key 2"], one["key 0"]


def fill_anew(one: dict[str, Any]) -> None:
    one.clear()
    one.update(things(3))


def insert_again_with_another(one: dict[str, Any]) -> None:
    del one["key 2"]
    one["key 2"] = Thing()


CHANGES_OF_DICTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "exchanged for an equal one": exchange,
    "exchanged for one that was there": lambda one: one.update({"key 1": one["key 0"]}),
    "exchanged for None": lambda one: one.update({"key 2": None}),
    "swapped": swap,
    "added": lambda one: one.update(new=Thing()),
    "one that was there added": lambda one: one.update(new=one["key 0"]),
    "put first": put_first,
    "set by default": lambda one: one.setdefault("new", None),
    "first removed": lambda one: one.pop("key 0"),
    "last removed": lambda one: one.popitem(),
    "moved to the end": move_to_the_end,
    "inserted again with another": insert_again_with_another,
    "emptied": lambda one: [one.popitem() for _ in range(3)],
    "cleared": lambda one: one.clear(),
    "filled anew": fill_anew,
}
MAKERS: dict[str, Callable[[], dict[str, Any]]] = {
    "dict": dict,
    "defaultdict": lambda: defaultdict(dict),
    "OrderedDict": OrderedDict,
    "subclass": type("Own", (dict,), {}),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("change", CHANGES_OF_DICTS)
def test_every_change_of_a_dict_is_noticed(change: str, maker: str, place: int) -> None:
    dicts = [things(3), things(3), things(3)]
    dicts[place] = MAKERS[maker]()
    dicts[place].update(things(3))
    known = Contents(dicts, [])
    assert known.are_same()
    CHANGES_OF_DICTS[change](dicts[place])
    assert not known.are_same()
    assert not known.are_same()
    assert Contents(dicts, []).are_same()


CHANGES_OF_LISTS: dict[str, Callable[[list[Any]], Any]] = {
    "grown": lambda one: one.append(Thing()),
    "grown by one that was there": lambda one: one.append(one[-1]),
    "grown at the front": lambda one: one.insert(0, Thing()),
    "shrunk": lambda one: one.pop(),
    "shrunk at the front": lambda one: one.pop(0),
    "reordered": lambda one: one.reverse(),
    "exchanged for an equal one": lambda one: one.__setitem__(1, Thing()),
    "exchanged for one that was there": lambda one: one.__setitem__(1, one[0]),
    "cleared": lambda one: one.clear(),
    "filled anew": lambda one: one.__setitem__(slice(None), [Thing() for _ in one]),
    "doubled": lambda one: one.extend(one),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("maker", [list, type("Own", (list,), {})], ids=["list", "subclass"])
@pytest.mark.parametrize("change", CHANGES_OF_LISTS)
def test_every_change_of_a_list_is_noticed(change: str, maker: Any, place: int) -> None:
    lists = [[Thing() for _ in range(3)] for _ in range(3)]
    lists[place] = maker(lists[place])
    known = Contents([], lists)
    assert known.are_same()
    CHANGES_OF_LISTS[change](lists[place])
    assert not known.are_same()
    assert not known.are_same()
    assert Contents([], lists).are_same()


@pytest.mark.usefixtures("way")
def test_what_is_undone_is_no_change() -> None:
    one, items = things(5), [Thing(), Thing()]
    known, before = Contents([one], [items]), dict(one)
    for _ in range(3):
        one["key 3"], last = Thing(), items.pop()
        assert not known.are_same()
        one["key 3"] = before["key 3"]
        assert not known.are_same()
        items.append(last)
        assert known.are_same()
        one.clear()
        assert not known.are_same()
        one.update(before)
        assert known.are_same()


@pytest.mark.usefixtures("way")
def test_a_key_inserted_again_with_its_value_is_no_change_where_it_was_the_last() -> None:
    one = things(3)
    known = Contents([one], [])
    one["key 2"] = one.pop("key 2")
    assert known.are_same()
    one["key 1"] = one.pop("key 1")
    assert not known.are_same()


@pytest.mark.usefixtures("way")
def test_there_may_be_none_of_them_and_nothing_in_them() -> None:
    assert Contents([], []).are_same()
    empty: tuple[dict[str, Any], list[Any]] = ({}, [])
    known = Contents([{}, empty[0], {}], [[], empty[1], []])
    assert known.are_same()
    empty[0]["new"] = None
    assert not known.are_same()
    del empty[0]["new"]
    assert known.are_same()
    empty[1].append(None)
    assert not known.are_same()


@pytest.mark.usefixtures("way")
def test_the_missing_values_that_a_defaultdict_makes_are_noticed() -> None:
    one: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    known = Contents([one], [])
    assert one.get("new") is None
    assert known.are_same()
    assert one["new"] == {}
    assert not known.are_same()


@pytest.mark.usefixtures("way")
def test_what_is_in_the_values_is_not_looked_at() -> None:
    inner: dict[str, Any] = {}
    known = Contents([{"inner": inner}], [[inner]])
    inner["new"] = None
    assert known.are_same()


@pytest.mark.usefixtures("way")
def test_the_same_container_may_be_given_twice() -> None:
    one, items = things(2), [Thing()]
    known = Contents([one, {"one": one, "again": one}, one], [items, items])
    assert known.are_same()
    one["new"] = None
    assert not known.are_same()


@pytest.mark.usefixtures("way")
def test_the_sequences_that_it_is_made_of_may_change_afterwards() -> None:
    dicts, lists = [things(3), things(2)], [[Thing()]]
    known = Contents(dicts, lists)
    dicts.pop()
    lists.clear()
    gc.collect()
    assert known.are_same()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("number", [1, 5, 6, 7, 12, 13, 14, 300])
def test_one_change_among_many_is_noticed(number: int) -> None:
    dicts, lists = [things(1 + i % 4) for i in range(number)], [[Thing()] for _ in range(number)]
    known = Contents(dicts, lists)
    assert known.are_same()
    for row in range(number):
        before = dicts[row]["key 0"]
        dicts[row]["key 0"] = Thing()
        assert not known.are_same()
        dicts[row]["key 0"] = before
        item, lists[row][0] = lists[row][0], Thing()
        assert not known.are_same()
        lists[row][0] = item
    assert known.are_same()


@pytest.mark.usefixtures("way")
def test_tables_may_move() -> None:
    dicts = [things(3) for _ in range(300)]
    kept = [dict(one) for one in dicts]
    known = Contents(dicts, [])
    for row, one in enumerate(dicts):
        for number in range(row):
            one[f"more {number}"] = None
    assert not known.are_same()
    for row, one in enumerate(dicts):
        for number in range(row):
            del one[f"more {number}"]
    assert known.are_same()  # with holes where the others were
    for one, before in zip(dicts, kept, strict=True):
        one.clear()
        one.update(before)
    assert known.are_same()
    dicts[299]["key 2"] = Thing()
    assert not known.are_same()


@pytest.mark.usefixtures("way")
def test_dicts_that_share_their_keys_are_read_as_well() -> None:
    owners = [Thing() for _ in range(20)]
    for owner in owners:
        vars(owner).update(things(3))
    known = Contents([vars(owner) for owner in owners], [])
    assert known.are_same()
    setattr(owners[7], "key 1", Thing())
    assert not known.are_same()
    known = Contents([vars(owner) for owner in owners], [])
    delattr(owners[19], "key 0")
    assert not known.are_same()


@pytest.mark.usefixtures("way")
def test_an_object_in_the_place_of_one_that_was_let_go_is_noticed() -> None:
    one: dict[str, Any] = {"key": Thing()}
    items: list[Any] = [Thing()]
    known = Contents([one], [items])
    for _ in range(100):  # as often as not, a new object lies where the last one was freed
        one["key"] = None
        one["key"] = Thing()
        assert not known.are_same()
    known = Contents([], [items])
    for _ in range(100):
        items.pop()
        items.append(Thing())
        assert not known.are_same()


EDITS = ("set", "set a known one", "pop", "pop the last", "clear", "move", "many", "undo", "item",
         "append", "remove", "reverse", "empty")  # fmt: skip


def edit(kind: str, one: dict[Any, Any], items: list[Any], rng: random.Random, new: Any) -> None:
    keys = list(one)
    key = rng.choice(keys) if keys else "first"
    if kind == "set":
        one[key] = Thing()
    elif kind == "set a known one":
        one[next(new)] = one.get(key)
    elif kind == "pop":
        one.pop(key, None)
    elif kind == "pop the last" and keys:
        one.popitem()
    elif kind == "clear":
        one.clear()
    elif kind == "move" and keys:
        one[key] = one.pop(key)
    elif kind == "many":
        for number in range(rng.randrange(100)):
            one["many", number] = None
        for number in range(rng.randrange(100)):
            one.pop(("many", number), None)
    elif kind == "item" and items:
        items[rng.randrange(len(items))] = Thing()
    elif kind == "append":
        items.append(rng.choice([Thing(), *items]))
    elif kind == "remove" and items:
        items.pop(rng.randrange(len(items)))
    elif kind == "reverse":
        items.reverse()
    elif kind == "empty":
        items.clear()


def compare(edits: list[str], number: int, rng: random.Random) -> list[bool]:
    """What Python says after each edit, once it has been compared with what the kernels say."""
    makers = [*MAKERS.values()]
    dicts = [rng.choice(makers)() for _ in range(number)]
    for one in dicts:
        one.update(things(rng.randrange(8)))
    lists = [[Thing() for _ in range(rng.randrange(4))] for _ in range(number)]
    known, said, new = Contents(dicts, lists), [], count()
    before = [dict(one) for one in dicts], [list(items) for items in lists]
    for kind in edits:
        if kind == "undo":
            for one, values in zip(dicts, before[0], strict=True):
                one.clear()
                one.update(values)
            for items, values_of_list in zip(lists, before[1], strict=True):
                items[:] = values_of_list
        else:
            row = rng.randrange(number)
            edit(kind, dicts[row], lists[rng.randrange(number)], rng, new)
        said.append(known._are_same_to_python())
        assert known.are_same() == said[-1]
    return said


@given(st.lists(st.sampled_from(EDITS), max_size=12), st.integers(1, 20), st.randoms())
def test_the_kernels_say_what_python_says(
    edits: list[str], number: int, rng: random.Random
) -> None:
    compare(edits, number, rng)


def test_the_comparison_sees_both_answers() -> None:
    def said(*edits: str) -> set[bool]:
        return {compare([*edits], 5, random.Random(seed))[-1] for seed in range(20)}

    for kind in ("set", "set a known one", "append"):
        assert said(kind) == {False}
    for kind in set(EDITS) - {"undo", "append"}:
        assert False in said(kind), kind
        assert said(kind, "undo") == {True}


@pytest.mark.skipif(not contents._IS_CPYTHON, reason="only CPython has its C API")
@pytest.mark.parametrize("kernel", ["compare_dicts", "compare_lists"])
def test_the_comparison_finds_a_kernel_that_notices_nothing(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compiled

    def broken(name: str, parameters: tuple[str, ...]) -> Callable[..., None]:
        if name != kernel:
            return whole(name, parameters)

        def says_yes(*arguments: int) -> None:
            ctypes.c_int64.from_address(arguments[-1]).value = 1

        return says_yes

    monkeypatch.setattr(contents, "compiled", broken)
    kind = "set" if kernel == "compare_dicts" else "append"
    with pytest.raises(AssertionError):
        compare([kind], 3, random.Random(7))


def test_nothing_is_kept_longer_than_it_must_be(way: str) -> None:
    value, item = Thing(), Thing()
    one: dict[str, Any] = {"value": value, "none": None}
    items: list[Any] = [item, None]
    inside = [one, items, value, item]
    free = list(map(sys.getrefcount, inside))
    known = Contents([one], [items])
    held = list(map(sys.getrefcount, inside))
    assert all(now > before for now, before in zip(held, free, strict=True))
    for _ in range(1000):
        assert known.are_same()
    assert list(map(sys.getrefcount, inside)) == held
    one["new"] = None
    for _ in range(1000):
        assert not known.are_same()
    del one["new"]
    items.append(None)
    for _ in range(1000):
        assert not known.are_same()
    assert list(map(sys.getrefcount, inside)) == held
    del known
    gc.collect()
    assert list(map(sys.getrefcount, inside)) == free


@pytest.mark.usefixtures("way")
def test_what_it_holds_goes_with_it() -> None:
    gone = weakref.ref(value := Thing())
    one, items = {"value": value}, [value]
    known = Contents([one], [items])
    del value
    one.clear()
    items.clear()
    assert not known.are_same()
    assert gone() is not None
    del known
    gc.collect()
    assert gone() is None


def pending() -> bool:
    """Whether an exception waits to be raised."""
    occurred = ctypes.pythonapi.PyErr_Occurred
    occurred.restype = ctypes.c_void_p
    return occurred() is not None


@pytest.mark.usefixtures("way")
def test_no_exception_waits_afterwards() -> None:
    for change_dict in CHANGES_OF_DICTS.values():
        one = things(3)
        known = Contents([one, things(3)], [])
        change_dict(one)
        assert not known.are_same()
        assert not pending()
    for change_list in CHANGES_OF_LISTS.values():
        items = [Thing(), Thing()]
        known = Contents([], [items, [Thing()]])
        change_list(items)
        assert not known.are_same()
        assert not pending()
    assert Contents([things(3)], [[Thing()]]).are_same()
    assert not pending()

"""Parameters that lie on several devices: nothing is gathered, and everything comes out the same.

All that needs eight devices happens in a process that has them, `sharded.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import processes
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

HERE = Path(__file__).parent
DEVICES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
FULL: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.1,
    "clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 2,
    "gradient_accumulation_steps": 3,
}
CLIPS = {"global_clipnorm": 1.0}
SKIPS = {"on_nonfinite": "skip"}
SCALED: dict[str, Any] = {"loss_scale": {"initial_scale": 2.0}}

FEW = 16
"""Spacings of float32. Norms add up in another order, and what their roundings make of the
clipping factor goes through the moments twice: at most 9 were seen, where definition.md has 64."""
FLIPPED = 1.5
"""Spacings of a narrow dtype, as in tolerances.py: one where a rounding falls to the other side."""
SCALARS = 16
"""Bytes: the few numbers of a state that a step makes anew, and does not write in place."""

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Asks the process with eight devices."""
    path = ":".join(map(str, (processes.PACKAGE.parent, HERE, HERE.parent)))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(HERE / "sharded.py")],
        env=processes.environment(**{**DEVICES, "PYTHONPATH": path}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def answered() -> Any:
        stuck = threading.Timer(processes.LIMIT, process.kill)
        stuck.start()
        line = process.stdout.readline()
        stuck.cancel()
        assert line, f"the process with eight devices has ended, or took {processes.LIMIT} s"
        is_right, answer = json.loads(line)
        assert is_right, answer
        return answer

    def ask(question: str, *arguments: Any) -> dict[str, Any]:
        print(json.dumps([question, arguments]), file=process.stdin, flush=True)
        return answered()

    with process:
        assert answered() == 8
        yield ask
        process.stdin.close()


def agree(facts: dict[str, Any]) -> None:
    """Hold what two runs came to, which have both gone somewhere, to each other."""
    apart = dict(facts["apart"])
    assert apart.pop("float32") <= FEW
    assert apart.pop("bfloat16", 0.0) <= FLIPPED
    assert not any(apart.values()), "integers differ"
    assert facts["moved"]


@pytest.mark.parametrize(
    ("layout", "config", "way"),
    [
        ("grid", {"use_ema": True, "ema_overwrite_frequency": 2, "amsgrad": True}, "step"),
        ("grid", CLIPS, "step"),
        ("grid", SKIPS, "step"),
        ("grid", FULL, "step"),
        ("grid", {**SCALED, "gradient_accumulation_steps": 2}, "update"),
        ("grid", {**SKIPS, "use_ema": True, "gradient_accumulation_steps": 2}, "update"),
        ("rows", CLIPS, "step"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "plain",
)
def test_a_step_reduces_a_few_numbers_and_nothing_else(
    ask: Ask, layout: str, config: dict[str, Any], way: str
) -> None:
    facts = ask("compiled", layout, config, way)
    assert facts["others"] == []
    assert facts["largest"] < 400, "something of the size of a whole parameter"
    # The scalars of a step that writes in place are few; the smallest array has twice as much.
    assert 0 <= facts["not_in_place"] <= SCALARS
    # One for each set of axes that something is sharded over: the parameters have so many.
    sets = {"grid": 3, "rows": 1}[layout]
    norms = not {"clipnorm", "global_clipnorm", "on_nonfinite"}.isdisjoint(config)
    judged = not {"loss_scale", "on_nonfinite"}.isdisjoint(config)
    # Norms outside the range of squares are found by a second reading, in a branch.
    assert facts["all_reduces"] == (2 * sets if norms else sets if judged else 0)
    # Where calls are accumulated, norms that only clip belong to the branch that updates.
    on_all_calls = judged or (norms and "gradient_accumulation_steps" not in config)
    assert facts["always"] == (sets if on_all_calls else 0)
    assert facts["reduced"] <= 4, "more numbers than there are parameters"
    for when in ("init", "jitted init", "after"):
        assert facts[when] == [], f"not as the parameters lie, {when}"
    assert facts["again"] == {}, "traced or compiled again"
    agree(facts)


def test_what_gathers_is_found(ask: Ask) -> None:
    facts = ask("bad_programs")
    assert facts["gathers"]["others"] == ["all-gather"]
    assert facts["gathers"]["largest"] == 400
    assert facts["rolls"]["others"] == ["collective-permute"]
    assert facts["reduces an array"]["reduced"] == 25
    assert (facts["reduces a number"]["reduced"], facts["reduces a number"]["always"]) == (1, 1)
    assert facts["reduces a number"]["all_reduces"] == 1
    nothing = {"reduced": 0, "all_reduces": 0, "always": 0, "others": [], "largest": 50}
    assert facts["nothing"] == nothing
    assert facts["in a branch"]["all_reduces"] == 1
    assert facts["in a branch"]["always"] == 0


def test_what_differs_is_found(ask: Ask) -> None:
    facts = ask("bad_runs")
    assert facts["one spacing"] == {"float32": 1.0, "bfloat16": 0.0, "int32": 0.0}
    assert facts["narrow"] == {"float32": 0.0, "bfloat16": 1.0, "int32": 0.0}
    assert facts["count"] == {"float32": 0.0, "bfloat16": 0.0, "int32": 1.0}
    assert len(facts["unlike"]) == 1
    assert "kernel" in facts["unlike"][0]
    assert facts["compiled"]["backend_compile"] >= 1
    assert facts["copies"] == ["['differs']"]


def test_shardings_may_be_a_part_of_types(ask: Ask) -> None:
    facts = ask("in_explicit_mode", {**FULL, **SCALED})
    assert facts["types"]["both"] == "float32[32@data,14@model]"
    assert facts["types"]["gain"] == "float32[5]"
    for when in ("init", "jitted init", "after"):
        assert facts[when] == [], f"not as the parameters lie, {when}"
    assert facts["first"]["backend_compile"] == 1
    assert facts["again"] == {}, "traced or compiled again"
    agree(facts)


def test_gradients_may_lie_elsewhere(ask: Ask) -> None:
    facts = ask("gradients_elsewhere")
    assert facts["after"] == []
    agree(facts)


class TestStepsOfEachDevice:
    """Inside `shard_map` and `pmap` a device sees only what it has."""

    @pytest.mark.parametrize("config", [CLIPS, {**FULL, **SCALED}], ids=["clips", "full"])
    def test_norms_are_those_of_whole_tensors(self, ask: Ask, config: dict[str, Any]) -> None:
        facts = ask("in_shard_map", config)
        assert facts["copies"] == []
        agree(facts)

    def test_the_axes_must_be_named_where_nothing_tells(self, ask: Ask) -> None:
        for told in (ask("in_shard_map", CLIPS, "rows", False), ask("in_pmap", CLIPS)):
            assert "sharded_over must name the axes" in told["error"]
            assert "received None" in told["error"]

    def test_named_axes_are_summed_over(self, ask: Ask) -> None:
        facts = ask("in_shard_map", {**CLIPS, "sharded_over": "fsdp"}, "rows", False)
        assert facts["copies"] == []
        agree(facts)
        agree(ask("in_pmap", {**CLIPS, "sharded_over": ["devices"]}))

    def test_a_wrong_answer_is_noticed(self, ask: Ask) -> None:
        facts = ask("in_shard_map", {**CLIPS, "sharded_over": []}, "rows", False)
        assert facts["apart"]["float32"] > 1000


@pytest.mark.parametrize("config", [SKIPS, SCALED], ids=["skip", "loss scale"])
@pytest.mark.parametrize("way", ["jit", "shard_map", "unchecked shard_map"])
def test_a_nan_on_one_device_makes_all_skip(ask: Ask, way: str, config: dict[str, Any]) -> None:
    if way == "unchecked shard_map" and config is SKIPS:
        config = {**config, "sharded_over": "fsdp"}
    facts = ask("nan_on_one_device", way, config)
    assert all(facts["same"].values()), facts["same"]
    assert all(facts["moves"].values()), "the next call must go on"
    assert facts["copies"] == [], "the devices disagree"
    assert (facts["calls"], facts["skipped_calls"]) == (1, 1)


@pytest.mark.parametrize(("way", "times"), [("jit", 1), ("shard_map", 8)])
def test_a_function_is_asked_once_by_whoever_takes_the_step(ask: Ask, way: str, times: int) -> None:
    facts = ask("asked_on_a_mesh", way)
    assert facts["asked"] == times
    agree(facts)


def test_sizes_that_the_mesh_does_not_divide(ask: Ask) -> None:
    facts = ask("uneven")
    assert "divide" in facts["refused"], "JAX takes such arrays now: test them like the others"
    # In compiled code they may be constrained, or zeros be added: these stay zeros.
    assert facts["constrained"]["float32"] <= FEW
    assert facts["local"], "the constraint did nothing"
    assert facts["padded"]["float32"] <= FEW
    assert facts["padding"] == 0.0


@pytest.fixture(scope="module")
def checkpoints(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of checkpoints of eight devices, half through a window, with averages."""
    if find_spec("orbax") is None:
        pytest.skip("could not import 'orbax'")
    facts = ask("checkpointed", str(tmp_path_factory.mktemp("checkpoints")))
    assert facts["window"] == 2
    return facts


@pytest.mark.parametrize("devices", ["8", "4", "1"])
@pytest.mark.parametrize("way", ["portable", "orbax"])
def test_checkpoints_of_eight_devices_go_on_on_fewer(
    checkpoints: dict[str, Any], way: str, devices: str
) -> None:
    found = checkpoints[f"{way} on {devices}"]
    assert found["lost"] == [], "not the same to the bit after loading"
    assert found["unlike"] == [], "not as the state that was given lies"
    if devices == "8":
        assert found["is_same"], "an uninterrupted run came to other bits"
        assert found["compiled"] == 0
    agree({**found, "moved": True})

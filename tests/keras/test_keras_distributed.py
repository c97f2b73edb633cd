"""Training on several devices comes out as training on one.

What needs several devices happens in processes that have them, `distributed_jax.py` and so on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import processes
import pytest

BACKEND = keras.backend.backend()
DEVICES = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "OMP_NUM_THREADS": "1",
}
FEW = 16
"""Spacings of float32. Sums over a batch add up in another order, and what their roundings make
of clipping and of moments; at most 6 were seen, where definition.md has 64."""
CUT = {"hidden/kernel": ["(None, 'model')", 4], "last/kernel": ["('model', None)", 4]}
WHOLE = {"hidden/kernel": ["(None, None)", 1], "last/kernel": ["(None, None)", 1]}
"""How two kernels are cut, and into how many different parts."""

on_jax = pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution needs JAX")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has strategies")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="DistributedDataParallel is PyTorch's")


class Child:
    """A process that has the devices; see `child.py`."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(here / "child.py"), f"distributed_{BACKEND}"],
            env=processes.environment(**DEVICES),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, question: str, *arguments: Any) -> None:
        assert self.process.stdin is not None
        print(json.dumps([question, arguments]), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        assert self.process.stdout is not None
        stuck = threading.Timer(processes.LIMIT, self.process.kill)
        stuck.start()
        line = self.process.stdout.readline()
        stuck.cancel()
        assert line, f"the process with several devices has ended, or took {processes.LIMIT} s"
        is_right, answer = json.loads(line)
        assert is_right, answer
        return answer

    def ask(self, question: str, *arguments: Any) -> Any:
        self.tell(question, *arguments)
        return self.answer()


@pytest.fixture(scope="module")
def children() -> Iterator[list[Child]]:
    """One process, or the two of PyTorch."""
    started = [Child() for _ in range(2 if BACKEND == "torch" else 1)]
    try:
        for child in started:
            child.answer()
        yield started
    finally:
        for child in started:
            child.process.kill()
            child.process.communicate()


@on_jax
class TestDistribution:
    @pytest.mark.parametrize("how", ["data", "model"])
    def test_fits_as_one_device_does(self, children: list[Child], how: str) -> None:
        facts = children[0].ask("through_fit", how)
        assert facts["apart"] <= FEW
        assert facts["counts"] == [5, 2]
        assert facts["devices"] == 8
        assert facts["misplaced"] == []
        assert facts["lies"] == (CUT if how == "model" else WHOLE)

    def test_takes_calls_where_the_state_lies(self, children: list[Child]) -> None:
        facts = children[0].ask("through_a_loop")
        assert facts["apart"] <= FEW
        assert facts["moved"] == []
        # The norm over all gradients needs one number of each device, and no device all of them.
        assert (facts["gathers"], facts["reduces"]) == (False, True)

    def test_saves_and_loads(self, children: list[Child], tmp_path: Path) -> None:
        facts = children[0].ask("saved", str(tmp_path))
        assert facts["lies"] == [CUT, CUT]
        assert facts["misplaced"] == [[], []]
        assert facts["loaded"] == [0, 0]
        assert facts["later"] == 0
        assert (facts["on_one"], facts["devices"]) == (0, 1)

    def test_not_a_number_on_one_device_is_seen_on_all(self, children: list[Child]) -> None:
        facts = children[0].ask("not_a_number_on_one_device")
        assert facts == {"changed": False, "counts": [0, 1]}


@on_tensorflow
class TestMirroredStrategy:
    def test_fits_as_one_device_does(self, children: list[Child]) -> None:
        facts = children[0].ask("through_fit")
        assert facts["slices"]
        assert facts["apart"] <= FEW
        assert facts["metrics"] < 1e-6
        assert facts["split"] == []
        assert facts["counts"] == [5, 2]

    @pytest.mark.parametrize("how", ["eager", "graph"])
    def test_takes_calls_of_a_loop(self, children: list[Child], how: str) -> None:
        facts = children[0].ask("through_a_loop", how)
        assert facts == {"before": 0, "after": 0, "split": [], "counts": [5, 3]}

    def test_not_a_number_in_one_replica_is_seen_in_all(self, children: list[Child]) -> None:
        facts = children[0].ask("not_a_number_in_one_replica")
        assert facts == {"apart": 0, "split": [], "skipped": 1, "scale": 2.0}

    def test_saves_and_loads(self, children: list[Child], tmp_path: Path) -> None:
        facts = children[0].ask("saved", str(tmp_path))
        assert facts == {"loaded": [0, 0, 0], "later": 0, "split": [[], []]}


@on_torch
def test_processes_train_as_one_does(children: list[Child], tmp_path: Path) -> None:
    for question in ("join", "in_parallel"):
        for rank, child in enumerate(children):
            child.tell(question, str(tmp_path), rank)
        found = [child.answer() for child in children]
    for facts in found:
        assert facts["apart"] <= FEW
        assert facts["same"] == 0
        assert facts["alike"]
        assert facts["counts"] == [5, 3]

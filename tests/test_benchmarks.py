"""The benchmarks' own limits move what they say; whether they are fast is not for a test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SIZES = [1000, 40_000]


@pytest.mark.parametrize("name", ["step", "recipe", "bfloat16", "accumulation"])
def test_limits_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the benchmarks compare with PyTorch")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from benchmarks import limit

    run = getattr(limit, name)(SIZES)
    run()
    run()
    assert "benchmarks.limit" in sys.modules

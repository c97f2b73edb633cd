"""A run that began in Keras goes on in other frameworks, as the example of it shows."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.once
EXAMPLE = Path(__file__).parents[2] / "examples" / "move_on_from_keras.py"


def test_the_example_comes_to_the_same_in_all_frameworks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in ("torch", "jax", "optax", "sklearn"):
        pytest.importorskip(package)
    runpy.run_path(str(EXAMPLE))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["Keras", "PyTorch", "JAX"]
    assert {row[1] for row in rows} == {"121"}
    assert {row[3] for row in rows} == {rows[0][3]}
    assert all(float(row[-1]) < 1e-5 for row in rows)


def test_without_transposing_the_example_is_refused(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    option = '    transposed={"hidden.weight": (1, 0), "output.weight": (1, 0)},\n'
    assert text.count(option) == 1
    # How long it trains does not matter for that.
    shortened = text.replace(option, "").replace("BEFORE, AFTER = 61, 60", "BEFORE, AFTER = 3, 0")
    (tmp_path / "example.py").write_text(shortened)
    with pytest.raises(ValueError, match=r"hidden\.weight/momentum .saved float32 .64, 128."):
        runpy.run_path(str(tmp_path / "example.py"))

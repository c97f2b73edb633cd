"""Keras's own tests of its Adam, with ours in its place."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from keras.src import backend, optimizers
from keras.src.optimizers import (
    adam_test,
    adamw_test,
    loss_scale_optimizer_test,
    optimizer_sparse_test,
    optimizer_test,
)

from oneadam.keras import Adam, LossScaleOptimizer

with mock.patch.object(optimizers, "Adam", Adam):
    # Its cases hold the classes that there are when it is imported.
    sparse = importlib.reload(optimizer_sparse_test)


class _WithOurs:
    """Has `Adam` mean ours in the modules of the tests."""

    also: tuple[Any, ...] = ()
    """Of further modules: the module, what is exchanged there, and for what."""

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        for patch in (
            mock.patch.object(optimizers, "Adam", Adam),
            mock.patch.object(adam_test, "Adam", Adam),
            mock.patch.dict(optimizers.ALL_OBJECTS_DICT, adam=Adam),
            *(mock.patch.object(*exchanged) for exchanged in self.also),
        ):
            patch.start()
            self.addCleanup(patch.stop)  # type: ignore[attr-defined]
        if backend.backend() == "torch":
            # There Keras makes another class of what is called its Adam.
            base = optimizers.Optimizer.__mro__[1]
            patch = mock.patch.object(base, "__new__", lambda cls, *_, **__: object.__new__(cls))
            patch.start()
            self.addCleanup(patch.stop)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("default")
class TestAdam(_WithOurs, adam_test.AdamTest):
    """Of `keras.optimizers.Adam`."""


@pytest.mark.filterwarnings("default")
class TestOptimizer(_WithOurs, optimizer_test.OptimizerTest):
    """Of all optimizers; those that make an Adam make ours."""


def adamw(learning_rate: Any = 0.001, weight_decay: Any = 0.004, **options: Any) -> Adam:
    """Ours with the weight decay that Keras's AdamW has by default."""
    return Adam(learning_rate, weight_decay=weight_decay, **options)


def sgd(learning_rate: float, loss_scale_factor: Any = None, **_: Any) -> Adam:
    """Ours with an epsilon beside which it is plain gradient descent."""
    large = 1e8
    return Adam(learning_rate * large, 0.0, 0.0, epsilon=large, loss_scale_factor=loss_scale_factor)


@pytest.mark.filterwarnings("default")
class TestAdamW(_WithOurs, adamw_test.AdamWTest):
    """Of `keras.optimizers.AdamW`."""

    also = ((adamw_test, "AdamW", adamw),)


@pytest.mark.filterwarnings("default")
class TestTheirLossScale(_WithOurs, loss_scale_optimizer_test.LossScaleOptimizerTest):
    """Of Keras's wrapper, around ours."""

    also = ((loss_scale_optimizer_test, "SGD", sgd),)


@pytest.mark.filterwarnings("default")
class TestOurLossScale(_WithOurs, loss_scale_optimizer_test.LossScaleOptimizerTest):
    """Of ours in the place of Keras's wrapper."""

    also = (
        (loss_scale_optimizer_test, "SGD", sgd),
        (loss_scale_optimizer_test, "LossScaleOptimizer", LossScaleOptimizer),
    )


@pytest.mark.filterwarnings("default")
class TestSparse(sparse.OptimizerSparseTest):
    """Of gradients that are slices; those that make an Adam."""


EXCEPTIONS = {
    (TestAdamW, "test_weight_decay_is_none"): "a weight decay of None is none",
    (TestOurLossScale, "test_serialization"): "`minimum_scale` is in the configuration too",
    (TestOurLossScale, "test_deserialization_backwards_compatibility"): (
        "the inner optimizer must be ours"
    ),
    (TestSparse, "test_sparse_gradients_adam"): "asks which method of Keras writes values",
    (TestSparse, "test_sparse_gradients_adam_amsgrad"): "asks which method of Keras writes values",
    **{
        (TestOurLossScale, f"test_finite_step_with_inner_loss_scale_{kind}"): (
            "a scale of the inner optimizer is refused, not set aside"
        )
        for kind in ("stateless", "stateful")
    },
}
"""Tests of Keras that fail, and why that is meant; docs/keras.md says the same."""


def _without_the_others() -> None:
    for name in dir(TestSparse):
        if name.startswith("test_sparse") and not name.endswith(("_adam", "_adam_amsgrad")):
            setattr(TestSparse, name, None)


def _marked(case: Any, name: str, reason: str) -> None:
    inherited = getattr(case, name)

    # A mark on the inherited function would be one on it in all cases.
    @functools.wraps(inherited)
    def test(self: Any) -> None:
        inherited(self)

    setattr(case, name, pytest.mark.xfail(strict=True, reason=reason)(test))


_without_the_others()
for (_of, _name), _reason in EXCEPTIONS.items():
    _marked(_of, _name, _reason)
del _of, _name, _reason


def test_exceptions_are_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "keras.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(test_\w+)`", guide))
    suffixes = re.compile("_(stateless|stateful|adam|adam_amsgrad)$")
    assert told == {suffixes.sub("", name) for _, name in EXCEPTIONS}


@pytest.mark.parametrize(
    ("case", "name", "meant"),
    [
        (TestAdam, "test_single_step", Adam),
        (TestAdamW, "test_single_step", Adam),
        (TestTheirLossScale, "test_config", Adam),
        (TestOurLossScale, "test_config", LossScaleOptimizer),
    ],
)
def test_that_ours_was_meant(case: Any, name: str, meant: Any) -> None:
    made: list[Any] = []
    with mock.patch.object(meant, "__init__", lambda self, *a, **k: made.append(a) or 1 / 0):
        of = case(name)
        of.setUp()
        with pytest.raises(ZeroDivisionError):
            getattr(of, name)()
        of.doCleanups()
    assert made


def test_that_ours_was_meant_where_gradients_are_sparse() -> None:
    assert [case["testcase_name"] for case in sparse.TEST_CASES
            if case["optimizer_class"] is Adam] == ["adam", "adam_amsgrad"]  # fmt: skip

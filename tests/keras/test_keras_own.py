"""Keras's own tests of its Adam, with ours in its place."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from keras.src import backend, optimizers
from keras.src.optimizers import adam_test, optimizer_test

from oneadam.keras import Adam


class _WithOurs:
    """Has `Adam` mean ours in the modules of the tests."""

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        for patch in (
            mock.patch.object(optimizers, "Adam", Adam),
            mock.patch.object(adam_test, "Adam", Adam),
            mock.patch.dict(optimizers.ALL_OBJECTS_DICT, adam=Adam),
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


def test_that_ours_was_meant() -> None:
    made: list[Any] = []
    with mock.patch.object(Adam, "__init__", lambda self, *a, **k: made.append(a) or 1 / 0):
        case = TestAdam("test_single_step")
        case.setUp()
        with pytest.raises(ZeroDivisionError):
            case.test_single_step()
        case.doCleanups()
    assert made

"""What holds for the tests of the engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import oneadam

pytest.register_assert_rewrite("engines.differential", "engines.hosts")


@pytest.fixture
def threads() -> Iterator[None]:
    """Give the test the number of threads to play with."""
    before = oneadam.get_num_threads()
    yield
    oneadam.set_num_threads(before)

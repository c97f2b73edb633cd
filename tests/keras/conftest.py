"""What holds for every test of the Keras door."""

from __future__ import annotations

import keras
import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another backend shows as well."""
    if keras.backend.backend() == "torch":
        return
    elsewhere = [item for item in items if item.get_closest_marker("once")]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]

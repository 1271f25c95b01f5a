"""The suite of a machine with a GPU: `make test-gpu`. Where TensorFlow sees none, each test is skipped and says so."""

from pathlib import Path

import pytest
import tensorflow as tf


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder alone, which is all that pytest may ask about them here."""
    own = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in own:
        item.add_marker(pytest.mark.slow)
        if not tf.config.list_physical_devices("GPU"):
            item.add_marker(pytest.mark.skip(reason="TensorFlow sees no GPU here; `make test-gpu` is for one that has"))

"""What every test of the suite runs under."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

# As many processes as cores run the tests: more threads would only wait for each other. Set before
# PyTorch is loaded, and handed on to what the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """A fold of a module may collect garbage: slow among all that a test run has loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

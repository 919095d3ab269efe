"""What every test of the suite runs under."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

# As many processes as cores run the tests: more threads would only wait for each other. Set before
# PyTorch is loaded, and handed on to what the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# With Python's 700 a fifth of the time goes into searches for garbage, through all that a dozen
# thousand collected tests keep.
gc.set_threshold(50_000, 20, 20)


def pytest_sessionfinish() -> None:
    """pytest looks through all that is left five times, and Python once more: once is enough."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tests_are_no_garbage() -> Iterator[None]:
    """Between two settings a measurement looks for garbage; the tests hold much that is none."""
    gc.freeze()
    yield
    gc.unfreeze()

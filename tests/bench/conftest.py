"""Between two settings a measurement looks for garbage, and the tests hold much that is none."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _tests_are_no_garbage() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()

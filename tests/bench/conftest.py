"""Every test here measures, or may."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _measures(tests_are_no_garbage: None) -> None:
    pass

"""The real networks that lie beside the checkout, where they do."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "caffe"
"""A folder beside the repository; a clone alone does not have it."""

PROTOTXTS = sorted(
    path for path in SHARED.glob("prototxts/*") if path.suffix in (".prototxt", ".pt")
)
MODELS = sorted(SHARED.glob("models/*.prototxt"))

needs_shared = pytest.mark.skipif(
    not PROTOTXTS, reason=f"no real Caffe networks in {SHARED.parent.name}/{SHARED.name}"
)

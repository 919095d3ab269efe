"""How far a right fold may be off, relative to the largest value: one table by dtype.

The networks of the tests are small and their values near 1, so these are rounding over some tens of
ops; a fault is thousands of times as large. What is stricter, or is measured against the original's
own error, says so where it stands.
"""

from __future__ import annotations

RELATIVE = {"float64": 1e-9, "float32": 2e-4, "float16": 1e-2, "bfloat16": 6e-2}
"""By the dtype that a network computes in."""
EXACT = RELATIVE["float64"]
"""In float64, as nearly all are compared."""
